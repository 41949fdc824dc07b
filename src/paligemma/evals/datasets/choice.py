"""AI2D and ScienceQA: multiple-choice questions from school books."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from paligemma.data.record import Record
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_json, read_lines
from paligemma.evals.datasets.prompts import CHOOSE, SCIENCE, choose, letter, science
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair
from paligemma.evals.metrics.texts import ExactMatch
from paligemma.processor.image import load_image

_AI2D_FOLDERS = ("questions", "annotations", "images")
_ANSWER = re.compile(r"the answer is ([a-z])\.")


def _ai2d_needs(split: str) -> tuple[Needed, ...]:
    source = "https://ai2-public-datasets.s3.amazonaws.com/diagrams/ai2d-all.zip"
    return (
        Needed(
            path="ai2d_test_ids.csv",
            source="https://s3-us-east-2.amazonaws.com/prior-datasets/ai2d_test_ids.csv",
        ),
        *(Needed(path=f"ai2d/{name}/", source=source) for name in _AI2D_FOLDERS),
    )


def _read_ai2d(source: SplitSource) -> Iterator[Item]:
    """One file of questions per diagram; with `abcLabel`, letters cover the words of the diagram
    and are the answers."""
    folder = source.folder / "ai2d"
    test_ids = set(read_lines(source.folder / "ai2d_test_ids.csv"))
    for path in sorted((folder / "questions").glob("*.json")):
        if (path.name.split(".")[0] in test_ids) != (source.split == "test"):
            continue
        entry = read_json(path)
        image = folder / "images" / entry["imageName"]
        words: list[dict[str, Any]] | None = None
        for question, details in entry["questions"].items():
            options = details["answerTexts"]
            answer = options[int(details["correctAnswer"])]
            if details["abcLabel"] and words is None:
                words = list(read_json(folder / "annotations" / path.name)["text"].values())
            lettered = details["abcLabel"]
            record = Record(
                record_id=details["questionId"],
                image=partial(_with_letters, image, words or []) if lettered else image,
                prefix=choose(question, options),
                suffix=answer,
                references=(answer,),
            )
            yield Item(record, files=(image,))


def _with_letters(path: Path, words: list[dict[str, Any]]) -> Image.Image:
    """Each word covered by a white rectangle with its letter, as large as it fits."""
    image = load_image(path).rgb
    draw = ImageDraw.Draw(image)
    for word in words:
        (x1, y1), (x2, y2) = word["rectangle"]
        draw.rectangle((x1, y1, x2, y2), fill="white")
        text = str(word["replacementText"])
        size = next(
            (
                size
                for size in range(100, 4, -1)
                if draw.textlength(text, ImageFont.load_default(size)) <= x2 - x1
                and size <= y2 - y1
            ),
            5,
        )
        font = ImageFont.load_default(size)
        left = x1 + (x2 - x1 - draw.textlength(text, font)) / 2
        draw.text((left, y1), text, fill="black", font=font)
    return image


AI2D = Benchmark(
    name="ai2d",
    title="AI2D",
    task="answer",
    prompt=CHOOSE,
    metrics={"acc": ExactMatch()},
    splits={"test": ("AI2D",), "train": ()},
    needs=_ai2d_needs,
    read=_read_ai2d,
    homepage="https://allenai.org/data/diagrams",
    max_new_tokens=128,
    note="The prompt has two spaces after 'en', as in the papers' configs. Letters are drawn in "
    "Pillow's font (big_vision used DM Sans).",
)


@dataclass(frozen=True, kw_only=True)
class LetterAccuracy:
    """1 where the answer begins with "the answer is X." and X is the right letter.

    Compared in lower case; any other form of answer is wrong (big_vision's
    evaluators/proj/paligemma/transfers/science_qa.py).
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            match = _ANSWER.match(prediction.lower())
            letters = {m[1] for text in accepted if (m := _ANSWER.match(text.lower()))}
            scores.append(float(match is not None and match[1] in letters))
        return mean_result("letter_accuracy", scores)


def _scienceqa_needs(split: str) -> tuple[Needed, ...]:
    source = "https://scienceqa.github.io/#download"
    return Needed(path="problems.json", source=source), Needed(path=f"{split}/", source=source)


def _read_scienceqa(source: SplitSource) -> Iterator[Item]:
    """Questions without an image are left out, as in the papers."""
    for problem_id, entry in read_json(source.folder / "problems.json").items():
        if entry["split"] != source.split or not entry["image"]:
            continue
        answer = f"The answer is {letter(int(entry['answer']))}."
        record = Record(
            record_id=problem_id,
            image=source.folder / source.split / problem_id / entry["image"],
            prefix=science(entry["question"], entry["hint"], entry["choices"]),
            suffix=answer,
            references=(answer,),
        )
        yield Item(record, entry.get("subject", ""))


SCIENCEQA = Benchmark(
    name="science-qa",
    title="ScienceQA, questions with an image",
    task="answer",
    prompt=SCIENCE,
    metrics={"acc": LetterAccuracy()},
    splits={"test": ("ScienceQA",), "val": (), "train": ()},
    needs=_scienceqa_needs,
    read=_read_scienceqa,
    homepage="https://scienceqa.github.io",
    max_new_tokens=512,
    note="In training the papers shuffle the options again in every epoch; this reader keeps their "
    "order.",
)
