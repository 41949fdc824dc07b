"""A model that knows what numbered frames show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from paligemma.answering import ImageQuery
from paligemma.errors import PaliGemmaError
from paligemma.processor.image import LoadedImage
from paligemma.results import Text
from tests.video.clips import number_of

Says = Callable[[Sequence[int]], tuple[str, float] | PaliGemmaError]
"""Numbers of the frames in a prompt -> text and score, or an error."""


class ScriptedModel:
    """An `Asker` that takes a batch of queries at a time, as a predictor does."""

    def __init__(self, says: Says, resolution: int = 224, batch: int = 4) -> None:
        self.processor: Any = SimpleNamespace(resolution=resolution)
        self.says = says
        self.batch = batch
        self.prompts: list[str] = []
        self.shown: list[tuple[int, ...]] = []
        self.sizes: list[tuple[int, int]] = []
        self.num_taken = 0

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        taken: list[ImageQuery] = []
        for query in queries:
            taken.append(query)
            self.num_taken += 1
            if len(taken) == self.batch:
                yield from map(self._answer, taken)
                taken.clear()
        yield from map(self._answer, taken)

    def _answer(self, query: ImageQuery) -> Text | PaliGemmaError:
        images = [image for image in query.images if isinstance(image, LoadedImage)]
        assert len(images) == len(query.images)
        numbers = tuple(number_of(image.rgb) for image in images)
        self.prompts.append(query.query.text)
        self.shown.append(numbers)
        self.sizes += [image.rgb.size for image in images]
        said = self.says(numbers)
        if isinstance(said, PaliGemmaError):
            return said
        text, score = said
        return Text(
            text=text, token_ids=(5,), logprobs=(math.log(score),), stop_reason="eos", score=score
        )
