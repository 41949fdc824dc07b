"""Read a table in an image: HTML, whose cells may have their boxes in an attribute.

    <table><tr><td coords="<loc0010><loc0020><loc0210><loc0060>">Total</td><td>7</td></tr></table>

`coords` has four location tokens: x1, y1, x2, y2, unlike those of a detection (arXiv 2412.03555,
appendix B). Without them it is the HTML of PubTabNet, FinTabNet and mini.

The reader takes what models write: rows and cells that are not closed, cells outside of rows, tags
for bold type inside cells, and text that was cut off. Tags that no table has are text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

from paligemma.config import NUM_LOC_TOKENS
from paligemma.processor.image import ImageTransform
from paligemma.results import BoxXyxy, Problem, one_line
from paligemma.tables import MAX_POSITIONS, MAX_SPAN, Cell, Grid, Table
from paligemma.tasks.answer_text import generation_of_text
from paligemma.tasks.objects import NUM_LOCS, TokenReader
from paligemma.tasks.scored_text import LOCATION, ScoredText
from paligemma.tasks.task import AnswerKind, Generated, TaskContext

TABLE_PROMPT = "table"
_TAG = re.compile(
    r"<(/?)(table|thead|tbody|tfoot|tr|td|th|caption|colgroup|col|br|p|div|"
    r"b|i|u|em|strong|sup|sub|small|span)(?![A-Za-z0-9])([^<>]*)>",
    re.IGNORECASE,
)
_CUT_TAG = re.compile(r"<[A-Za-z/!?][^<>]*\Z")
_SPAN = re.compile(r"(rowspan|colspan)\s*=\s*[\"']?\s*([0-9]+)", re.IGNORECASE)
_COORDS = re.compile(rf"coords\s*=\s*[\"']?\s*((?:{LOCATION}\s*)+)", re.IGNORECASE)
_STRUCTURE = ("table", "thead", "tbody", "tfoot", "tr", "td", "th", "caption")
_WHITE_SPACE = {"br": "\n", "p": "\n", "div": "\n", "tr": "\n", "td": " ", "th": " "}
_SHOWN = 60
_LAST_BIN = NUM_LOC_TOKENS - 1


@dataclass(frozen=True, kw_only=True)
class TableTask:
    """Read the table in the image; for checkpoints tuned for it, and for mini.

    >>> TableTask().prompt()
    'table'
    """

    answer_kind: ClassVar[AnswerKind] = "table"

    def prompt(self) -> str:
        return TABLE_PROMPT

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Table:
        answer = ScoredText.of(generated, tokenizer)
        reader = _Reader(answer=answer, context=context)
        reader.read()
        if generated.stop_reason == "length":
            reader.problem(
                "cut",
                f"the table ended at the limit of {len(generated.token_ids)} tokens; cells are "
                "missing. Ask again with a larger max_new_tokens, or for a part of it",
                len(answer.text),
                len(answer.text),
            )
        return Table(
            cells=tuple(reader.cells),
            title=reader.title,
            problems=tuple(reader.problems),
            size_wh=context.transform.source_wh,
            text=_shown(answer),
            stop_reason=generated.stop_reason,
        )


def parse_table(text: str, size_wh: tuple[int, int] = (1, 1)) -> Table:
    """Read the table in an answer that another program got from a model.

    `size_wh` is the size of the image in pixels, for the boxes of cells. Scores are NaN.

    >>> parse_table("<table><tr><td>a<td rowspan=2>b<tr><td>c").to_csv()
    'a,b\\nc,b\\n'
    """
    generated, tokenizer = generation_of_text(text)
    transform = ImageTransform(source_wh=size_wh, resolution=224)
    return TableTask().parse(generated, tokenizer, TaskContext(transform=transform))


def _shown(answer: ScoredText) -> str:
    """The text, with location tokens as they are usually written."""
    text = answer.text
    for index in reversed(list(answer.locations)):
        text = f"{text[:index]}<loc{answer.locations[index]:04d}>{text[index + 1 :]}"
    return text.strip()


@dataclass(kw_only=True)
class _OpenCell:
    """A cell whose end has not been read."""

    start: int
    attributes: tuple[int, int]
    is_header: bool
    tags: list[re.Match[str]] = field(default_factory=list)


@dataclass(kw_only=True)
class _Reader:
    """Reads the tags from left to right."""

    answer: ScoredText
    context: TaskContext
    cells: list[Cell] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    title: str = ""
    _grid: Grid = field(default_factory=Grid)
    _cell: _OpenCell | None = None
    _is_caption: bool = False
    _depth: int = 0  # tables that are open inside a cell
    _has_row: bool = False
    _is_head: bool = False
    _is_full: bool = False
    _end: int = 0  # of the tag read last
    _taken: set[tuple[int, int]] = field(default_factory=set)

    def problem(self, kind: str, detail: str, start: int, end: int) -> None:
        span = self.answer.tokens(start, end) if end > start else (len(self.answer.starts),) * 2
        self.problems.append(Problem(kind=kind, detail=detail, token_span=span))  # type: ignore[arg-type]

    def read(self) -> None:
        """Fill `cells`, `title` and `problems`."""
        text = self.answer.text
        cut = _CUT_TAG.search(text, text.rfind(">") + 1)
        length = cut.start() if cut else len(text)
        for tag in self._tags(length):
            self._read_tag(tag)
        self._end_part(length)
        if cut is not None:
            detail = f"The answer ends within a tag: {text[length:][:_SHOWN]!r}."
            self.problem("malformed", detail, length, len(text))
        self._check_outside(self._end, length)
        # As in a browser, no cell reaches beyond the last row.
        num_rows = self._grid.num_started_rows
        self.cells = [replace(c, rowspan=min(c.rowspan, num_rows - c.row)) for c in self.cells]
        if not self.cells and not self.problems:
            self.problem("malformed", "The answer has no cells.", 0, len(text))

    def _tags(self, length: int) -> Iterator[re.Match[str]]:
        """Tags up to the end of the first table."""
        for tag in _TAG.finditer(self.answer.text, 0, length):
            starts_table = tag[2].lower() == "table" and not tag[1]
            if starts_table and self.cells and self._cell is None:
                detail = "There is another table after the first; it was left out."
                self.problem("malformed", detail, tag.start(), length)
                self._check_outside(self._end, tag.start())
                self._end = length
                return
            yield tag

    def _read_tag(self, tag: re.Match[str]) -> None:
        name, is_end = tag[2].lower(), bool(tag[1])
        if self._cell is not None and (self._depth or (name == "table" and not is_end)):
            if name == "table":  # a table inside a cell is content of that cell
                self._depth += -1 if is_end else 1
            self._cell.tags.append(tag)
        elif self._cell is not None and name not in _STRUCTURE:
            self._cell.tags.append(tag)
        elif not self._is_caption or name in _STRUCTURE:
            if self._cell is None and not self._is_caption:
                self._check_outside(self._end, tag.start())
            self._end_part(tag.start())
            self._end = tag.end()
            self._start_part(tag, name, is_end)

    def _start_part(self, tag: re.Match[str], name: str, is_end: bool) -> None:
        if name in ("thead", "tbody", "tfoot"):
            self._is_head = name == "thead" and not is_end
        if name in ("tr", "thead", "tbody", "tfoot", "table"):
            self._has_row = name == "tr" and not is_end
            if self._has_row:
                self._grid.start_row()
        elif name == "caption":
            self._is_caption = not is_end
        elif name in ("td", "th") and not is_end:
            self._start_cell(tag)

    def _start_cell(self, tag: re.Match[str]) -> None:
        if not self._has_row:
            self._grid.start_row()
            self._has_row = True
        self._cell = _OpenCell(
            start=tag.end(),
            attributes=tag.span(3),
            is_header=self._is_head or tag[2].lower() == "th",
        )

    def _end_part(self, end: int) -> None:
        """End the cell or caption that is open."""
        if self._is_caption:
            self.title = one_line(html.unescape(_TAG.sub("", self.answer.text[self._end : end])))
            self._is_caption = False
            self._end = end
        if self._cell is None:
            return
        cell, self._cell, self._depth = self._cell, None, 0
        self._end = end
        if self._is_full:
            return
        spans = self._spans(cell)
        position = self._grid.place(*spans)
        if position is None:
            self._is_full = True
            detail = f"the table has more than {MAX_POSITIONS} positions; the rest was left out"
            self.problem("cut", detail, cell.start, len(self.answer.text))
            return
        # The closing tag says that the text ends here; at the end of the answer, EOS does.
        score = self.answer.probability(cell.start, end + 1)
        row, column = position
        self._add(
            Cell(
                text=self._text(cell, end),
                row=row,
                column=column,
                rowspan=spans[0],
                colspan=spans[1],
                score=score,
                box_xyxy=self._box(cell),
                is_header=cell.is_header,
            ),
            cell,
        )

    def _add(self, cell: Cell, source: _OpenCell) -> None:
        positions = set(cell.positions())
        if positions & self._taken:
            detail = f"The cell {cell.text[:_SHOWN]!r} spans positions of another one."
            self.problem("malformed", detail, *source.attributes)
        self._taken |= positions
        self.cells.append(cell)

    def _spans(self, cell: _OpenCell) -> tuple[int, int]:
        spans = {"rowspan": 1, "colspan": 1}
        for name, digits in _SPAN.findall(self.answer.text[slice(*cell.attributes)]):
            span = int(digits) if len(digits) < 10 else 10**9
            if 1 <= span <= MAX_SPAN:
                spans[name.lower()] = span
            else:
                detail = f"The {name.lower()} {digits[:12]} is not from 1 to {MAX_SPAN}; read as 1."
                self.problem("malformed", detail, *cell.attributes)
        return spans["rowspan"], spans["colspan"]

    def _box(self, cell: _OpenCell) -> BoxXyxy | None:
        start, end = cell.attributes
        match = _COORDS.search(self.answer.text, start, end)
        bins = self.answer.bins(start, end)
        if not bins:
            return None
        if match is None or len(bins) != NUM_LOCS:
            detail = f"The coords of a cell are {len(bins)} locations; expected {NUM_LOCS}."
            self.problem("malformed", detail, start, end)
            return None
        x1, y1, x2, y2 = (bin_ / _LAST_BIN for bin_ in bins)
        if x2 <= x1 or y2 <= y1:
            self.problem("malformed", "The coords of a cell have no area.", start, end)
            return None
        return self.context.transform.box_to_source((x1, y1, x2, y2), order="xyxy")

    def _text(self, cell: _OpenCell, end: int) -> str:
        """The content without tags and location tokens, white space as a browser shows it."""
        start, pieces = cell.start, []
        for tag in cell.tags:
            pieces.append(_unescaped(self.answer.text[start : tag.start()]))
            pieces.append(_WHITE_SPACE.get(tag[2].lower(), ""))
            start = tag.end()
        pieces.append(_unescaped(self.answer.text[start:end]))
        if self.answer.bins(cell.start, end):
            detail = "Location tokens outside of coords were left out."
            self.problem("malformed", detail, cell.start, end)
        lines = (one_line(line) for line in "".join(pieces).split("\n"))
        return "\n".join(line for line in lines if line)

    def _check_outside(self, start: int, end: int) -> None:
        outside = self.answer.text[start:end].strip()
        if outside:
            detail = f"Text outside of cells: {one_line(outside)[:_SHOWN]!r}."
            self.problem("malformed", detail, start, end)


def _unescaped(text: str) -> str:
    """Text between tags; its own line breaks are white space."""
    return html.unescape(" ".join(re.split(r"[\r\n]+", text.replace(LOCATION, ""))))
