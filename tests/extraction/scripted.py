"""ScriptedAsker: a model that knows the truth, as far as the part of the page it sees shows it.

It answers with what is printed inside the view it is asked about. What lies outside is
"unanswerable"; what is cut by the view's edge is read in part. On whole pages it is unsure of
small print, so that tiles are asked too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import paligemma
from paligemma.answering import ImageQuery
from paligemma.documents import Document, find_on_page
from paligemma.documents.tiles import Tile
from paligemma.processor.processor import Processor
from paligemma.results import BoxXyxy, Detection, Detections, FieldAnswer, Text
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.text import OcrTask


@dataclass(frozen=True)
class Fact:
    """An answer to a question, and where it is printed; without a box, anywhere on the page."""

    question: str
    text: str
    box_xyxy: BoxXyxy | None = None
    page: int = 1
    score: float = 0.9


@dataclass
class ScriptedAsker:
    """Answers from facts; several facts of one question are the items of a list."""

    facts: Sequence[Fact]
    lists: frozenset[str] = frozenset()
    """Questions whose answer is a list of all their facts."""
    whole_page_score: float | None = None
    """The score of answers about whole pages; None: as good as those about tiles."""
    places: dict[str, tuple[int, BoxXyxy]] = field(default_factory=dict)
    """What `detect` finds: phrase -> page, box."""
    held: float = 0.0
    up: int = 0
    """How far pages must be turned to be upright."""
    asked: list[tuple[str, Any, int, BoxXyxy]] = field(default_factory=list)
    """Prompt, task, page and box of every query, in order."""
    fail: Callable[[Tile], Exception | None] = lambda tile: None
    processor: Processor = field(
        default_factory=lambda: replace(paligemma.load_processor("mini")[0], resolution=448)
    )

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        for item in queries:
            assert item.query.task is not None
            tile = inspect.getclosurevars(item.images[0]).nonlocals["self"]  # type: ignore[arg-type]
            task = item.query.task
            if isinstance(task, OcrTask):  # which way is up
                yield self.error_of(tile) or self.sureness(tile)
                continue
            self.asked.append((item.query.text, task, tile.page.number, tile.box_xyxy))
            if error := self.fail(tile):
                yield error
            elif isinstance(task, DetectTask):
                yield self._detect(tile, task.phrases[0])
            else:
                yield self._say(tile, task.question)  # type: ignore[attr-defined]

    def error_of(self, tile: Tile) -> Exception | None:
        return self.fail(tile)

    def sureness(self, tile: Tile) -> Text:
        is_up = tile.page.turned == self.up
        return Text(
            text="print", token_ids=(), logprobs=(), stop_reason="eos", score=0.4 + 0.4 * is_up
        )

    def _say(self, tile: Tile, question: str) -> FieldAnswer:
        is_whole = tile.box_xyxy == (0, 0, *tile.page.size_wh)
        facts = [f for f in self.facts if f.question == question and f.page == tile.page.number]
        seen = [(f, text) for f in facts if (text := _part(f, tile.box_xyxy))]
        if not seen:
            return spoken("unanswerable", 0.8, question)
        if question in self.lists:
            text, score = ", ".join(text for _, text in seen), min(f.score for f, _ in seen)
        else:
            text, score = seen[0][1], seen[0][0].score
        if is_whole and self.whole_page_score is not None:
            score = self.whole_page_score
        return spoken(text, score, question, self.held)

    def _detect(self, tile: Tile, phrase: str) -> Detections:
        objects = []
        page, box = self.places.get(phrase, (0, (0.0, 0.0, 0.0, 0.0)))
        if page == tile.page.number:
            x1, y1, x2, y2 = tile.box_xyxy
            fractions = tuple(
                (edge - low) / (high - low)
                for edge, low, high in zip(box, (x1, y1, x1, y1), (x2, y2, x2, y2), strict=True)
            )
            objects = [
                Detection(
                    label=phrase,
                    box_xyxy=fractions,  # type: ignore[arg-type]
                    box_normalized_xyxy=fractions,  # type: ignore[arg-type]
                    score=0.8,
                    existence_score=1.0,
                    label_score=0.9,
                    coordinate_score=0.9,
                )
            ]
        return Detections(
            objects=tuple(objects),
            prompt=f"detect {phrase}",
            phrases=(phrase,),
            problems=(),
            size_wh=(1, 1),
            stop_reason="eos",
            text="",
        )


def spoken(text: str, score: float, question: str = "", held: float = 0.0) -> FieldAnswer:
    return FieldAnswer(
        text=text,
        token_ids=(),
        logprobs=(),
        stop_reason="eos",
        score=score,
        question=question,
        held=held,
    )


def _part(fact: Fact, view: BoxXyxy) -> str:
    """What a view shows of a fact: all, the letters inside its left and right edges, or nothing."""
    box = fact.box_xyxy
    if box is None:
        return fact.text
    middle = (box[1] + box[3]) / 2
    if not view[1] <= middle <= view[3] or box[2] <= view[0] or box[0] >= view[2]:
        return ""
    width, count = box[2] - box[0], len(fact.text)
    first = round(max(0.0, view[0] - box[0]) / width * count)
    last = round(min(width, view[2] - box[0]) / width * count)
    return fact.text[first:last].strip()


def printed(document: Document, question: str, text: str, page: int = 1, **more: Any) -> Fact:
    """A fact whose place is that of the words in the page's text layer."""
    box = find_on_page(document.page(page).words, text)
    assert box is not None, text
    return Fact(question, text, box, page, **more)
