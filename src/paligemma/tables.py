"""Tables as results: cells in a grid, with scores and boxes, as HTML, CSV and data frames.

A cell covers a rectangle of the grid. As in HTML, it is at the first free position of its row, and
one that spans rows keeps its columns in the rows below.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, overload

from paligemma.errors import MissingExtraError, check_choice, counted
from paligemma.escaping import columns_of_text, csv_cell, visible
from paligemma.results import UNSURE_SCORE, BoxXyxy, Problem, Result, StopReason, one_line

Spans = Literal["repeat", "blank"]
"""What the positions of a cell after its first one have in CSV: its text again, or nothing."""

MAX_SPAN = 100
"""A model may write any number as a span; no table in a document is as large."""
MAX_POSITIONS = 20_000
"""Repeated spans can make grids of millions of positions."""
_SHOWN_ROWS = 100
_SHOWN_PARTS = 5
_SHOWN_LETTERS = 40


@dataclass(frozen=True, kw_only=True)
class Cell(Result):
    """A cell and the rectangle of the grid that it covers; rows and columns start at 0."""

    text: str
    row: int
    column: int
    rowspan: int = 1
    colspan: int = 1
    score: float = math.nan
    """The probability of this text, and that it ends there; NaN where it is not known."""
    box_xyxy: BoxXyxy | None = None
    """Where the cell is, if the model says so: pixels of the image, or points of a PDF's page."""
    is_header: bool = False

    def positions(self) -> Iterator[tuple[int, int]]:
        """(row, column) of everything that the cell covers."""
        for row in range(self.row, self.row + self.rowspan):
            for column in range(self.column, self.column + self.colspan):
                yield row, column

    @property
    def unsure(self) -> bool:
        """Whether the text is more likely wrong than right: a `score` below 0.5."""
        return self.score < UNSURE_SCORE


class Grid:
    """Where the cells of a table come to lie, one after the other."""

    def __init__(self) -> None:
        self.num_rows = self.num_columns = 0
        self._row, self._column = -1, 0
        self._taken: set[tuple[int, int]] = set()

    @property
    def num_started_rows(self) -> int:
        """Rows in which a cell can begin."""
        return self._row + 1

    def start_row(self) -> None:
        """The next cell is the first one of the next row."""
        self._row, self._column = self._row + 1, 0

    def place(self, rowspan: int, colspan: int) -> tuple[int, int] | None:
        """Row and column of the next cell, or None where it would make the grid too large.

        Cells before any row are in the first one.
        """
        self._row = max(0, self._row)
        # In its row, everything before the last cell is taken.
        while (self._row, self._column) in self._taken:
            self._column += 1
        row, column = self._row, self._column
        num_rows = max(self.num_rows, row + rowspan)
        num_columns = max(self.num_columns, column + colspan)
        if num_rows * num_columns > MAX_POSITIONS:
            return None
        self.num_rows, self.num_columns = num_rows, num_columns
        self._taken.update((row + i, column + j) for i in range(rowspan) for j in range(colspan))
        return row, column


@dataclass(frozen=True, kw_only=True, repr=False)
class Table(Result):
    """A table that was read from an image.

    >>> table = Table(cells=(Cell(text="Total", row=0, column=0), Cell(text="7", row=0, column=1)))
    >>> table[0, 1].text, table.num_columns
    ('7', 2)
    """

    cells: tuple[Cell, ...]
    """In reading order."""
    title: str = ""
    problems: tuple[Problem, ...] = ()
    """Parts of the output that are no cells, described."""
    size_wh: tuple[float, float] = (0, 0)
    """Width and height of the image in pixels, or of a PDF's page in points."""
    page: int = 1
    """Number of the page that the table is on."""
    text: str = ""
    """The raw output of the model."""
    stop_reason: StopReason = "eos"
    notes: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return max((cell.row + cell.rowspan for cell in self.cells), default=0)

    @property
    def num_columns(self) -> int:
        return max((cell.column + cell.colspan for cell in self.cells), default=0)

    @property
    def num_header_rows(self) -> int:
        """Rows at the top that consist of header cells."""
        plain = [cell.row for cell in self.cells if not cell.is_header]
        return min(plain, default=self.num_rows)

    @cached_property
    def _at(self) -> dict[tuple[int, int], Cell]:
        at: dict[tuple[int, int], Cell] = {}
        for cell in self.cells:
            for position in cell.positions():
                at.setdefault(position, cell)
        return at

    @overload
    def __getitem__(self, position: tuple[int, int]) -> Cell | None: ...
    @overload
    def __getitem__(self, position: int) -> tuple[Cell | None, ...]: ...
    def __getitem__(self, position: int | tuple[int, int]) -> Cell | tuple[Cell | None, ...] | None:
        """The cell that covers a row and column, or all cells of a row; None where there is none.

        Raises IndexError outside the grid.
        """
        row, column = position if isinstance(position, tuple) else (position, 0)
        num_rows, num_columns = self.num_rows, self.num_columns
        if not (-num_rows <= row < num_rows and -num_columns <= column < num_columns):
            raise IndexError(
                f"There is no cell at {position}: the table has {num_rows} rows and {num_columns} "
                "columns."
            )
        row %= num_rows
        if isinstance(position, tuple):
            return self._at.get((row, column % num_columns))
        return tuple(self._at.get((row, column)) for column in range(num_columns))

    def unsure(self, min_score: float = UNSURE_SCORE) -> tuple[Cell, ...]:
        """The cells with a lower score, the least sure first."""
        return tuple(
            sorted((c for c in self.cells if c.score < min_score), key=lambda cell: cell.score)
        )

    def rows(self, spans: Spans = "repeat") -> list[list[str]]:
        """The texts as a list of equally long rows; "" where there is no cell."""
        check_choice("spans", spans, Spans)
        rows = [[""] * self.num_columns for _ in range(self.num_rows)]
        for (row, column), cell in self._at.items():
            if spans == "repeat" or (row, column) == (cell.row, cell.column):
                rows[row][column] = cell.text
        return rows

    def to_html(self) -> str:
        """Return a `<table>` with the spans; everything that was read is escaped."""
        lines = ["<table>"]
        if self.title:
            lines.append(f"<caption>{_escaped(self.title)}</caption>")
        starts: list[list[Cell]] = [[] for _ in range(self.num_rows)]
        for cell in self.cells:
            starts[cell.row].append(cell)
        num_header_rows = self.num_header_rows
        for row, cells in enumerate(starts):
            if row == 0 and num_header_rows:
                lines.append("<thead>")
            lines.append(f"<tr>{''.join(map(_cell_html, cells))}</tr>")
            if row == num_header_rows - 1:
                lines.append("</thead>")
        lines.append("</table>")
        return "\n".join(lines)

    def to_csv(self, spans: Spans = "repeat", safe: bool = False) -> str:
        """Return the texts as CSV.

        With `safe`, an apostrophe is written in front of what a spreadsheet would take for a
        formula. Control characters are written out.
        """
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(
            [csv_cell(text, safe=safe) for text in row] for row in self.rows(spans)
        )
        return table.getvalue()

    def to_dataframe(self, num_header_rows: int | None = None) -> Any:
        """Return a pandas DataFrame of the texts, spans repeated.

        The first `num_header_rows` rows name the columns: by default those of header cells. With
        several, the columns are a MultiIndex. Raises MissingExtraError without pandas.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError("pandas", "data", "to_dataframe()") from None
        rows = self.rows()
        number = self.num_header_rows if num_header_rows is None else num_header_rows
        heads, body = rows[:number], rows[number:]
        columns: Any = None
        if len(heads) == 1:
            columns = heads[0]
        elif heads:
            columns = pandas.MultiIndex.from_arrays(heads)
        return pandas.DataFrame(body, columns=columns)

    def _repr_html_(self) -> str:
        return self.to_html()

    def __repr__(self) -> str:
        return f"Table({self.num_rows} x {self.num_columns}, {counted(len(self.cells), 'cell')})"

    def __str__(self) -> str:
        rows = self.rows("blank")
        lines = [visible(one_line(self.title))] if self.title else []
        lines += columns_of_text(rows[:_SHOWN_ROWS])
        if len(rows) > _SHOWN_ROWS:
            lines.append(f"... {counted(len(rows) - _SHOWN_ROWS, 'more row')}")
        lines += unsure_line([(cell.text, cell.score) for cell in self.unsure() if cell.text])
        return "\n".join(lines + remarks(self.problems, self.notes))


def unsure_line(parts: Sequence[tuple[str, float]]) -> list[str]:
    """A line that names what is more likely wrong than right; none where all is sure."""
    if not parts:
        return []
    named = (f"{visible(one_line(text))[:_SHOWN_LETTERS]} {score:.2f}" for text, score in parts)
    more = f" and {len(parts) - _SHOWN_PARTS} more" if len(parts) > _SHOWN_PARTS else ""
    return [f"unsure: {', '.join(list(named)[:_SHOWN_PARTS])}{more}"]


def remarks(problems: Sequence[Problem], notes: Sequence[str]) -> list[str]:
    """Problems and notes as the last lines of a result's text."""
    lines = [visible(one_line(str(p) if p.kind == "cut" else f"skipped, {p}")) for p in problems]
    return lines + [f"note: {visible(one_line(note))}" for note in notes]


def _escaped(text: str) -> str:
    return "<br>".join(html.escape(visible(line)) for line in text.split("\n"))


def _cell_html(cell: Cell) -> str:
    tag = "th" if cell.is_header else "td"
    spans = (("rowspan", cell.rowspan), ("colspan", cell.colspan))
    attributes = "".join(f' {name}="{span}"' for name, span in spans if span > 1)
    return f"<{tag}{attributes}>{_escaped(cell.text)}</{tag}>"
