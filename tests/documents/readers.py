"""Readers that know the truth, in the place of a model."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from paligemma.answering import ImageQuery
from paligemma.documents import Document, PageText, Word
from paligemma.documents.order import reading_rows
from paligemma.errors import PaliGemmaError
from paligemma.processor.image import LoadedImage
from paligemma.results import Text


class Letters:
    """A tokenizer with a token per letter, and none for places and masks."""

    eos_id = -1
    loc_offset = seg_offset = 0

    def is_loc(self, token_id: int) -> bool:
        return False

    def is_seg(self, token_id: int) -> bool:
        return False

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def text_result(text: str, score: float = 0.9, **changes: Any) -> Text:
    values: dict[str, Any] = {
        "text": text,
        "token_ids": tuple(map(ord, text)),
        "logprobs": (math.log(score),) * len(text),
        "stop_reason": "eos",
        "score": score,
    }
    return Text(**{**values, **changes})


class ScriptedReader:
    """Answers with what a function says about each image."""

    def __init__(self, read: Callable[[LoadedImage], Text], resolution: int = 448) -> None:
        self.processor: Any = SimpleNamespace(resolution=resolution, tokenizer=Letters())
        self.read = read
        self.seen: list[LoadedImage] = []

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        for query in queries:
            [source] = query.images
            try:
                image = source() if callable(source) else source
                assert isinstance(image, LoadedImage)
                self.seen.append(image)
                yield self.read(image)
            except PaliGemmaError as error:
                yield error


@functools.cache
def words_of(document: Document, page: int) -> Sequence[Word]:
    return document.page(page).words


def _place_of_tile(image: LoadedImage) -> tuple[int, list[float]]:
    """The number of its page, and its box there."""
    match = re.match(r"page (\d+) of .* at (.*)", image.name)
    assert match is not None
    return int(match[1]), [float(value) for value in match[2].split(", ")]


def words_in(document: Document, image: LoadedImage) -> list[Word]:
    """The words whose middle is in a tile."""
    page, (x0, y0, x1, y1) = _place_of_tile(image)
    inside = []
    for word in words_of(document, page):
        x, y = (word.box_xyxy[0] + word.box_xyxy[2]) / 2, (word.box_xyxy[1] + word.box_xyxy[3]) / 2
        if x0 <= x <= x1 and y0 <= y <= y1:
            inside.append(word)
    return inside


def letters_in(document: Document, image: LoadedImage) -> list[Word]:
    """What a tile shows of each word: the letters whose middle is in it."""
    page, (x0, y0, x1, y1) = _place_of_tile(image)
    inside = []
    for word in words_of(document, page):
        left, top, right, bottom = word.box_xyxy
        step = (right - left) / len(word.text)
        places = [left + (number + 0.5) * step for number in range(len(word.text))]
        shown = [letter for letter, x in zip(word.text, places, strict=True) if x0 <= x <= x1]
        if shown and y0 <= (top + bottom) / 2 <= y1:
            box = (max(left, x0), top, min(right, x1), bottom)
            inside.append(Word("".join(shown), box))
    return inside


def perfect_reader(
    document: Document,
    resolution: int = 448,
    *,
    line_breaks: bool = True,
    shown_in: Callable[[Document, LoadedImage], list[Word]] = words_in,
) -> ScriptedReader:
    """Reads every tile without a mistake, by the text layer of a document."""

    def read(image: LoadedImage) -> Text:
        words = shown_in(document, image)
        rows = reading_rows([word.box_xyxy for word in words])
        lines = [" ".join(words[index].text for index in row) for row in rows]
        return text_result(("\n" if line_breaks else " ").join(lines))

    return ScriptedReader(read, resolution)


def texts(page: PageText) -> list[str]:
    return [line.text for line in page.lines]
