"""Boolean masks in COCO's formats: run-length encoding and polygons."""

from __future__ import annotations

from collections import defaultdict
from typing import TypedDict

import numpy as np
import numpy.typing as npt

Ring = list[list[int]]
_Vertex = tuple[int, int]


class Rle(TypedDict):
    """A mask in COCO's compressed form; `size` is [height, width]."""

    size: list[int]
    counts: str


def mask_to_rle(mask: npt.NDArray[np.bool_]) -> Rle:
    """Encode the mask bool[H, W] as COCO's compressed run lengths.

    Runs go down the columns and alternate background, foreground, starting with background.
    From the fourth on, each is stored as the difference to the run two before, in groups of five
    bits, lowest first, as printable characters (format: `maskApi.c` of the COCO API).

    >>> mask_to_rle(np.array([[False, True], [False, True]]))
    {'size': [2, 2], 'counts': '22'}
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    runs: list[int] = np.diff(edges).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    counts = "".join(_compress(run - runs[i - 2] if i > 2 else run) for i, run in enumerate(runs))
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": counts}


def _compress(number: int) -> str:
    characters = []
    while True:
        group = number & 0x1F
        number >>= 5
        # Bit 4 of the last group is the sign, so stop only when the remaining bits equal it.
        done = number == (-1 if group & 0x10 else 0)
        characters.append(chr(48 + (group if done else group | 0x20)))
        if done:
            return "".join(characters)


def mask_to_polygons(mask: npt.NDArray[np.bool_]) -> list[Ring]:
    """Return the outlines of the mask bool[H, W] along pixel edges, as rings of [x, y] corners.

    Rings enclose exactly the mask's pixels under the even-odd rule. Outer rings run clockwise on
    screen, rings around holes counterclockwise. Where two pixels touch only at a corner, a ring
    stays with its pixel, so no ring crosses itself. The first corner is not repeated at the end.

    >>> mask_to_polygons(np.array([[True, True]]))
    [[[0, 0], [2, 0], [2, 1], [0, 1]]]
    """
    inside = np.pad(mask, 1)
    ends: defaultdict[_Vertex, list[_Vertex]] = defaultdict(list)
    # The four sides of a pixel, clockwise: the offset of the neighbor across the side, then the
    # start and end of the side relative to the pixel's upper left corner.
    for (dy, dx), (x0, y0), (x1, y1) in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        open_sides = inside & ~np.roll(inside, (-dy, -dx), axis=(0, 1))
        for y, x in np.argwhere(open_sides[1:-1, 1:-1]).tolist():
            ends[(x + x0, y + y0)].append((x + x1, y + y1))
    rings: list[Ring] = []
    for start in sorted(ends, key=lambda vertex: (vertex[1], vertex[0])):
        while ends[start]:
            rings.append(_trace(start, ends))
    return rings


def _trace(start: _Vertex, ends: defaultdict[_Vertex, list[_Vertex]]) -> Ring:
    """Follow sides from `start` back to it, removing them from `ends`; return the corners.

    `start` is the uppermost, then leftmost remaining vertex, so it is a corner.
    """
    ring: Ring = [[start[0], start[1]]]
    vertex, following = start, ends[start].pop()
    while following != start:
        step = (following[0] - vertex[0], following[1] - vertex[1])
        vertex = following
        if len(ends[vertex]) == 1:
            following = ends[vertex].pop()
        else:  # two pixels touch here: turning right stays with the current one
            following = _right_of(step, vertex)
            ends[vertex].remove(following)
        if (following[0] - vertex[0], following[1] - vertex[1]) != step:
            ring.append([vertex[0], vertex[1]])
    return ring


def _right_of(step: _Vertex, vertex: _Vertex) -> _Vertex:
    """Return the vertex after turning right at `vertex`, reached by `step` (y points down)."""
    return vertex[0] - step[1], vertex[1] + step[0]
