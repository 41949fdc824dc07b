"""Read the text of documents: in reading order, per page and line, with boxes and scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from paligemma.answering import ImageQuery, Query
from paligemma.documents.across import addresses_apart
from paligemma.documents.asker import Asker
from paligemma.documents.block import rows_of_boxes
from paligemma.documents.direction import main_direction
from paligemma.documents.geometry import Box, Turn, turn_box, union
from paligemma.documents.level import Leveled, leveled
from paligemma.documents.open import DocumentInput, PageNumbers, open_document
from paligemma.documents.page import DocumentLimits, Page, Unit
from paligemma.documents.regions import Region, regions_of
from paligemma.documents.text_layer import lines_of_words
from paligemma.documents.text_of_lines import ReadLine, lines_in_tile
from paligemma.documents.tiles import whole
from paligemma.errors import PaliGemmaError, check_choice
from paligemma.results import Result, Text
from paligemma.tasks.text import OcrTask

LineSource = Literal["model", "text layer"]

_PAGES_AT_A_TIME = 8
_TURNS: tuple[Turn, ...] = (0, 90, 180, 270)
_TRIAL_TOKENS = 24  # per turn of a page that may lie on its side
_TURN_MARGIN = 1.1  # by which another turn must be surer than the page as it is
_FIELDS_ALONE = "no text layer: only what was filled into form fields is known"


@dataclass(frozen=True, kw_only=True)
class Line(Result):
    """A line of text."""

    text: str
    box_xyxy: Box
    """In units of the page, from the top left of the upright page."""
    score: float | None
    """The mean probability of its tokens; None for lines of the text layer."""
    page: int
    """From 1."""
    source: LineSource
    angle: float = 0.0
    """Degrees, counterclockwise, by which it rises: 90 where it runs upwards. Of lines of the text
    layer; the model does not say."""


@dataclass(frozen=True, kw_only=True)
class PageText(Result):
    """The text of one page."""

    page: int
    """From 1."""
    size_wh: tuple[float, float]
    unit: Unit
    turned: Turn
    """How far the page as displayed was turned, clockwise, to be upright."""
    lines: tuple[Line, ...] = ()
    """In reading order."""
    problems: tuple[str, ...] = ()
    """What to know before trusting the text, such as that the page is blank."""
    error: str | None = None
    """Why the page could not be read."""

    @property
    def text(self) -> str:
        """The lines, one below the other."""
        return "\n".join(line.text for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class DocumentText(Result):
    """The text of a document."""

    name: str
    source: LineSource
    pages: tuple[PageText, ...]

    @property
    def text(self) -> str:
        """The pages, one after the other, with a form feed between them."""
        return "\f".join(page.text for page in self.pages)

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines of all pages."""
        return tuple(line for page in self.pages for line in page.lines)

    @property
    def problems(self) -> tuple[str, ...]:
        """Those of all pages, and why pages could not be read."""
        return tuple(
            f"page {page.page}: {problem}"
            for page in self.pages
            for problem in (*page.problems, *([page.error] if page.error else []))
        )

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How a document is read."""

    source: LineSource = "model"
    """Who reads: the model, or the text layer that many PDF files have. Never chosen silently."""
    turn: bool = True
    """Turn pages without a text layer upright, by trying which way the model reads best."""
    tiles: bool = True
    """Show pages in parts that are large enough for their print; else only as a whole."""
    batch_size: int | None = None
    max_new_tokens: int | None = None
    """Maximum length of the text of one part of a page, in tokens."""

    def __post_init__(self) -> None:
        check_choice("source", self.source, LineSource)


def read_document(
    asker: Asker,
    source: DocumentInput,
    options: ReadOptions = ReadOptions(),
    *,
    pages: PageNumbers | None = None,
    password: str | None = None,
    limits: DocumentLimits = DocumentLimits(),  # noqa: B008 - immutable
) -> DocumentText:
    """The text of a document in reading order.

    A page that cannot be read has its `error`, and the others their text. Raises DocumentError for
    a document that cannot be opened, as `open_document` does.
    """
    with open_document(source, password=password, pages=pages, limits=limits) as document:
        texts = tuple(read_pages(asker, document.pages, options))
        return DocumentText(name=document.name, source=options.source, pages=texts)


def read_pages(
    asker: Asker,
    pages: Iterable[Page],
    options: ReadOptions = ReadOptions(),
) -> Iterator[PageText]:
    """The text of each page, as soon as it is known; no page is kept."""
    if options.source == "text layer":
        yield from map(_from_text_layer, pages)
        return
    for chunk in _chunks(pages):
        plans = _plans(asker, chunk, options)
        answers = asker.answer(_queries(asker, plans, options), options.batch_size)
        for plan in plans:
            if plan.text is None:
                yield _text_of(asker, plan, list(itertools.islice(answers, len(plan.regions))))
            else:
                yield plan.text


def _chunks(pages: Iterable[Page]) -> Iterator[list[Page]]:
    """Some pages at a time: enough to fill batches, few enough for their images."""
    iterator = iter(pages)
    while chunk := list(itertools.islice(iterator, _PAGES_AT_A_TIME)):
        yield chunk


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a page is read."""

    page: Page
    regions: Sequence[Region] = ()
    level: Leveled | None = None
    """What the regions are parts of, where the page is slanted."""
    text: PageText | None = None
    """What is known without asking."""


def _queries(asker: Asker, plans: Iterable[_Plan], options: ReadOptions) -> Iterator[ImageQuery]:
    query = Query(task=OcrTask(), max_new_tokens=options.max_new_tokens)
    for plan in plans:
        for region in plan.regions:
            reader = region.tile.reader(asker.processor.resolution)
            yield ImageQuery(images=(reader,), query=query)


def _plans(asker: Asker, pages: Sequence[Page], options: ReadOptions) -> list[_Plan]:
    turned = upright(asker, pages) if options.turn else list(pages)
    plans = []
    for page in turned:
        try:
            plans.append(_plan(asker, page, options))
        except PaliGemmaError as error:
            plans.append(_Plan(page=page, text=_failed(page, error)))
    return plans


def _plan(asker: Asker, page: Page, options: ReadOptions) -> _Plan:
    """Raises PaliGemmaError for a page that cannot be shown."""
    if page.is_blank:
        problem = "blank: neither ink nor text"
        return _Plan(page=page, text=_page_text(page, problems=(problem,)))
    level = leveled(page)
    shown = page if level is None else level.page
    regions = regions_of(shown, asker.processor.resolution, tiles=options.tiles)
    return _Plan(page=page, regions=regions, level=level)


def _page_text(
    page: Page,
    *,
    lines: Sequence[Line] = (),
    problems: Sequence[str] = (),
) -> PageText:
    return PageText(
        page=page.number,
        size_wh=page.size_wh,
        unit=page.unit,
        turned=page.turned,
        lines=tuple(lines),
        problems=tuple(problems),
    )


def _failed(page: Page, error: PaliGemmaError) -> PageText:
    try:
        text = _page_text(page)
    except PaliGemmaError:  # not even its size can be read
        text = PageText(page=page.number, size_wh=(0.0, 0.0), unit=page.unit, turned=0)
    return replace(text, error=str(error))


def upright(asker: Asker, pages: Sequence[Page]) -> list[Page]:
    """The pages, those without a text layer turned the way in which the model reads them best.

    The model is asked for the first words of a page in each of four turns. The page stays as it
    is unless another turn is clearly surer, and where it cannot be shown.
    """
    unsure = [page for page in pages if _may_lie(page)]
    resolution = asker.processor.resolution
    query = Query(task=OcrTask(), max_new_tokens=_TRIAL_TOKENS)
    tiles = (whole(page.turn(turn)) for page in unsure for turn in _TURNS)
    answers = asker.answer(
        ImageQuery(images=(tile.reader(resolution),), query=query) for tile in tiles
    )
    turns = {}
    for page in unsure:
        scores = {turn: _sureness(answer) for turn, answer in zip(_TURNS, answers, strict=False)}
        best = max(_TURNS, key=lambda turn: scores[turn])
        turns[id(page)] = best if scores[best] > _TURN_MARGIN * scores[0] else 0
    return [page.turn(turns.get(id(page), 0)) if turns.get(id(page)) else page for page in pages]


def _may_lie(page: Page) -> bool:
    try:
        return not page.has_text_layer and not page.is_blank
    except PaliGemmaError:  # reported when its turn comes
        return False


def _sureness(answer: Text | PaliGemmaError) -> float:
    if isinstance(answer, PaliGemmaError) or not answer.text.strip():
        return 0.0
    return answer.score


def _text_of(asker: Asker, plan: _Plan, answers: Sequence[Text | PaliGemmaError]) -> PageText:
    """The lines of all parts of a page, in order."""
    page = plan.page
    lines: list[Line] = []
    problems: list[str] = []
    blocks = itertools.groupby(
        zip(plan.regions, answers, strict=True), key=lambda pair: pair[0].block
    )
    for _, parts in blocks:
        read: list[list[ReadLine]] = []
        print_boxes: list[Box] = []
        for region, answer in parts:
            region.tile.release()
            if isinstance(answer, PaliGemmaError):
                return _failed(page, answer)
            if answer.stop_reason == "length":
                problems.append(
                    f"the text of a part is cut off after {len(answer.token_ids)} tokens; a "
                    "larger max_new_tokens reads on"
                )
            tokens = asker.processor.tokenizer
            read.append(lines_in_tile(answer, region.rows, tokens))
            print_boxes += itertools.chain.from_iterable(region.rows)
        lines.extend(
            Line(
                text=line.text,
                box_xyxy=line.box if plan.level is None else plan.level.to_page(line.box),
                score=line.score,
                page=page.number,
                source="model",
            )
            for line in addresses_apart(_merged(read), print_boxes)
        )
    if not lines:
        problems.append("the model reads no text")
    return _page_text(page, lines=lines, problems=list(dict.fromkeys(problems)))


def _merged(tiles: Sequence[Sequence[ReadLine]]) -> list[ReadLine]:
    """The lines of the tiles of one block, without those read twice, rows joined again."""
    if len(tiles) == 1:
        return list(tiles[0])
    kept: list[ReadLine] = []
    for lines in filter(None, tiles):
        around = union([line.box for line in lines])
        # Those of earlier tiles, each of which this tile may have read again once.
        others = [index for index, old in enumerate(kept) if _overlap(old.box, around) > 0]
        for line in lines:
            same = next((i for i in others if _is_again(kept[i].box, line.box)), None)
            if same is None:
                kept.append(line)
                continue
            others.remove(same)
            if _is_better(line, kept[same]):
                kept[same] = line
    # The rows of one block: halves of a table's rows would be taken for columns.
    rows = rows_of_boxes(np.array([line.box for line in kept]).reshape(-1, 4))
    return [
        _joined(sorted((kept[index] for index in row), key=lambda line: line.box[0]))
        for row in rows
    ]


def _overlap(a: Box, b: Box) -> float:
    """The shared area as a share of the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller if width > 0 and height > 0 and smaller > 0 else 0.0


def _is_again(a: Box, b: Box) -> bool:
    """Whether one box is the other again, or a part of it, and does not go on beyond it."""
    return (b[0] - a[0]) * (a[2] - b[2]) >= 0 and _overlap(a, b) > 0.6


def _is_better(line: ReadLine, other: ReadLine) -> bool:
    """Whether a line that was read twice is whole here, or surer where it is as long."""
    length = (line.box[2] - line.box[0]) - (other.box[2] - other.box[0])
    height = other.box[3] - other.box[1]
    return length > height or (abs(length) <= height and line.score > other.score)


def _joined(parts: Sequence[ReadLine]) -> ReadLine:
    """Parts of a row, from the left, that were read in different tiles as one line."""
    if len(parts) == 1:
        return parts[0]
    if main_direction(part.text for part in parts) == "R":
        parts = parts[::-1]
    words = parts[0].text.split()
    for last, part in itertools.pairwise(parts):
        new = part.text.split()
        if min(last.box[2], part.box[2]) > max(last.box[0], part.box[0]):
            # Of what both tiles have read, each has cut off the word at its edge.
            shared = _num_shared(words, new)
            words = words[: len(words) - max(0, shared - 1)]
            new = new[min(1, shared) :]
        words += new
    weights = [len(part.text) for part in parts]
    mean = math.fsum(
        weight * math.log(max(part.score, 1e-9))
        for weight, part in zip(weights, parts, strict=True)
    )
    return ReadLine(
        " ".join(words), union([part.box for part in parts]), math.exp(mean / sum(weights))
    )


def _num_shared(words: Sequence[str], following: Sequence[str]) -> int:
    """How many words at the end of the one are those at the beginning of the other, which may lack
    the beginning of its first one, where the one lacks the end of its last one."""
    for count in range(min(len(words), len(following), 8), 0, -1):
        end, start = words[-count:], following[:count]
        if end == start or (
            count > 1
            and end[0].endswith(start[0])
            and end[1:-1] == start[1:-1]
            and start[-1].startswith(end[-1])
        ):
            return count
    return 0


def _from_text_layer(page: Page) -> PageText:
    try:
        words = page.words
        if not words:
            problem = "blank: neither ink nor text" if page.is_blank else "no text layer"
            return _page_text(page, problems=(problem,))
        lines = [
            Line(
                text=line.text,
                box_xyxy=line.box,
                score=None,
                page=page.number,
                source="text layer",
                angle=line.angle,
            )
            for line in lines_of_words(words)
        ]
        problems = () if page.has_text_layer else (_FIELDS_ALONE,)
        return _page_text(page, lines=lines, problems=problems)
    except PaliGemmaError as error:
        return _failed(page, error)


def box_as_displayed(box: Box, page: PageText) -> Box:
    """A box of the upright page on the page as the file displays it."""
    return turn_box(box, page.size_wh, _BACK[page.turned])


_BACK: dict[Turn, Turn] = {0: 0, 90: 270, 180: 180, 270: 90}
