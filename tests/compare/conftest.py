"""What the tests of comparisons share: scenes, labeled data, contestants in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mini import language
from mini.scene import RESOLUTION, Scene, make_scene
from mini.texts import SceneTexts
from paligemma.compare import child, contest
from paligemma.errors import PaliGemmaError

NUM_SCENES = 4


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn images, 0.png to 3.png."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(NUM_SCENES):
        Image.fromarray(_scene(number).draw(RESOLUTION)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def labeled(scenes: Path) -> Path:
    """Questions, captions and lists of objects with their true answers, as JSON Lines."""
    lines = []
    for number in range(NUM_SCENES):
        texts = SceneTexts(_scene(number))
        kind, count = texts.counts[0]
        name = language.KINDS[kind].name
        objects = " ; ".join(
            "".join(f"<loc{min(1023, round(1024 * edge)):04d}>" for edge in _yxyx(thing.box_xyxy))
            + f" {name}"
            for thing in texts.objects_of(kind)
        )
        for prefix, suffix in (
            (f"answer en how many {name}s are there?", str(count)),
            ("caption en", texts.caption("en")),
            (f"detect {name}", objects),
        ):
            lines.append({"image": f"{number}.png", "prefix": prefix, "suffix": suffix})
    path = scenes / "labeled.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Contestants answer in this process, which is quicker; returns the names of those asked."""
    asked: list[str] = []

    def run(job: dict[str, Any], name: str, on_progress: Callable[..., None] | None) -> str | None:
        asked.append(name)
        try:
            child.run(json.loads(json.dumps(job)), lambda message: None)
        except PaliGemmaError as error:
            return str(error)
        return None

    monkeypatch.setattr(contest, "_run_child", run)
    return asked


def _scene(number: int) -> Scene:
    return make_scene("test", 7, number)


def _yxyx(box_xyxy: tuple[float, float, float, float]) -> tuple[float, ...]:
    x1, y1, x2, y2 = box_xyxy
    return y1, x1, y2, x2
