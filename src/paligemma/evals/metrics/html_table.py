"""The first table of a piece of HTML: as a tree of elements, and as a grid of cells.

Reads what models write: unclosed cells, stray end tags, text that was cut off. Implied end tags
follow the HTML standard for tables (a cell ends where the next cell or row begins); a `tbody` that
is not written is not made up. Knows no metric.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = frozenset(("area", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"))
_CELLS = frozenset(("td", "th"))
_SECTIONS = frozenset(("thead", "tbody", "tfoot"))
_STRUCTURE = _CELLS | _SECTIONS | {"tr", "table"}
_TAG_BEGINS = re.compile(r"<[a-zA-Z/!?]")
# What a start tag ends, if it is open inside the innermost table.
_ENDS = {
    "td": _CELLS,
    "th": _CELLS,
    "tr": _CELLS | {"tr"},
    **{section: _CELLS | {"tr"} | _SECTIONS for section in _SECTIONS},
}
# A model may write any number as a span; no page of a document has a table as wide.
_MAX_SPAN = 100
_MAX_PLACES = 20_000  # of a grid
# Nor does a page nest elements as deeply; what a model opens beyond lies beside, not inside.
_MAX_DEPTH = 200


@dataclass(kw_only=True)
class Element:
    """An HTML element; `content` holds its texts and child elements in order."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    content: list[Element | str] = field(default_factory=list)

    def children(self) -> list[Element]:
        return [part for part in self.content if isinstance(part, Element)]

    def descendants(self) -> Iterator[Element]:
        for child in self.children():
            yield child
            yield from child.descendants()

    def texts(self) -> Iterator[str]:
        for part in self.content:
            if isinstance(part, Element):
                yield from part.texts()
            else:
                yield part

    def span(self, attribute: str) -> int:
        """`colspan` or `rowspan`: 1 where none is given or it is no number, at most 100."""
        value = self.attributes.get(attribute, "").strip()
        if not (value.isascii() and value.isdigit()):
            return 1
        return min(_MAX_SPAN, max(1, int(value[:9])))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell and the rectangle of grid places it takes, rows and columns from 0."""

    text: str
    row: int
    column: int
    num_rows: int = 1
    num_columns: int = 1

    def places(self) -> Iterator[tuple[int, int]]:
        for row in range(self.row, self.row + self.num_rows):
            for column in range(self.column, self.column + self.num_columns):
                yield row, column


def parse_table(html: str) -> Element | None:
    """The first table, or None where there is none.

    A tag that the end of the text cuts off is dropped, as browsers drop it.
    """
    last = html.rfind(">") + 1
    if unfinished := _TAG_BEGINS.search(html, last):
        html = html[: unfinished.start()]
    builder = _TreeBuilder()
    builder.feed(html)
    builder.close()
    return next((node for node in builder.root.descendants() if node.tag == "table"), None)


def table_cells(table: Element) -> list[Cell] | None:
    """Cells in reading order, each at the first free place of its row; None for a monstrous grid.

    A cell that spans rows keeps its columns in the rows below. Texts on both sides of a tag
    inside a cell are joined by a space, as GriTS's reference code does. Spans that a model repeats
    make grids of millions of places, which nothing can be compared with in time.
    """
    cells: list[Cell] = []
    taken: set[tuple[int, int]] = set()
    row, num_rows, num_columns = -1, 0, 0
    for node in _rows_and_cells(table):
        if node.tag == "tr":
            row += 1
            continue
        # Cells before any row begin the first one.
        row = max(0, row)
        column = 0
        while (row, column) in taken:
            column += 1
        cell = Cell(
            text=" ".join(node.texts()),
            row=row,
            column=column,
            num_rows=node.span("rowspan"),
            num_columns=node.span("colspan"),
        )
        num_rows = max(num_rows, row + cell.num_rows)
        num_columns = max(num_columns, column + cell.num_columns)
        if num_rows * num_columns > _MAX_PLACES:
            return None
        taken.update(cell.places())
        cells.append(cell)
    return cells


def _rows_and_cells(node: Element) -> Iterator[Element]:
    """Rows and cells of this table; a table inside a cell is that cell's content."""
    for child in node.children():
        if child.tag == "tr" or child.tag in _CELLS:
            yield child
        if child.tag not in _CELLS:
            yield from _rows_and_cells(child)


class _TreeBuilder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element(tag="")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        ends = _ENDS.get(tag, frozenset())
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == "table":
                break
            if self._open[depth].tag in ends:
                del self._open[depth:]
        element = Element(tag=tag, attributes={name: value or "" for name, value in attrs})
        self._open[-1].content.append(element)
        if tag not in _VOID and len(self._open) < _MAX_DEPTH:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == tag:
                del self._open[depth:]
                return
            # An end tag of text, or of a cell, does not reach out of the cell or table it is in.
            outer = self._open[depth].tag
            if outer == "table" or (outer in _STRUCTURE and tag not in _STRUCTURE):
                return

    def handle_data(self, data: str) -> None:
        content = self._open[-1].content
        if content and isinstance(content[-1], str):
            content[-1] += data
        else:
            content.append(data)
