"""What the tests of the command line share: a way to call it, pictures, and a stand-in model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma.cli.main import main
from paligemma.errors import ImageError
from paligemma.results import Answer, Caption, Detection, Detections, Generation, Segment, Segments
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.text import AnswerTask, CaptionTask

WORDS: dict[str, Any] = {
    "token_ids": (5, 1),
    "logprobs": (-0.5, -0.25),
    "stop_reason": "eos",
    "score": 0.75,
}


@dataclass
class Ran:
    """What a command line left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls `paligemma ARGUMENTS` in this process."""

    def call(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(code=int(stopped.value.code or 0), out=out, err=err)

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 40 x 20 pixels, with a comment in its metadata."""
    path = tmp_path / "blue.jpg"
    Image.new("RGB", (40, 20), (0, 0, 200)).save(path, comment=b"a secret place")
    return path


@dataclass
class StandIn:
    """Answers at once what the tests expect, and remembers what it was asked."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    note: str | None = "This is a stand-in."
    languages: tuple[str, ...] | None = None

    def answer(
        self, queries: Any, batch_size: int | None = None, num_beams: int = 1
    ) -> Iterator[Any]:
        for item in queries:
            try:
                images = [read() for read in item.images]
            except ImageError as error:
                yield error
                continue
            yield self._answer(images, item.query, num_beams)

    def _answer(self, images: Any, query: Any, num_beams: int) -> Any:
        options = {} if query.max_new_tokens is None else {"max_new_tokens": query.max_new_tokens}
        if query.task is None:
            sampler = asdict(query.sampler)
            options |= {**sampler, "num_beams": num_beams, "stop": query.stop}
            return self.generate(images, query.prompt, **options)
        match query.task:
            case CaptionTask(language=language):
                return self.caption(images[0], language, **options)
            case AnswerTask(question=question, language=language):
                return self.ask(images[0], question, language, **options)
        options |= {
            field.name: value
            for field in fields(query.task)
            if (value := getattr(query.task, field.name)) != field.default
            and field.name != "phrases"
        }
        phrases = " ; ".join(query.task.phrases)
        if isinstance(query.task, DetectTask):
            return self.detect(images[0], phrases, **options)
        return self.segment(images[0], phrases, **options)

    def caption(self, image: Any, language: str, **options: Any) -> Caption:
        self.asked.append(("caption", language, options))
        return Caption(text="a blue \x1b[2Jwall", language=language, **WORDS)

    def ask(self, image: Any, question: str, language: str | None, **options: Any) -> Answer:
        self.asked.append(("ask", question, language))
        return Answer(text="blue", question=question, **WORDS)

    def detect(self, image: Any, phrases: str, **options: Any) -> Detections:
        self.asked.append(("detect", phrases, image.name, options))
        boxes = [("wall", 0.9, (0.0, 0.0, 40.0, 20.0)), ("dog", 0.2, (1.0, 2.0, 9.0, 8.0))]
        found = tuple(
            Detection(
                label=label,
                box_xyxy=box,
                box_normalized_xyxy=(0.0, 0.0, 1.0, 1.0),
                score=score,
                existence_score=1.0,
                coordinate_score=score,
                label_score=score,
            )
            for label, score, box in boxes
        )
        return Detections(objects=found, **self._search(phrases))

    def segment(self, image: Any, phrases: str, **options: Any) -> Segments:
        self.asked.append(("segment", phrases, image.name, options))
        mask = np.zeros((20, 40), np.bool_)
        mask[5:10, 5:15] = True
        found = Segment(
            label="wall",
            box_xyxy=(5.0, 5.0, 15.0, 10.0),
            box_normalized_xyxy=(0.125, 0.25, 0.375, 0.5),
            score=0.5,
            existence_score=1.0,
            coordinate_score=0.5,
            label_score=0.5,
            mask=mask,
            mask_score=0.5,
        )
        return Segments(objects=(found,), **self._search(phrases))

    def generate(self, images: Any, prompt: str, **options: Any) -> Generation:
        self.asked.append(("generate", tuple(image.name for image in images), prompt, options))
        words = {name: value for name, value in WORDS.items() if name != "score"}
        return Generation(text="and so on", **words)

    def stream(self, images: Any, prompt: str, **options: Any) -> Iterator[str]:
        yield from ("and ", "so ", "on")

    @staticmethod
    def _search(phrases: str) -> dict[str, Any]:
        return {
            "prompt": f"detect {phrases}",
            "phrases": tuple(phrases.split(" ; ")),
            "problems": (),
            "size_wh": (40, 20),
            "stop_reason": "eos",
            "text": "",
        }


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Takes the place of every model that is loaded."""
    model = StandIn()
    monkeypatch.delenv("PALIGEMMA_MODEL", raising=False)
    monkeypatch.setattr(paligemma, "load", lambda *names, **options: model, raising=False)
    return model


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when a model is loaded."""

    def load(*names: object, **options: object) -> None:
        pytest.fail("a model was loaded before the command line was found to be wrong")

    monkeypatch.setattr(paligemma, "load", load, raising=False)


@pytest.fixture(scope="session")
def mini_folder() -> Path:
    """Where the weights of `mini` lie."""
    folder = Path(paligemma.__file__).parent / "mini" / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the weights of mini are not there yet")
    return folder
