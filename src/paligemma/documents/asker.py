"""Who answers questions about pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from paligemma.answering import ImageQuery
from paligemma.processor.processor import Processor


class Asker(Protocol):
    """A loaded model, such as a `Predictor`."""

    @property
    def processor(self) -> Processor: ...

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        """The result or PaliGemmaError of each query, in order."""
        ...
