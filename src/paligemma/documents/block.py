"""Boxes of a block of print: its rows, and the white corridors through it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]  # [N, 4]
Indices = NDArray[np.intp]

_NUM_BINS = 512  # of the page's width, in which white corridors are looked for
_COLUMN_WIDTH = 7.0  # in line heights: narrower ones are the cells of a table


def around(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def rows_of_boxes(boxes: Boxes) -> list[Indices]:
    """Boxes whose middles lie at about the same height, from the top."""
    order = np.argsort((boxes[:, 1] + boxes[:, 3]) / 2, kind="stable")
    rows: list[list[int]] = []
    top = bottom = 0.0
    for index in order.tolist():
        y0, y1 = boxes[index, 1], boxes[index, 3]
        shared = min(bottom, y1) - max(top, y0)
        if rows and shared > 0.5 * min(bottom - top, y1 - y0):
            rows[-1].append(index)
            # The row's height stays that of its first box, so that a slanted line does not
            # drag in the next one.
        else:
            rows.append([index])
            top, bottom = y0, y1
    return [np.array(row, dtype=np.intp) for row in rows]


def corridors(
    boxes: Boxes, extent: tuple[float, float], max_crossed: float, min_width: float
) -> list[float]:
    """Where a vertical line meets little print over some width, the widest corridor first."""
    x0, x1 = extent
    width = (x1 - x0) / _NUM_BINS
    if width <= 0:
        return []
    heights = np.zeros(_NUM_BINS + 1)
    first = np.clip(((boxes[:, 0] - x0) / width).astype(int), 0, _NUM_BINS)
    last = np.clip(np.ceil((boxes[:, 2] - x0) / width).astype(int), 0, _NUM_BINS)
    np.add.at(heights, first, boxes[:, 3] - boxes[:, 1])
    np.add.at(heights, last, boxes[:, 1] - boxes[:, 3])
    crossed = np.cumsum(heights)[:_NUM_BINS]
    is_free = crossed <= max_crossed + 1e-9 * (boxes[:, 3] - boxes[:, 1]).sum()  # sums are rounded
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_free.astype(int), [0]])))
    found = []
    for start, end in edges.reshape(-1, 2):
        # Within the corridor, where it is crossed least.
        least = crossed[start:end].min()
        core = np.flatnonzero(crossed[start:end] <= least + 1e-9 * heights.max()) + start
        pieces = np.split(core, np.flatnonzero(np.diff(core) > 1) + 1)
        widest = max(pieces, key=len)
        if len(widest) * width >= min_width:
            found.append((len(widest), x0 + (widest[0] + widest[-1] + 1) / 2 * width))
    return [x for _, x in sorted(found, reverse=True)]


def has_long_lines(boxes: Boxes) -> bool:
    """Whether most print is in long lines, as in a column of text."""
    heights = boxes[:, 3] - boxes[:, 1]
    widths = boxes[:, 2] - boxes[:, 0]
    # The few words of loose lines stand apart.
    is_long = widths >= _COLUMN_WIDTH * np.median(heights)
    return bool(widths[is_long].sum() >= 2 / 3 * widths.sum())
