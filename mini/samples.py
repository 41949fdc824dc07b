"""Choose the samples of the web page: scenes on which mini answers all that the page suggests.

    python -m mini.samples --seed 12

Goes through the test scenes of a seed and keeps those on which captions in every language, the
reading, the suggested question, and boxes and masks of the suggested phrases are right. Writes
their images and js/samples.js to the page's folder. A test asks all of it again.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import paligemma
from mini import language
from mini.evaluate import match_objects, true_boxes
from mini.examples import ask_where
from mini.scene import RESOLUTION, Scene, make_scene
from mini.texts import SceneTexts
from paligemma.cli.console import progress_bar
from paligemma.data.overlap import mask_iou
from paligemma.predictor import Predictor
from paligemma.results import Detections, Segment, Segments

PAGE = Path(paligemma.__file__).parent / "server" / "page"
NUM_SAMPLES = 7
MIN_BOX_IOU, MIN_MASK_IOU, MIN_SCORE = 0.7, 0.5, 0.5
_SLACK = 0.03
"""How much better than these minimums a sample must be: another processor rounds differently."""
_HEAD = "// Made by `python -m mini.samples`.\nexport const SAMPLES = "


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A scene, and what the page suggests to ask about it."""

    scene: Scene
    phrases: tuple[str, ...]
    question: str
    answer: str

    @property
    def file(self) -> str:
        """The name of its image, such as boat-and-frog.jpg."""
        return f"{'-and-'.join(self.phrases).replace(' ', '-')}.jpg"

    def jpeg(self) -> bytes:
        """The image's file."""
        file = io.BytesIO()
        Image.fromarray(self.scene.draw(RESOLUTION)).save(file, "JPEG", quality=92)
        return file.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """What the page needs to know, and where the scene comes from."""
        return {
            "file": self.file,
            "about": SceneTexts(self.scene).describe("en"),
            "phrases": ", ".join(self.phrases),
            "question": self.question,
            "seed": self.scene.seed,
            "index": self.scene.index,
        }


def read_samples(page: Path = PAGE) -> list[dict[str, Any]]:
    """What `to_dict` made of the page's samples."""
    text = (page / "js" / "samples.js").read_text("utf-8")
    samples: list[dict[str, Any]] = json.loads(text.removeprefix(_HEAD).rstrip().rstrip(";"))
    return samples


def make_sample(scene: Scene, number: int) -> Sample | None:
    """Suggestions for a scene; None where it shows too little or too much for a sample.

    `number` is that of the sample, so that neighbors suggest different questions.
    """
    counts = SceneTexts(scene).counts
    if not 1 <= len(counts) <= 2 or not 2 <= len(scene.objects) <= 4 or len(scene.words) > 1:
        return None
    questions = _questions(scene)
    question, answer = questions[number % len(questions)]
    phrases = tuple(language.KINDS[kind].name for kind, _ in counts)
    return Sample(scene=scene, phrases=phrases, question=question, answer=answer)


def _questions(scene: Scene) -> list[tuple[str, str]]:
    texts = SceneTexts(scene)
    kind, count = max(texts.counts, key=lambda pair: pair[1])
    questions = [language.ask_count(kind, count, "en")]
    for thing in scene.objects:
        question = ask_where(thing)
        if question is not None and len(texts.objects_of(thing.kind)) == 1:
            questions.append(question)
    if texts.words:
        questions.append(language.ask_reading(texts.words))
    return questions


def wrong_answers(model: Predictor, sample: Sample, image: bytes, slack: float = 0.0) -> list[str]:
    """What a model gets wrong of all that the page suggests for a sample."""
    texts = SceneTexts(sample.scene)
    wrong = []
    for code in language.LANGUAGES:
        if (said := model.caption(image, code).text) != texts.caption(code):
            wrong.append(f"caption {code}: {said!r}")
    if (read := model.ocr(image).text) != texts.reading():
        wrong.append(f"ocr: {read!r}")
    if (reply := model.ask(image, sample.question, "en").text) != sample.answer:
        wrong.append(f"{sample.question} {reply!r}")
    suggested = ", ".join(sample.phrases)
    for found in (model.detect(image, suggested), model.segment(image, suggested)):
        wrong += _wrong_objects(sample.scene, found, slack)
    return wrong


def _wrong_objects(scene: Scene, found: Detections | Segments, slack: float) -> Iterator[str]:
    truth = true_boxes(scene).objects
    if len(found) != len(truth):
        yield f"{len(found)} objects for {len(truth)}"
    matches = match_objects(found, truth, MIN_BOX_IOU + slack)
    right = {index: obj for obj, index in matches}
    for index in range(len(truth)):
        if (obj := right.get(index)) is None:
            yield f"object {index} has no box"
        elif obj.score < MIN_SCORE + slack:
            yield f"object {index} is unsure: {obj}"
        elif isinstance(obj, Segment):
            overlap = mask_iou(obj.mask, scene.object_mask(index, RESOLUTION))
            if overlap < MIN_MASK_IOU + slack:
                yield f"mask {index}: IoU {overlap:.2f}"


def choose(model: Predictor, seed: int, most: int) -> list[Sample]:
    """The first scenes of a seed that are answered well, no kind twice."""
    chosen: list[Sample] = []
    with progress_bar("choosing") as on_progress:
        for index in range(most):
            on_progress(len(chosen), NUM_SAMPLES)
            if len(chosen) == NUM_SAMPLES:
                break
            sample = make_sample(make_scene("test", seed, index), len(chosen))
            if sample is None or any(set(sample.phrases) & set(s.phrases) for s in chosen):
                continue
            if not wrong_answers(model, sample, sample.jpeg(), _SLACK):
                chosen.append(sample)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mini.samples",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="folder of the page (the package's)"
    )
    parser.add_argument("--seed", type=int, default=12, help="random seed (%(default)s)")
    parser.add_argument("--most", type=int, default=2000, help="scenes to try (%(default)s)")
    options = parser.parse_args()
    samples = choose(paligemma.load("mini"), options.seed, options.most)
    if len(samples) < NUM_SAMPLES:
        parser.error(f"Only {len(samples)} of {options.most} scenes are answered well.")
    for old in (options.page / "samples").iterdir():
        old.unlink()
    for sample in samples:
        (options.page / "samples" / sample.file).write_bytes(sample.jpeg())
    listed = json.dumps([sample.to_dict() for sample in samples], indent=2, ensure_ascii=False)
    (options.page / "js" / "samples.js").write_text(f"{_HEAD}{listed};\n", "utf-8")
    print(f"Wrote {len(samples)} samples to {options.page}")


if __name__ == "__main__":
    main()
