"""A stand-in for a model, which says what the tests tell it to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from paligemma.answering import ImageQuery
from paligemma.errors import ImageError
from paligemma.processor.image import LoadedImage
from paligemma.results import Caption, Text
from paligemma.tasks.text import CaptionTask

Said = tuple[str, float]


@dataclass
class ScriptedAsker:
    """Answers with a caption and a text, by the image's file name."""

    captions: dict[str, Said] = field(default_factory=dict)
    texts: dict[str, Said] = field(default_factory=dict)
    languages: tuple[str, ...] | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Prompt and image of each query, in order."""
    note: str | None = None
    processor: Any = None

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        for item in queries:
            read = cast("Callable[[], LoadedImage]", item.images[0])
            try:
                loaded = read()
            except ImageError as error:
                yield error
                continue
            name = loaded.name.rsplit("/", 1)[-1]
            task = item.query.task
            self.asked.append((item.query.text, name))
            if isinstance(task, CaptionTask):
                text, score = self.captions.get(name, ("two frogs", 0.9))
                yield Caption(text=text, score=score, language=task.language, **_NOTHING)
            else:
                text, score = self.texts.get(name, ("", 1.0))
                yield Text(text=text, score=score, **_NOTHING)


_NOTHING: dict[str, Any] = {"token_ids": (), "logprobs": (), "stop_reason": "eos"}
