"""DocVQA, InfoVQA, ST-VQA, OCR-VQA, ChartQA, AI2D and ScienceQA.

Questions about text in an image, and multiple-choice questions from school books.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from paligemma.evals.datasets.benchmark import Benchmark, Item, SplitSource, coco_images, item
from paligemma.evals.datasets.files import read_json, read_lines
from paligemma.evals.datasets.prompts import (
    ANSWER,
    CHOOSE,
    QUESTION,
    SCIENCE,
    choose,
    letter,
    science,
)
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair
from paligemma.evals.metrics.texts import Anls, ExactMatch, RelaxedAccuracy
from paligemma.processor.image import load_image

_ROBUST_READING = "https://rrc.cvc.uab.es/?ch={} (an account is needed)"
_DOCVQA = _ROBUST_READING.format(17)
_STVQA = _ROBUST_READING.format(11)


def _read_docvqa(source: SplitSource) -> Iterator[Item]:
    """`image` is "documents/x.png", below a folder with the split's name."""
    for entry in read_json(source.folder / f"{source.split}_v1.0_withQT.json")["data"]:
        image = source.folder / source.split / entry["image"]
        prefix = QUESTION.format(question=entry["question"])
        yield item(entry["questionId"], image, prefix, entry["answers"])


_INFOVQA_FILES = {
    "val": "infographicsVQA_val_v1.0_withQT.json",
    "train": "infographicsVQA_train_v1.0.json",
}

_MOST_PARTS = 6


def _read_infovqa(source: SplitSource) -> Iterator[Item]:
    for entry in read_json(source.folder / _INFOVQA_FILES[source.split])["data"]:
        answers = [answer.lower() for answer in entry["answers"]]
        if source.split == "val":
            answers = _in_any_order(answers)
        image = source.folder / "images" / entry["image_local_name"]
        yield item(entry["questionId"], image, ANSWER.format(question=entry["question"]), answers)


def _in_any_order(answers: list[str]) -> list[str]:
    """The parts of an answer that is a list may come in any order, up to six of them.

    Ten parts would be 3.6 million answers; a longer list counts in the order of the data set.

    >>> _in_any_order(["a, b", "c"])
    ['a, b', 'b, a', 'c']
    """
    orders: list[str] = []
    for answer in answers:
        parts = answer.split(", ")
        if len(parts) > _MOST_PARTS:
            orders.append(answer)
        else:
            orders += [", ".join(order) for order in permutations(parts)]
    return orders


def _read_stvqa(source: SplitSource) -> Iterator[Item]:
    """Images from COCO-Text are read in COCO's own, larger size."""
    for entry in read_json(source.folder / "train_task_3.json")["data"]:
        origin, _, name = entry["file_path"].partition("/")
        folder = "train2014" if origin == "coco-text" else f"train_images/{origin}"
        yield item(
            entry["question_id"],
            source.folder / folder / name,
            ANSWER.format(question=entry["question"]),
            (answer.lower() for answer in entry["answers"]),
            origin,
        )


_OCRVQA_SPLITS = {"test": 3, "val": 2, "train": 1}


def _read_ocrvqa(source: SplitSource) -> Iterator[Item]:
    """One entry per book, with several questions."""
    for book_id, book in read_json(source.folder / "dataset.json").items():
        if book["split"] == _OCRVQA_SPLITS[source.split]:
            image = source.folder / "images" / f"{book_id}.jpg"
            pairs = zip(book["questions"], book["answers"], strict=True)
            for number, (question, answer) in enumerate(pairs):
                yield item(f"{book_id}-{number}", image, ANSWER.format(question=question), answer)


_CHARTQA_ROWS = {"human": "ChartQA (human)", "augmented": "ChartQA (aug)"}


def _chartqa_parts(split: str) -> tuple[str, str]:
    """ "train-human" -> ("train", "human")."""
    part, _, kind = split.rpartition("-")
    return part or "test", kind


def _chartqa_files(split: str) -> dict[str, str]:
    part, kind = _chartqa_parts(split)
    source = "https://huggingface.co/datasets/ahmed-masry/ChartQA, 'ChartQA Dataset.zip'"
    return {f"{part}/{part}_{kind}.json": source, f"{part}/png/": source}


def _read_chartqa(source: SplitSource) -> Iterator[Item]:
    part, kind = _chartqa_parts(source.split)
    for number, entry in enumerate(read_json(source.folder / part / f"{part}_{kind}.json")):
        image = source.folder / part / "png" / entry["imgname"]
        yield item(number, image, QUESTION.format(question=entry["query"]), entry["label"])


_AI2D = "https://ai2-public-datasets.s3.amazonaws.com/diagrams/ai2d-all.zip"


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
            if details["abcLabel"] and words is None:
                words = list(read_json(folder / "annotations" / path.name)["text"].values())
            yield item(
                details["questionId"],
                partial(_with_letters, image, words or []) if details["abcLabel"] else image,
                choose(question, options),
                options[int(details["correctAnswer"])],
                files=(image,),
            )


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


_LETTER = re.compile(r"the answer is ([a-z])\.")


@dataclass(frozen=True, kw_only=True)
class LetterAccuracy:
    """1 where the answer begins with "the answer is X." and X is the right letter.

    Compared in lower case; any other form of answer is wrong (big_vision's
    evaluators/proj/paligemma/transfers/science_qa.py).
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            match = _LETTER.match(prediction.lower())
            letters = {m[1] for text in accepted if (m := _LETTER.match(text.lower()))}
            scores.append(float(match is not None and match[1] in letters))
        return mean_result("letter_accuracy", scores)


_SCIENCEQA = "https://scienceqa.github.io"


def _read_scienceqa(source: SplitSource) -> Iterator[Item]:
    """Questions without an image are left out, as in the papers."""
    for problem_id, entry in read_json(source.folder / "problems.json").items():
        if entry["split"] == source.split and entry["image"]:
            yield item(
                problem_id,
                source.folder / source.split / problem_id / entry["image"],
                science(entry["question"], entry["hint"], entry["choices"]),
                f"The answer is {letter(int(entry['answer']))}.",
                entry.get("subject", ""),
            )


BENCHMARKS = (
    Benchmark(
        name="docvqa",
        title="DocVQA",
        prompt=QUESTION,
        metrics={"ANLS": Anls()},
        splits={"val": ("DocVQA (val)", "DocVQA (test server)"), "train": ()},
        files=lambda split: {f"{split}_v1.0_withQT.json": _DOCVQA, f"{split}/": _DOCVQA},
        read=_read_docvqa,
        homepage="https://www.docvqa.org",
    ),
    Benchmark(
        name="infovqa",
        title="InfoVQA",
        metrics={"ANLS": Anls()},
        splits={"val": ("InfoVQA (val)", "InfoVQA (test server)"), "train": ()},
        files=lambda split: {_INFOVQA_FILES[split]: _DOCVQA, "images/": _DOCVQA},
        read=_read_infovqa,
        homepage="https://www.docvqa.org/datasets/infographicvqa",
        max_new_tokens=48,
    ),
    Benchmark(
        name="stvqa",
        title="ST-VQA",
        metrics={"ANLS": Anls()},
        splits={"train": ("ST-VQA (val)", "ST-VQA (test server)")},
        files=lambda split: {
            "train_task_3.json": _STVQA,
            "train_images/": _STVQA,
            **coco_images("train2014"),
        },
        read=_read_stvqa,
        homepage="https://rrc.cvc.uab.es/?ch=11",
        max_new_tokens=48,
        note="Only train has public answers. The papers' val is 2,628 of its 26,074 questions; the "
        "list of them is not published. Hold out some images yourself before training on it.",
    ),
    Benchmark(
        name="ocrvqa",
        title="OCR-VQA",
        metrics={"acc": ExactMatch(ignore_case=True)},
        splits={"test": ("OCR-VQA",), "val": (), "train": ()},
        files=lambda split: {
            "dataset.json": "https://ocr-vqa.github.io",
            "images/": "the imageURL entries of dataset.json, saved as <id>.jpg",
        },
        read=_read_ocrvqa,
        homepage="https://ocr-vqa.github.io",
    ),
    Benchmark(
        name="chartqa",
        title="ChartQA",
        prompt=QUESTION,
        metrics={"relaxed acc": RelaxedAccuracy()},
        splits={
            **{kind: (row,) for kind, row in _CHARTQA_ROWS.items()},
            **{f"{part}-{kind}": () for part in ("val", "train") for kind in _CHARTQA_ROWS},
        },
        files=_chartqa_files,
        read=_read_chartqa,
        homepage="https://github.com/vis-nlp/ChartQA",
        max_new_tokens=48,
        note="'human' and 'augmented' are the two test sets; their mean is not a score of the "
        "papers.",
    ),
    Benchmark(
        name="ai2d",
        title="AI2D",
        prompt=CHOOSE,
        metrics={"acc": ExactMatch()},
        splits={"test": ("AI2D",), "train": ()},
        files=lambda split: {
            "ai2d_test_ids.csv": "https://s3-us-east-2.amazonaws.com/prior-datasets/"
            "ai2d_test_ids.csv",
            **{f"ai2d/{name}/": _AI2D for name in ("questions", "annotations", "images")},
        },
        read=_read_ai2d,
        homepage="https://allenai.org/data/diagrams",
        max_new_tokens=128,
        note="The prompt has two spaces after 'en', as in the papers' configs. Letters are drawn "
        "in Pillow's font (big_vision used DM Sans).",
    ),
    Benchmark(
        name="science-qa",
        title="ScienceQA, questions with an image",
        prompt=SCIENCE,
        metrics={"acc": LetterAccuracy()},
        splits={"test": ("ScienceQA",), "val": (), "train": ()},
        files=lambda split: dict.fromkeys(
            ("problems.json", f"{split}/"), f"{_SCIENCEQA}/#download"
        ),
        read=_read_scienceqa,
        homepage=_SCIENCEQA,
        max_new_tokens=512,
        note="In training the papers shuffle the options again in every epoch; this reader keeps "
        "their order.",
    ),
)
