"""The parts of a page that a model reads one by one: columns of text, cut where they are large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma.documents.geometry import Box, union
from paligemma.documents.ink import InkLine
from paligemma.documents.order import reading_rows
from paligemma.documents.page import Page
from paligemma.documents.tiles import X_HEIGHT_PIXELS, PrintMask, Tile, whole

_MAX_LETTERS = 500
"""Of a tile. The answer of a model has room for somewhat more."""
_MAX_BLOCKS = 40  # more are no columns, but noise
_NOTICED = 0.06  # of a line's area


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """A tile and the rows of print in it, in page units."""

    tile: Tile
    rows: Sequence[Sequence[Box]]
    block: int
    """Tiles of one block belong together: their rows may go on from tile to tile."""


def regions_of(page: Page, resolution: int, *, tiles: bool = True) -> list[Region]:
    """The parts of a page in reading order.

    The page as a whole without `tiles`, and where what is seen on it is no print, as in a photo.
    """
    lines = page.ink_lines
    if _is_picture(lines):
        rows_of_all = [[(0.0, 0.0, *page.size_wh)]]
        return [Region(tile=whole(page), rows=rows_of_all, block=0)]
    # The model sees all cells of a row together.
    order = reading_rows([line.box for line in lines], splits_cells=False)
    rows = [[lines[index] for index in row] for row in order]
    if not tiles:
        boxes = [[line.box for line in row] for row in rows]
        return [Region(tile=whole(page), rows=boxes, block=0)]
    x_height = page.print_height() or float(np.median([line.x_height for line in lines]))
    side = resolution * x_height / X_HEIGHT_PIXELS
    mask = PrintMask.of(page, x_height)
    regions = []
    for number, block in enumerate(_blocks(rows)):
        for box in _parts(mask, block, side, x_height):
            inside = _rows_in(block, box)
            if inside:
                tile = Tile(page=page, box_xyxy=page.clamp(box))
                regions.append(Region(tile=tile, rows=inside, block=number))
    return regions


def shows_print(page: Page) -> bool:
    """Whether what is seen on a page is print, and not a photo."""
    return not _is_picture(page.ink_lines)


def _is_picture(lines: Sequence[InkLine]) -> bool:
    """Whether most of the lines are no lines of print: neither long nor of one height.

    On 30 pages and photos, print had at least 0.8 of one of both, and photos at most 0.75 of
    length and 0.58 of height.
    """
    if not lines:
        return True
    widths = np.array([line.box[2] - line.box[0] for line in lines])
    heights = np.array([line.box[3] - line.box[1] for line in lines])
    x_heights = np.array([line.x_height for line in lines])
    order = np.argsort(x_heights)
    middle = np.searchsorted(np.cumsum(widths[order]), widths.sum() / 2)
    typical = x_heights[order][min(middle, len(order) - 1)]
    is_usual = (x_heights >= 0.6 * typical) & (x_heights <= 1.6 * typical)
    long_share = widths[widths >= 3 * heights].sum() / widths.sum()
    return bool(long_share < 0.8 and widths[is_usual].sum() / widths.sum() < 0.62)


def _blocks(rows: Sequence[Sequence[InkLine]]) -> list[list[list[InkLine]]]:
    """Rows that follow each other, as long as the box around them holds no other print."""
    boxes = np.array([union([line.box for line in row]) for row in rows])
    blocks: list[list[list[InkLine]]] = []
    start = 0
    around = boxes[0]
    for number in range(len(rows)):
        larger = np.concatenate(
            [np.minimum(around[:2], boxes[number, :2]), np.maximum(around[2:], boxes[number, 2:])]
        )
        later = boxes[number + 1 :]
        earlier = boxes[:start]
        if number > start and (_covers(larger, later) or _covers(larger, earlier)):
            blocks.append([list(row) for row in rows[start:number]])
            start, larger = number, boxes[number]
        around = larger
    blocks.append([list(row) for row in rows[start:]])
    if len(blocks) > _MAX_BLOCKS:
        return [[list(row) for row in rows]]
    return blocks


def _covers(box: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether a part of any other box that would be noticed lies in the box."""
    if not len(others):
        return False
    sizes = np.maximum(others[:, 2:] - others[:, :2], 1e-9)
    shared = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
    return bool((np.maximum(shared / sizes, 0.0).prod(axis=1) > _NOTICED).any())


def _parts(
    mask: PrintMask, block: Sequence[Sequence[InkLine]], side: float, x_height: float
) -> list[Box]:
    """Boxes of a block in which print is large enough, and not too much for one answer."""
    around = union([line.box for row in block for line in row])
    margin = 0.8 * x_height
    around = (around[0] - margin, around[1] - margin, around[2] + margin, around[3] + margin)
    letters = sum(
        (line.box[2] - line.box[0]) / max(line.x_height, 0.5 * x_height)
        for row in block
        for line in row
    )
    width, height = around[2] - around[0], around[3] - around[1]
    per_height = letters / (width * height) * min(side, width)
    tall = min(side, max(_MAX_LETTERS / per_height, 8 * x_height))
    return mask.grid(mask.page.clamp(around), (side, tall), x_height)


def _rows_in(block: Sequence[Sequence[InkLine]], box: Box) -> list[list[Box]]:
    """The rows whose middle is in the box, as far as they are in it."""
    rows = []
    for row in block:
        inside = []
        for line in row:
            x0, x1 = max(line.box[0], box[0]), min(line.box[2], box[2])
            middle = (line.box[1] + line.box[3]) / 2
            if box[1] <= middle <= box[3] and x1 - x0 > 0.3 * (line.box[3] - line.box[1]):
                inside.append((x0, line.box[1], x1, line.box[3]))
        if inside:
            rows.append(inside)
    return rows
