"""The order in which the parts of a page are read: recursive X-Y cut on boxes from any source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma.documents.address import is_address, is_list
from paligemma.documents.block import (
    Boxes,
    Indices,
    around,
    corridors,
    has_long_lines,
    rows_of_boxes,
)
from paligemma.documents.cells import TableRow, rows_of_table
from paligemma.documents.geometry import Box
from paligemma.documents.sidebar import LEAST_MAIN_LINES, is_wrapped, stands_apart
from paligemma.errors import OptionError, counted

_COLUMN_SHARE = 0.6  # of the height of a block, along which a corridor makes columns of it
_ADDRESS_GAP = 2.0  # in line heights, between two addresses
_MOST_LINES_BELOW = 4  # of what follows two columns
_MOST_ADDRESS_PARTS = 30  # of all lines of an address
_MAX_TRIED = 2_000_000
"""Boxes that are looked at for columns, block within block: more than a page of print takes. The
blocks that are left are read row by row."""
_TABLE_ROWS = 2  # that follow each other, with several cells on both sides of a corridor


def reading_order(
    boxes: Sequence[Box], *, texts: Sequence[str] | None = None, right_to_left: bool = False
) -> list[int]:
    """The indices of boxes in the order in which a person reads them.

    The boxes may be those of words, lines, paragraphs or detected regions: x1, y1, x2, y2 with the
    origin at the top left, in any unit. Columns of text are read one after the other, and what
    stands above, between or below them in its place; tables are read row by row. With the `texts`
    of the boxes, narrow blocks that are addresses by what they say are read one after the other,
    too. With `right_to_left`, columns and rows begin at the right.

    >>> reading_order([(60, 0, 100, 9), (0, 12, 40, 20), (0, 0, 40, 10)])
    [2, 0, 1]
    """
    rows = reading_rows(boxes, texts=texts, right_to_left=right_to_left)
    return [index for row in rows for index in row]


def reading_rows(
    boxes: Sequence[Box],
    *,
    texts: Sequence[str] | None = None,
    right_to_left: bool = False,
    splits_cells: bool = True,
) -> list[list[int]]:
    """As `reading_order`, with the boxes that stand next to each other together.

    Without `splits_cells`, cells of several lines are not read one after the other, but their lines
    as they stand next to each other.
    """
    if not len(boxes):
        return []
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise OptionError("Boxes must be x1, y1, x2, y2, all of them finite numbers.")
    array = np.concatenate(
        [np.minimum(array[:, :2], array[:, 2:]), np.maximum(array[:, :2], array[:, 2:])], axis=1
    )
    if right_to_left:
        array = array[:, [2, 1, 0, 3]] * np.array([-1.0, 1.0, -1.0, 1.0])
    parts = _joined(array)
    bounds = np.array([around(array[part]) for part in parts])
    texts_of_parts = None
    if texts is not None:
        if len(texts) != len(boxes):
            given = counted(len(texts), "text was", "texts were")
            raise OptionError(f"{given} given for {counted(len(boxes), 'box', 'boxes')}.")
        texts_of_parts = [" ".join(texts[index] for index in part) for part in parts]
    cutter = _Cutter(bounds, texts_of_parts, splits_cells)
    rows = []
    for row in cutter.rows():
        members = np.concatenate([parts[index] for index in row])
        rows.append([int(index) for index in members[np.argsort(array[members, 0], kind="stable")]])
    return rows


def _joined(boxes: Boxes) -> list[Indices]:
    """Boxes of one line that are no further apart than words, together."""
    parts: list[Indices] = []
    for row in rows_of_boxes(boxes):
        row = row[np.argsort(boxes[row, 0], kind="stable")]
        heights = boxes[row, 3] - boxes[row, 1]
        reach = np.maximum.accumulate(boxes[row, 2])
        gaps = boxes[row[1:], 0] - reach[:-1]
        is_apart = gaps > 0.9 * np.minimum(heights[1:], heights[:-1])
        parts.extend(np.split(row, np.flatnonzero(is_apart) + 1))
    return parts


_Part = tuple[Indices, bool]
"""A part of a block, and whether it is read as its rows stand."""


def _plain(parts: Sequence[Indices]) -> list[_Part]:
    return [(part, False) for part in parts]


@dataclass
class _Cutter:
    """Cuts a page into blocks that are rows."""

    boxes: Boxes
    texts: Sequence[str] | None
    splits_cells: bool

    def rows(self) -> list[list[int]]:
        """The indices of the boxes, row by row in reading order."""
        rows: list[list[int]] = []
        waiting: list[_Part] = [(np.arange(len(self.boxes)), False)]
        num_tried = 0
        while waiting:
            block, is_row = waiting.pop()
            num_tried += len(block)
            is_allowed = num_tried <= _MAX_TRIED and not is_row
            if is_allowed and (parts := self._columns(block) or self._cut(block)):
                waiting.extend(reversed(parts))
                continue
            rows.extend(self._rows_of(block))
        return rows

    def _columns(self, block: Indices) -> list[_Part]:
        """The block's parts where a white corridor divides it into columns of text; else []."""
        if len(block) < 4:
            return []
        boxes = self.boxes[block]
        x0, y0, x1, y1 = around(boxes)
        line = float(np.median(boxes[:, 3] - boxes[:, 1]))
        found = corridors(boxes, (x0, x1), (1 - _COLUMN_SHARE) * (y1 - y0), 0.8 * line)
        sides = [(boxes[:, 2] <= x, boxes[:, 0] >= x) for x in found]
        sides = [(left, right) for left, right in sides if left.sum() > 1 and right.sum() > 1]
        beside_text: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
        tried: list[bytes] = []  # what stands between corridors: no table for all with the same
        for is_left, is_right in sides:
            num_long = has_long_lines(boxes[is_left]) + has_long_lines(boxes[is_right])
            within = (is_left | is_right).tobytes()
            if num_long and within not in tried:
                tried.append(within)
                if table := rows_of_table(boxes, is_left, is_right, num_long == 2):
                    return list(self._parts_of_table(block, table))
            above = self._beside(block, is_left, is_right, num_long == 2)
            if above is not None:
                parts = _in_bands(block[above], boxes[above], is_left[above], is_right[above])
                return _plain([*parts, block[~above]] if not above.all() else parts)
            if num_long:
                beside_text.append((is_left, is_right))
        for is_left, is_right in beside_text:
            if self._has_sidebar(block[is_left], block[is_right]):
                return _plain(_in_bands(block, boxes, is_left, is_right))
        return []

    def _beside(
        self,
        block: Indices,
        is_left: NDArray[np.bool_],
        is_right: NDArray[np.bool_],
        are_long: bool,
    ) -> NDArray[np.bool_] | None:
        """What is read first of a block that has columns or addresses: its left side, then its
        right one. None where it has none."""
        boxes = self.boxes[block]
        left, right = boxes[is_left], boxes[is_right]
        if not _overlap_in_height(left, right, boxes[:, 3].max() - boxes[:, 1].min()):
            return None
        line = float(np.median(boxes[:, 3] - boxes[:, 1]))
        if are_long:
            return _above_end(boxes, is_left, is_right, line)
        above = _above_rest(boxes, is_left, is_right, line)
        is_found = self._are_addresses(block[is_left & above], block[is_right & above], line)
        return above if is_found else None

    def _parts_of_table(self, block: Indices, table: Sequence[TableRow]) -> Iterator[_Part]:
        for row in table:
            if row.cells and not self.splits_cells:
                yield block[row.members], True
            elif row.cells:
                yield from ((block[cell], False) for cell in row.cells)
            else:
                yield block[row.members], False

    def _has_sidebar(self, left: Indices, right: Indices) -> bool:
        """Whether one side is a narrow column of text beside the other, and no column of a table.

        Their lines stand at other heights; or, by what they say, both are running text.
        """
        sides = self.boxes[left], self.boxes[right]
        if max(map(len, sides)) < LEAST_MAIN_LINES:
            return False
        if stands_apart(*sides) or stands_apart(*sides[::-1]):
            return True
        return self.texts is not None and all(
            is_wrapped(self.boxes[side], [self.texts[index] for index in side])
            for side in (left, right)
        )

    def _are_addresses(self, left: Indices, right: Indices, line: float) -> bool:
        """Whether the left side is an address, and the right one too, or several of them side by
        side, or a list of labels with values."""
        if self.texts is None or not 0 < len(left) <= _MOST_ADDRESS_PARTS or not len(right):
            return False
        _, y0, x1, y1 = around(self.boxes[left])
        gap = self.boxes[right, 0].min() - x1
        if y1 - y0 < 2 * line or gap < _ADDRESS_GAP * line or not is_address(self._texts_of(left)):
            return False
        rows = self._texts_of(right)
        return is_address(rows) or is_list(rows) or self._has_addresses(right, line)

    def _has_addresses(self, block: Indices, line: float) -> bool:
        boxes = self.boxes[block]
        x0, _, x1, _ = around(boxes)
        return any(
            self._are_addresses(block[boxes[:, 2] <= x], block[boxes[:, 0] >= x], line)
            for x in corridors(boxes, (x0, x1), 0.0, _ADDRESS_GAP * line)
        )

    def _texts_of(self, block: Indices) -> list[list[str]]:
        """The texts of a block, row by row."""
        assert self.texts is not None
        return [[self.texts[index] for index in row] for row in self._rows_of(block)]

    def _rows_of(self, block: Indices) -> Iterator[list[int]]:
        for row in rows_of_boxes(self.boxes[block]):
            members = block[row]
            yield members[np.argsort(self.boxes[members, 0], kind="stable")].tolist()

    def _cut(self, block: Indices) -> list[_Part]:
        """The block above and below its widest white gap; [] where it has none."""
        if len(block) < 2:
            return []
        boxes = self.boxes[block]
        order = np.argsort(boxes[:, 1], kind="stable")
        reach = np.maximum.accumulate(boxes[order, 3])
        gaps = boxes[order[1:], 1] - reach[:-1]
        if not len(gaps) or gaps.max() <= 0:
            return []
        at = int(np.argmax(gaps)) + 1
        return _plain([block[order[:at]], block[order[at:]]])


def _above_end(
    boxes: Boxes, is_left: NDArray[np.bool_], is_right: NDArray[np.bool_], line: float
) -> NDArray[np.bool_]:
    """What stands above a few lines that follow both columns, such as the names below a text.

    They stand below one column alone; both end at about the same height there, and the gap is wider
    than any in them.
    """
    everything = np.ones(len(boxes), dtype=np.bool_)
    order = np.argsort(boxes[:, 1], kind="stable")
    reach = np.maximum.accumulate(boxes[order, 3])
    gaps = boxes[order[1:], 1] - reach[:-1]
    at = int(np.argmax(gaps))
    above: NDArray[np.bool_] = boxes[:, 1] < boxes[order[at + 1], 1]
    sides = [boxes[side & above] for side in (is_left, is_right)]
    is_below_one = (is_left | above).all() or (is_right | above).all()
    num_below = len(rows_of_boxes(boxes[~above]))
    if not is_below_one or num_below > _MOST_LINES_BELOW or not all(map(len, sides)):
        return everything
    ends = [side[:, 3].max() for side in sides]
    if abs(ends[0] - ends[1]) > 1.5 * line:
        return everything
    for side in sides:
        side = side[np.argsort(side[:, 1], kind="stable")]
        inner = side[1:, 1] - np.maximum.accumulate(side[:-1, 3])
        is_text = len(inner) > 2 * num_below
        if not is_text or gaps[at] < inner.max() + 0.5 * line:
            return everything
    return above


def _overlap_in_height(left: Boxes, right: Boxes, height: float) -> bool:
    """Whether both sides stand next to each other for a good part of this height."""
    shared = min(left[:, 3].max(), right[:, 3].max()) - max(left[:, 1].min(), right[:, 1].min())
    return bool(shared >= 0.4 * height)


def _above_rest(
    boxes: Boxes, is_left: NDArray[np.bool_], is_right: NDArray[np.bool_], line: float
) -> NDArray[np.bool_]:
    """What stands above the first paragraph that begins where one of both sides has ended: it
    follows both, as the line with the date below an address that is longer than the other."""
    end = min(boxes[is_left, 3].max(), boxes[is_right, 3].max())
    for side in (boxes[is_left], boxes[is_right]):
        side = side[np.argsort(side[:, 1], kind="stable")]
        gaps = side[1:, 1] - np.maximum.accumulate(side[:-1, 3])
        usual = np.median(gaps[gaps > 0]) if (gaps > 0).any() else 0.0
        is_paragraph = (gaps > usual + 0.5 * line) & (side[1:, 1] >= end)
        if is_paragraph.any():
            above: NDArray[np.bool_] = boxes[:, 1] < side[1:, 1][is_paragraph][0]
            return above
    return np.ones(len(boxes), dtype=np.bool_)


def _in_bands(
    block: Indices, boxes: Boxes, is_left: NDArray[np.bool_], is_right: NDArray[np.bool_]
) -> list[Indices]:
    """Left column, right column, and what crosses the corridor in its place between them.

    A table may cross it with a gap between two of its columns. What fills most of the block is no
    table across it, but more columns on both sides, as on two facing pages.
    """
    middles = (boxes[:, 1] + boxes[:, 3]) / 2
    crossing = [np.array([index]) for index in np.flatnonzero(~is_left & ~is_right)]
    tables = _tables_across(boxes, is_left, is_right)
    if 2 * sum(map(len, tables)) > len(boxes):
        tables = []
    for table in tables:
        is_left, is_right = is_left.copy(), is_right.copy()
        is_left[table] = is_right[table] = False
    crossing = sorted([*crossing, *tables], key=lambda part: float(middles[part].min()))
    cuts = [float(middles[part].min()) for part in crossing]
    band = np.searchsorted(np.array(cuts), middles)
    left, right = (
        _by_band(np.flatnonzero(side), band, len(cuts) + 1) for side in (is_left, is_right)
    )
    parts: list[Indices] = []
    for number in range(len(cuts) + 1):
        parts += [block[left[number]], block[right[number]]]
        if number < len(cuts):
            parts.append(block[crossing[number]])
    return [part for part in parts if len(part)]


def _by_band(indices: Indices, band: Indices, count: int) -> list[Indices]:
    """The indices of each band from 0 to `count`."""
    order = indices[np.argsort(band[indices], kind="stable")]
    return np.split(order, np.searchsorted(band[order], np.arange(1, count)))


def _tables_across(
    boxes: Boxes, is_left: NDArray[np.bool_], is_right: NDArray[np.bool_]
) -> list[Indices]:
    """Rows that follow each other and have several cells on both sides of a corridor."""
    tables: list[list[Indices]] = [[]]
    for row in rows_of_boxes(boxes):
        if is_left[row].sum() >= 2 and is_right[row].sum() >= 2:
            tables[-1].append(row)
        elif tables[-1]:
            tables.append([])
    return [np.concatenate(table) for table in tables if len(table) >= _TABLE_ROWS]
