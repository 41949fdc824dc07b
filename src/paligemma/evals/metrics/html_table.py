"""The first table in HTML that a model wrote: as a tree of elements, and as a grid of cells.

lxml (extra "eval") reads the HTML, as in the reference implementation of TEDS: unclosed cells,
stray end tags and text that was cut off are repaired, and a missing `tbody` is not added.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paligemma.errors import MissingExtraError

Element = Any
"""An lxml element."""

_CELLS = frozenset(("td", "th"))
_TAG_START = re.compile(r"<[a-zA-Z/!?]")
# A model may write any number as a span; no table in a document is as large.
_MAX_SPAN = 100
_MAX_GRID_CELLS = 20_000


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell and the rectangle of the grid that it covers; rows and columns start at 0."""

    text: str
    row: int
    column: int
    num_rows: int = 1
    num_columns: int = 1

    def positions(self) -> Iterator[tuple[int, int]]:
        """(row, column) of everything that the cell covers."""
        for row in range(self.row, self.row + self.num_rows):
            for column in range(self.column, self.column + self.num_columns):
                yield row, column


def parse_table(html: str) -> Element | None:
    """The first table, or None where there is none.

    A tag that the end of the text cuts off is dropped, as browsers drop it.
    """
    try:
        from lxml import etree
    except ImportError:
        raise MissingExtraError("lxml", "eval", "Reading HTML tables") from None
    last = html.rfind(">") + 1
    if unfinished := _TAG_START.search(html, last):
        html = html[: unfinished.start()]
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(html.replace("\0", "").encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError:  # nothing but white space and comments
        return None
    return None if root is None else next(root.iter("table"), None)


def span_of(element: Element, attribute: str) -> int:
    """`colspan` or `rowspan`: 1 where it is missing or no number, and at most 100."""
    value = element.get(attribute, "").strip()
    if not (value.isascii() and value.isdigit()):
        return 1
    return min(_MAX_SPAN, max(1, int(value[:9])))


def table_cells(table: Element) -> list[Cell] | None:
    """Cells in reading order, each at the first free position of its row; None for a huge grid.

    A cell that spans rows keeps its columns in the rows below. Texts on both sides of a tag inside
    a cell are joined by a space, as in GriTS's reference code. Repeated spans can make grids of
    millions of positions, which cannot be compared in reasonable time.
    """
    cells: list[Cell] = []
    taken: set[tuple[int, int]] = set()
    row, num_rows, num_columns = -1, 0, 0
    for node in _rows_and_cells(table):
        if node.tag == "tr":
            row += 1
            continue
        # Cells before any row are in the first one.
        row = max(0, row)
        column = 0
        while (row, column) in taken:
            column += 1
        cell = Cell(
            text=" ".join(node.itertext()),
            row=row,
            column=column,
            num_rows=span_of(node, "rowspan"),
            num_columns=span_of(node, "colspan"),
        )
        num_rows = max(num_rows, row + cell.num_rows)
        num_columns = max(num_columns, column + cell.num_columns)
        if num_rows * num_columns > _MAX_GRID_CELLS:
            return None
        taken.update(cell.positions())
        cells.append(cell)
    return cells


def _rows_and_cells(node: Element) -> Iterator[Element]:
    """Rows and cells of this table; a table inside a cell is content of that cell."""
    for child in node:
        if child.tag == "tr" or child.tag in _CELLS:
            yield child
        if child.tag not in _CELLS:
            yield from _rows_and_cells(child)
