"""Boolean masks <-> COCO run lengths and polygons.

Masks are made from polygons and run lengths pixel for pixel as the COCO API makes them
(`maskApi.c`: rleFrPoly, rleFrString), so that scores against them mean the same as elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypedDict

import numpy as np
import numpy.typing as npt

from paligemma.errors import DataError

Mask = npt.NDArray[np.bool_]
"""bool[H, W]."""
Ring = list[list[int]]
_Vertex = tuple[int, int]
_SCALE = 5  # the COCO API walks boundaries on a grid five times as fine as the pixels


class Rle(TypedDict):
    """A mask in COCO's compressed form; `size` is [height, width]."""

    size: list[int]
    counts: str


class PackedMask(Protocol):
    """A mask in little memory."""

    def unpack(self) -> Mask:
        """bool[H, W], as a new array."""
        ...


@dataclass(frozen=True, kw_only=True)
class MaskBits:
    """One bit per pixel of the rectangle around the mask.

    >>> MaskBits.of(np.eye(3, dtype=bool)).unpack().sum()
    np.int64(3)
    """

    shape: tuple[int, int]
    corner: tuple[int, int]
    bits: npt.NDArray[np.uint8]
    """Rows of the rectangle, 8 pixels per value."""
    num_columns: int

    @classmethod
    def of(cls, mask: npt.NDArray[Any]) -> Self:
        """Pack bool[H, W]."""
        mask = mask.astype(np.bool_, copy=False)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size:
            top, left = int(rows[0]), int(columns[0])
            part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
        else:
            top, left, part = 0, 0, mask[:0, :0]
        height, width = mask.shape
        return cls(
            shape=(height, width),
            corner=(top, left),
            bits=np.packbits(part, axis=1),
            num_columns=part.shape[1],
        )

    def unpack(self) -> Mask:
        """bool[H, W], as a new array."""
        mask = np.zeros(self.shape, dtype=np.bool_)
        part = np.unpackbits(self.bits, axis=1, count=self.num_columns)
        (top, left), (height, width) = self.corner, part.shape
        mask[top : top + height, left : left + width] = part
        return mask


def mask_to_rle(mask: Mask) -> Rle:
    """The mask bool[H, W] as COCO's compressed run lengths.

    Runs go down the columns and alternate background, foreground, starting with background.
    From the fourth on, each is stored as its difference from the run two before, in groups of
    five bits, lowest first, as printable characters (format: `maskApi.c` of the COCO API).

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
        # Bit 4 is the sign of the last group, so stop only when the rest repeats it.
        done = number == (-1 if group & 0x10 else 0)
        characters.append(chr(48 + (group if done else group | 0x20)))
        if done:
            return "".join(characters)


def rle_to_mask(rle: Any, size_wh: tuple[int, int], where: str) -> Mask:
    """bool[H, W] from COCO run lengths, {"size": [H, W], "counts": text or a list of numbers}.

    Raises DataError, which begins with `where`, for another size or runs that do not fill it.
    """
    width, height = size_wh
    size = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise DataError(
            f"{where}: a mask in run lengths has the size {size}; its image has [{height}, "
            f"{width}] (height, width). Make the mask from this image."
        )
    counts = rle.get("counts")
    runs: list[int] | None = None
    if isinstance(counts, str | bytes):
        runs = _decompress(counts.decode("latin-1") if isinstance(counts, bytes) else counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    if runs is None or any(run < 0 for run in runs) or sum(runs) != width * height:
        raise DataError(
            f"{where}: the run lengths of a mask do not fill its {height} x {width} pixels. "
            "Export the mask again."
        )
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(height, width, order="F")


def _decompress(counts: str) -> list[int] | None:
    """The run lengths of COCO's compressed form (see `mask_to_rle`); None for other text."""
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 30:
            return None
        number |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    return None if shift else runs


def polygons_to_mask(
    polygons: Sequence[Sequence[float]], size_wh: tuple[int, int], where: str
) -> Mask:
    """bool[H, W]: the union of polygons, each a flat list x1, y1, x2, y2, ... in pixels.

    Raises DataError, which begins with `where`, for fewer than three points, an odd number of
    coordinates, or coordinates that are not finite.
    """
    width, height = size_wh
    mask = np.zeros((height, width), dtype=np.bool_)
    if not isinstance(polygons, list | tuple):
        raise DataError(f"{where}: the polygons are {polygons!r}; they must be a list of lists.")
    for polygon in polygons:
        mask |= _polygon_to_mask(points_of(polygon, where), size_wh)
    return mask


def points_of(polygon: Sequence[float], where: str) -> npt.NDArray[np.float64]:
    """float64[K, 2] of (x, y). Raises DataError as `polygons_to_mask`."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
        raise DataError(
            f"{where}: a polygon is not a list of x1, y1, x2, y2, x3, y3, ... with at least "
            "three points and finite coordinates. Redraw it."
        )
    return points.reshape(-1, 2)


def box_of_points(points: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 around float64[K, 2]."""
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x1, y1, x2, y2


def _polygon_to_mask(points: npt.NDArray[np.float64], size_wh: tuple[int, int]) -> Mask:
    """Walk the boundary on the fine grid; where it passes from one column of pixels to the next,
    everything below it in that column flips between outside and inside."""
    width, height = size_wh
    fine = np.trunc(_SCALE * points + 0.5).astype(np.int64)
    us, vs = [], []
    for (x1, y1), (x2, y2) in zip(fine.tolist(), np.roll(fine, -1, axis=0).tolist(), strict=True):
        across, down = abs(x2 - x1), abs(y2 - y1)
        is_flat = across >= down
        # Always walked from the smaller coordinate, so that a shared edge rounds the same.
        flips = x1 > x2 if is_flat else y1 > y2
        (xs, ys), (xe, ye) = ((x2, y2), (x1, y1)) if flips else ((x1, y1), (x2, y2))
        steps = np.arange(max(across, down) + 1)
        if flips:
            steps = steps[::-1]
        slope = (ye - ys) / max(across, 1) if is_flat else (xe - xs) / max(down, 1)
        side = np.trunc((ys if is_flat else xs) + slope * steps + 0.5).astype(np.int64)
        us.append(steps + xs if is_flat else side)
        vs.append(side if is_flat else steps + ys)
    u, v = np.concatenate(us), np.concatenate(vs)
    turns = np.flatnonzero(u[1:] != u[:-1]) + 1
    column = (np.where(u[turns] < u[turns - 1], u[turns], u[turns] - 1) + 0.5) / _SCALE - 0.5
    row = (np.minimum(v[turns], v[turns - 1]) + 0.5) / _SCALE - 0.5
    is_column = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    rows = np.ceil(row[is_column].clip(0, height)).astype(np.int64)
    positions = column[is_column].astype(np.int64) * height + rows
    flat = np.zeros(width * height, dtype=np.bool_)
    if positions.size:
        first = int(positions.min())
        changes = np.bincount(positions - first) % 2 == 1
        inside = np.logical_xor.accumulate(changes)[: flat.size - first]
        flat[first : first + inside.size] = inside
        flat[first + inside.size :] = positions.size % 2 == 1
    return flat.reshape(height, width, order="F")


def mask_to_polygons(mask: Mask) -> list[Ring]:
    """The outlines of the mask bool[H, W] along pixel edges, as rings of [x, y] corners.

    Rings enclose exactly the mask's pixels under the even-odd rule. Outer rings run clockwise on
    screen, rings around holes the other way. Where two pixels touch only at a corner, a ring stays
    with its pixel, so that no ring crosses itself. A ring's first corner is not repeated.

    >>> mask_to_polygons(np.array([[True, True]]))
    [[[0, 0], [2, 0], [2, 1], [0, 1]]]
    """
    inside = np.pad(mask, 1)
    ends: defaultdict[_Vertex, list[_Vertex]] = defaultdict(list)
    # The four sides of a pixel, clockwise: the neighbor beyond it, then where the side starts
    # and ends relative to the pixel's upper left corner.
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
    """Follow sides from `start` back to it, using them up; keep the corners only.

    `start` is the uppermost, then leftmost vertex that is left: a corner, which no other ring
    passes.
    """
    ring: Ring = [[start[0], start[1]]]
    vertex, following = start, ends[start].pop()
    while following != start:
        step = (following[0] - vertex[0], following[1] - vertex[1])
        vertex = following
        if len(ends[vertex]) == 1:
            following = ends[vertex].pop()
        else:  # two pixels touch here: turn right, which stays with the current one
            following = _right_of(step, vertex)
            ends[vertex].remove(following)
        if (following[0] - vertex[0], following[1] - vertex[1]) != step:
            ring.append([vertex[0], vertex[1]])
    return ring


def _right_of(step: _Vertex, vertex: _Vertex) -> _Vertex:
    """The vertex reached by turning right (y points down) after `step` led to `vertex`."""
    return vertex[0] - step[1], vertex[1] + step[0]
