"""Tables in which a cell may have several lines, by boxes alone.

In columns of text, paragraphs end where they end. In such a table all cells of a row begin at the
same height, whatever the length of those above them: after cells of different lengths there is a
white gap through both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma.documents.block import (
    Boxes,
    Indices,
    around,
    corridors,
    rows_of_boxes,
)

_LEAST_ROWS = 3
_LEAST_GOING_ON = 2  # lines that are followed by another one in their cell
_ROW_GAP = 0.3
"""How much wider than between lines the gap between rows is, in line heights."""
_BREAK = 0.6
"""The same for a gap in one column alone, where letters are seen and not whole lines."""
_TEXT_WIDTH = 5.0  # in line heights, of a line that may go on in the next one
_TEXT_SHARE = 0.2  # of the lines, at least
_CELL_LINES = 8  # of most cells, at most
_WIDE = 0.6  # of a column's width, and of the lines that must be so


@dataclass(frozen=True)
class TableRow:
    """A row of a table, or what stands between two of them."""

    members: Indices
    cells: Sequence[Indices]
    """One after the other; those of one line that follow each other together. () where the row is
    none of the table."""


def rows_of_table(
    boxes: Boxes, is_left: NDArray[np.bool_], is_right: NDArray[np.bool_], are_long: bool
) -> list[TableRow]:
    """The rows, from the top, where both sides of a corridor are cells of a table; else [].

    `are_long`: whether most print on both sides is in long lines, as in columns of text.
    """
    if len(boxes) < 2 * _LEAST_ROWS + _LEAST_GOING_ON:
        return []
    line = float(np.median(boxes[:, 3] - boxes[:, 1]))
    order = np.argsort(boxes[:, 1], kind="stable")
    reach = np.maximum.accumulate(boxes[order, 3])
    white = boxes[order[1:], 1] - reach[:-1]
    has_text = (boxes[:, 2] - boxes[:, 0] >= _TEXT_WIDTH * line).mean() >= _TEXT_SHARE
    if not has_text or (white > 0).sum() < _LEAST_ROWS - 1:
        return []
    is_within = is_left | is_right
    columns = _columns(boxes, is_within, 0.8 * line)
    lines = [_lines(boxes[is_within & (columns == column)]) for column in np.unique(columns)]
    gaps = np.concatenate([side[1:, 0] - side[:-1, 1] for side in lines])
    usual = float(np.percentile(gaps, 20)) if len(gaps) else 0.0
    cuts = np.flatnonzero(white > max(0.0, usual + _ROW_GAP * line)) + 1
    bands = (reach[cuts - 1] + boxes[order[cuts], 1]) / 2
    if _num_other_breaks(lines, bands, usual + _BREAK * line) > len(bands) / 4:
        return []
    rows = np.split(order, cuts)
    within = [row for row in rows if is_within[row].all()]
    full = [row for row in within if is_left[row].any() and is_right[row].any()]
    if len(full) < _LEAST_ROWS or 3 * len(full) < 2 * len(within):
        return []
    if not _restart_together(
        [(boxes[row[is_left[row]]], boxes[row[is_right[row]]]) for row in full]
    ):
        return []
    # Lines beside single ones are read as they stand, unless both sides would be columns of text.
    least = 1 if are_long else 2
    if not _are_wrapped(boxes, columns, full, least_columns=least):
        return []
    numbers = {id(row) for row in full}
    return [
        TableRow(row, _cells(boxes, columns, row, line) if id(row) in numbers else ())
        for row in rows
    ]


def _columns(boxes: Boxes, is_within: NDArray[np.bool_], least_gap: float) -> Indices:
    """The number of the column that each box is in."""
    inside = boxes[is_within]
    x0, _, x1, _ = around(inside)
    edges = np.sort(corridors(inside, (x0, x1), 0.0, least_gap))
    return np.searchsorted(edges, (boxes[:, 0] + boxes[:, 2]) / 2)


def _restart_together(rows: Sequence[tuple[Boxes, Boxes]]) -> bool:
    """Whether rows follow cells of different lengths, none as long as a text, and both sides stand
    at the same height."""
    lengths = np.array([[len(_lines(left)), len(_lines(right))] for left, right in rows])
    num_uneven = (lengths[:-1, 0] != lengths[:-1, 1]).sum()
    num_aligned = sum(_are_aligned(left, right) for left, right in rows)
    return bool(
        np.median(lengths.max(axis=1)) <= _CELL_LINES
        and 4 * num_uneven >= len(rows)
        and 4 * num_aligned >= 3 * len(rows)
    )


def _are_wrapped(
    boxes: Boxes, columns: Indices, rows: Sequence[Indices], *, least_columns: int
) -> bool:
    """Whether at least so many columns have cells of several lines, and most lines that go on in
    their cell are about as wide as their column."""
    num_wide = num_lines = num_columns = 0
    everything = np.concatenate(rows)
    for column in np.unique(columns[everything]):
        x0, _, x1, _ = around(boxes[everything[columns[everything] == column]])
        cells = [boxes[row[columns[row] == column]] for row in rows]
        going_on = [cell[line] for cell in cells for line in rows_of_boxes(cell)[:-1]]
        widths = [line[:, 2].max() - line[:, 0].min() for line in going_on]
        num_lines += len(widths)
        num_wide += sum(width >= _WIDE * (x1 - x0) for width in widths)
        num_columns += len(widths) > 0
    return (
        num_columns >= least_columns
        and num_lines >= _LEAST_GOING_ON
        and num_wide >= _WIDE * num_lines
    )


def _lines(boxes: Boxes) -> NDArray[np.float64]:
    """Upper and lower end of each line of one column, from the top: [N, 2]."""
    boxes = boxes[np.argsort(boxes[:, 1], kind="stable")]
    reach = np.maximum.accumulate(boxes[:, 3])
    height = np.median(boxes[:, 3] - boxes[:, 1])
    starts = np.flatnonzero(boxes[1:, 1] > reach[:-1] - 0.5 * height) + 1
    return np.stack(
        [boxes[np.append(0, starts), 1], reach[np.append(starts, len(boxes)) - 1]], axis=1
    )


def _num_other_breaks(
    lines: Sequence[NDArray[np.float64]], bands: NDArray[np.float64], least: float
) -> int:
    """How many wide gaps of one column are no gaps between rows of the table."""
    count = 0
    for side in lines:
        for end, start in zip(side[:-1, 1], side[1:, 0], strict=True):
            count += start - end > least and not ((end < bands) & (bands < start)).any()
    return count


def _are_aligned(left: Boxes, right: Boxes) -> bool:
    """Whether both cells of a row begin at the same height, or end, or have the same middle."""
    ends = np.array([[side[:, 1].min(), side[:, 3].max()] for side in (left, right)])
    difference = np.abs(ends[0] - ends[1])
    middle = abs(ends[0].sum() - ends[1].sum()) / 2
    height = np.median(np.concatenate([left, right])[:, 3] - np.concatenate([left, right])[:, 1])
    return bool(min(difference.min(), middle) <= 0.5 * height)


def _cells(boxes: Boxes, columns: Indices, row: Indices, line: float) -> list[Indices]:
    """The cells of a row; single lines at the same height, and what goes on from the last of them,
    together."""
    cells: list[Indices] = []
    for column in np.unique(columns[row]):
        cell = row[columns[row] == column]
        if cells and len(rows_of_boxes(boxes[np.concatenate([cells[-1], cell])])) == 1:
            cells[-1] = np.concatenate([cells[-1], cell])
        else:
            cells.append(cell)
    if len(cells) == 2 and len(rows_of_boxes(boxes[cells[0]])) == 1:
        tops = [boxes[cell, 1].min() for cell in cells]
        if abs(tops[0] - tops[1]) <= 0.5 * line:
            return [row]
    return cells
