"""A stand-in for a model that knows what photos of one color show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from PIL import Image

import paligemma
from paligemma.answering import ImageQuery
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor
from tests.extraction.scripted import spoken

Said = tuple[str, float] | tuple[str, float, float]
COLORS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "gray": (90, 90, 90)}


@dataclass
class Seer:
    """Answers by the color of the photo and the question: text, score and perhaps `held`."""

    said: Mapping[str, Mapping[str, Said]]
    asked: list[tuple[str, str]] = field(default_factory=list)
    stop_after: int | None = None
    """Photos after which the process is interrupted."""
    note: str | None = None
    name: str = "seer"
    processor: Processor = field(
        default_factory=lambda: replace(paligemma.load_processor("mini")[0], resolution=448)
    )

    def info(self) -> dict[str, Any]:
        return {"name": self.name}

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        for item in queries:
            loaded = cast("Callable[[], LoadedImage]", item.images[0])()
            pixel = loaded.rgb.getpixel((1, 1))
            color = next(name for name, rgb in COLORS.items() if rgb == pixel)
            question = item.query.task.question  # type: ignore[union-attr]
            self.asked.append((color, question))
            if self.stop_after is not None and len({c for c, _ in self.asked}) > self.stop_after:
                raise KeyboardInterrupt
            text, score, *held = self.said.get(color, {}).get(question, ("unanswerable", 0.8))
            yield spoken(text, score, question, *held)


def draw(path: Path, color: str) -> Path:
    """A photo of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 30), COLORS[color]).save(path)
    return path
