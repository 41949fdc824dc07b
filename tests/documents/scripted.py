"""A model that knows the answers: it writes what a test says, each token with one probability."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from paligemma.answering import ImageQuery
from paligemma.processor.image import ImageTransform, LoadedImage
from paligemma.tasks.task import TaskContext
from tests.tasks.character_tokenizer import CharacterTokenizer

Reply = Callable[[str, LoadedImage], str]


@dataclass(kw_only=True)
class ScriptedModel:
    """An `Asker` that answers by prompt and image, in order, through the tasks' own parsers."""

    reply: Reply
    name: str = "scripted"
    note: str | None = None
    resolution: int = 448
    probability: float = 0.9
    """Of each token."""
    prompts: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Of the images that were asked about."""

    @property
    def processor(self) -> Any:
        return SimpleNamespace(resolution=self.resolution, tokenizer=CharacterTokenizer())

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        for query in queries:
            [image] = query.images
            loaded = image() if callable(image) else image
            assert isinstance(loaded, LoadedImage)
            task = query.query.task
            assert task is not None
            self.prompts.append(task.prompt())
            self.sizes.append(loaded.size_wh)
            tokenizer = CharacterTokenizer()
            text = self.reply(task.prompt(), loaded)
            generated = tokenizer.generation(text, logprob=math.log(self.probability))
            transform = ImageTransform(source_wh=loaded.size_wh, resolution=self.resolution)
            yield task.parse(generated, tokenizer, TaskContext(transform=transform))
