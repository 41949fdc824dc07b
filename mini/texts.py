"""What can be said of a scene: scene.py knows what is there, language.py how to say it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mini import language
from mini.scene import Scene, SceneObject


@dataclass(frozen=True)
class SceneTexts:
    """Every true text about a scene."""

    scene: Scene

    @cached_property
    def counts(self) -> list[tuple[int, int]]:
        """(kind, how many), by kind."""
        kinds = sorted({thing.kind for thing in self.scene.objects})
        return [(kind, len(self.objects_of(kind))) for kind in kinds]

    def objects_of(self, kind: int) -> list[SceneObject]:
        return [thing for thing in self.scene.objects if thing.kind == kind]

    @cached_property
    def words(self) -> list[str]:
        """Printed words in raster order, top to bottom."""
        return [word.text for word in sorted(self.scene.words, key=lambda w: w.box_xyxy[1])]

    def caption(self, code: str) -> str:
        return language.caption(self.counts, code, num_words=len(self.words))

    def describe(self, code: str) -> str:
        background = self.scene.background
        return language.describe(
            self.counts, background.color_name, self.words, code, photo=background.style == "photo"
        )

    def reading(self) -> str:
        """The suffix of `ocr`: words in raster order; empty where nothing is printed."""
        return " ".join(self.words)
