"""Read the table or the chart on a page: which part is shown, what is asked, and where it is.

A model that was tuned for charts, as mini, writes a whole chart as its answer to "chart". Any other
is asked for the labels, and then for the value of each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from paligemma.answering import ImageQuery, Query
from paligemma.charts import Chart, Point, Series
from paligemma.documents.asker import Asker
from paligemma.documents.open import DocumentInput, open_document
from paligemma.documents.page import DocumentLimits
from paligemma.documents.tiles import Tile, whole
from paligemma.errors import OptionError, PaliGemmaError, check_whole
from paligemma.results import Answer, BoxXyxy, Problem
from paligemma.tables import Table
from paligemma.tasks.chart import ChartTask, kind_in, number_in, value_in
from paligemma.tasks.scored_text import ScoredText
from paligemma.tasks.table import TableTask
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask

_SMALLEST_PRINT = 4.0  # pixels of the model, for the height of an x
_MAX_LABELS = 100
_SEPARATORS = re.compile(r"\s*(?:[;\n]|,(?!\d)|\band\b)\s*")
_KIND = "what kind of chart is this?"
_LABELS = "what are the labels in the chart?"
_VALUE = "what is the value of {label}?"
_VALUE_IN_SERIES = "what is the value of {label} for {series}?"


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """Which part of a document is read."""

    box_xyxy: BoxXyxy | None = None
    """x1, y1, x2, y2 in pixels of an image, or in points from the top left of a PDF's page."""
    page: int = 1
    """Number of the page, from 1."""
    password: str | None = None
    """Password of the PDF file."""
    max_new_tokens: int | None = None
    """Maximum number of tokens per answer."""
    limits: DocumentLimits = field(default=DocumentLimits())

    def __post_init__(self) -> None:
        check_whole("page", self.page)
        box = self.box_xyxy
        if box is not None and not (len(box) == 4 and all(math.isfinite(edge) for edge in box)):
            raise OptionError(f"box_xyxy is {box}; it must be four numbers: x1, y1, x2, y2.")


@dataclass(frozen=True, kw_only=True)
class ChartOptions(PartOptions):
    """How a chart is read. With labels given, the value of each is asked for."""

    labels: tuple[str, ...] = ()
    """Labels of the bars, slices or points to ask for."""
    series: tuple[str, ...] = ()
    """Names in the legend, where several series share the labels."""
    language: str | None = "en"
    """Language code of the questions' prefix; None leaves it out."""


def read_table(asker: Asker, source: DocumentInput, options: PartOptions = PartOptions()) -> Table:
    """The table on a page, or in a box on it. Boxes of cells are on the page.

    Raises what `open_document` raises, OptionError for a box outside the page, and what the model
    fails with.
    """
    with _part(asker, source, options) as part:
        table: Table = part.ask([TableTask()])[0]
        cells = tuple(
            cell
            if cell.box_xyxy is None
            else replace(cell, box_xyxy=part.tile.to_page(cell.box_xyxy))
            for cell in table.cells
        )
        return replace(
            table,
            cells=cells,
            size_wh=part.tile.page.size_wh,
            page=options.page,
            notes=(*table.notes, *part.notes()),
        )


def read_chart(
    asker: Asker, source: DocumentInput, options: ChartOptions = ChartOptions()
) -> Chart:
    """The chart on a page, or in a box on it: its whole text, or else label by label.

    Raises as `read_table`.
    """
    with _part(asker, source, options) as part:
        chart: Chart | None = None
        if not options.labels:
            chart = part.ask([ChartTask()])[0]
        if chart is None or not chart.points:
            chart = _read_by_questions(part, options, chart)
        return replace(
            chart,
            size_wh=part.tile.page.size_wh,
            page=options.page,
            notes=(*chart.notes, *part.notes()),
        )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What is shown to the model."""

    asker: Asker
    tile: Tile
    max_new_tokens: int | None

    def ask(self, tasks: Sequence[Task[Any]]) -> list[Any]:
        """The result of each task. Raises the first error."""
        image = self.tile.reader(self.asker.processor.resolution)
        queries = [
            ImageQuery(images=(image,), query=Query(task=task, max_new_tokens=self.max_new_tokens))
            for task in tasks
        ]
        results = list(self.asker.answer(queries))
        for result in results:
            if isinstance(result, PaliGemmaError):
                raise result
        return results

    def notes(self) -> Iterator[str]:
        """A warning where the print is too small for the model."""
        height = self.tile.page.print_height()
        x0, y0, x1, y1 = self.tile.box_xyxy
        resolution = self.asker.processor.resolution
        shown = math.inf if height is None else height * resolution / max(x1 - x0, y1 - y0)
        if shown < _SMALLEST_PRINT:
            yield (
                f"The small letters are about {shown:.1f} pixels high for a model of {resolution} "
                f"pixels, which needs {_SMALLEST_PRINT:.0f}: expect mistakes. Give a box around a "
                "part, or use a model of a higher resolution."
            )


@contextmanager
def _part(asker: Asker, source: DocumentInput, options: PartOptions) -> Iterator[_Part]:
    limits = options.limits
    with open_document(source, password=options.password, limits=limits) as document:
        page = document.page(options.page)
        tile = whole(page)
        if options.box_xyxy is not None:
            tile = Tile(page=page, box_xyxy=page.clamp(options.box_xyxy))
        yield _Part(asker=asker, tile=tile, max_new_tokens=options.max_new_tokens)


def _read_by_questions(part: _Part, options: ChartOptions, first: Chart | None) -> Chart:
    """Ask for the labels unless they are given, then for each value."""

    def task(question: str) -> AnswerTask:
        return AnswerTask(question=question, language=options.language)

    kind: Answer = part.ask([task(_KIND)])[0]
    texts = [f"{kind.question} {kind.text}"]
    scores = dict.fromkeys(options.labels, 1.0)
    if not options.labels:
        labels: Answer = part.ask([task(_LABELS)])[0]
        texts.append(f"{labels.question} {labels.text}")
        scores = _scored_labels(labels, part.asker)
    names = options.series or ("",)
    questions = [
        (_VALUE_IN_SERIES if name else _VALUE).format(label=label, series=name)
        for name in names
        for label in scores
    ]
    answers: Iterator[Answer] = iter(part.ask([task(question) for question in questions]))
    series, problems = [], []
    for name in names:
        points = []
        for label, label_score in scores.items():
            answer = next(answers)
            texts.append(f"{answer.question} {answer.text}")
            raw = value_in(answer.text)
            y = None if raw is None else number_in(raw)
            if y is None:
                detail = f"{answer.question!r} was answered with {answer.text[:60]!r}: no number."
                problems.append(Problem(kind="malformed", detail=detail, token_span=(0, 0)))
            points.append(
                Point(x=label, y=y, raw=raw or answer.text, score=label_score * answer.score)
            )
        series.append(Series(name=name, points=tuple(points)))
    if not scores:
        answer_to = first.text[:60] if first is not None else ""
        detail = f"The model named no labels, and answered 'chart' with {answer_to!r}."
        problems.append(Problem(kind="malformed", detail=detail, token_span=(0, 0)))
        series = []
    return Chart(
        series=tuple(series),
        kind=kind_in(kind.text),
        problems=tuple(problems),
        text="\n".join(texts),
        notes=("The model was asked for the value of each label.",),
    )


def _scored_labels(answer: Answer, asker: Asker) -> dict[str, float]:
    """The labels in an answer, each with the probability of its text and what ends it."""
    text = ScoredText.of(answer, asker.processor.tokenizer)
    scores: dict[str, float] = {}
    start = 0
    ends = [(match.start(), match.end()) for match in _SEPARATORS.finditer(text.text)]
    for end, following in (*ends, (len(text.text), len(text.text))):
        label = text.text[start:end].strip().strip("\"'.")
        if label and label.casefold() not in ("unanswerable", "none"):
            scores.setdefault(label, text.probability(start, end + 1))
        start = following
    return dict(list(scores.items())[:_MAX_LABELS])
