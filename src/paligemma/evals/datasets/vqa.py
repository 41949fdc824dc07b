"""VQAv2, OKVQA, A-OKVQA, TextVQA and VizWizVQA: questions with ten people's answers.

Answers are kept as written; the metric normalizes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from paligemma.evals.datasets.benchmark import Benchmark, Item, SplitSource, coco_images, item
from paligemma.evals.datasets.files import read_csv, read_json
from paligemma.evals.datasets.prompts import ANSWER, CHOOSE, choose
from paligemma.evals.metrics.texts import DirectAnswerAccuracy, ExactMatch, VqaAccuracy
from paligemma.processor.image import load_image


def _vqa_files(version: str, split: str) -> tuple[str, str]:
    """The two files of VQA's format: questions, and the ten answers to each."""
    name = f"mscoco_{split}2014"
    return f"{version}OpenEnded_{name}_questions.json", f"{version}{name}_annotations.json"


def _vqav2_files(split: str) -> dict[str, str]:
    questions, annotations = _vqa_files("v2_", split)
    zips = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_{}_{}_mscoco.zip"
    return {
        questions: zips.format("Questions", split.title()),
        annotations: zips.format("Annotations", split.title()),
        **coco_images(f"{split}2014"),
    }


def _okvqa_files(split: str) -> dict[str, str]:
    site = "https://okvqa.allenai.org/static/data"
    files = {name: f"{site}/{name}.zip" for name in _vqa_files("", split)}
    return files | coco_images(f"{split}2014")


def _read_vqa(version: str, source: SplitSource) -> Iterator[Item]:
    questions, annotations = _vqa_files(version, source.split)
    answers = {a["question_id"]: a for a in read_json(source.folder / annotations)["annotations"]}
    images = f"{source.split}2014"
    for question in read_json(source.folder / questions)["questions"]:
        annotation = answers[question["question_id"]]
        yield item(
            question["question_id"],
            source.folder / images / f"COCO_{images}_{question['image_id']:012d}.jpg",
            ANSWER.format(question=question["question"]),
            (answer["answer"] for answer in annotation["answers"]),
            annotation.get("answer_type", ""),
        )


def _aokvqa_files(split: str) -> dict[str, str]:
    archive = "https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz"
    return {f"aokvqa_v1p0_{split}.json": archive, **coco_images(f"{split}2017")}


def _aokvqa(source: SplitSource) -> Iterator[tuple[dict[str, Any], Path]]:
    for entry in read_json(source.folder / f"aokvqa_v1p0_{source.split}.json"):
        yield entry, source.folder / f"{source.split}2017" / f"{entry['image_id']:012d}.jpg"


def _read_aokvqa_direct(source: SplitSource) -> Iterator[Item]:
    for entry, image in _aokvqa(source):
        prefix = ANSWER.format(question=entry["question"])
        yield item(entry["question_id"], image, prefix, entry["direct_answers"])


def _read_aokvqa_choice(source: SplitSource) -> Iterator[Item]:
    for entry, image in _aokvqa(source):
        answer = entry["choices"][entry["correct_choice_idx"]]
        prefix = choose(entry["question"], entry["choices"])
        yield item(entry["question_id"], image, prefix, answer)


def _textvqa_files(split: str) -> dict[str, str]:
    base = "https://dl.fbaipublicfiles.com/textvqa"
    name = f"TextVQA_0.5.1_{split}.json"
    return {
        name: f"{base}/data/{name}",
        "train_images/": f"{base}/images/train_val_images.zip",
        "train_images/rotation.csv": "https://storage.googleapis.com/openimages/2018_04/train/"
        "train-images-boxable-with-rotation.csv, renamed",
    }


def _read_textvqa(source: SplitSource) -> Iterator[Item]:
    """The images of val are in train_images too; some are rotated, as listed in rotation.csv."""
    images = source.folder / "train_images"
    turns = {
        row["ImageID"]: round(float(row["Rotation"] or 0)) // 90
        for row in read_csv(images / "rotation.csv")
    }
    for entry in read_json(source.folder / f"TextVQA_0.5.1_{source.split}.json")["data"]:
        path = images / f"{entry['image_id']}.jpg"
        quarter_turns = turns.get(str(entry["image_id"]), 0) % 4
        image = partial(_turned, path, quarter_turns) if quarter_turns else path
        prefix = ANSWER.format(question=entry["question"])
        yield item(entry["question_id"], image, prefix, entry["answers"], files=(path,))


def _turned(path: Path, quarter_turns: int) -> Image.Image:
    return load_image(path).rgb.rotate(90 * quarter_turns, expand=True)


def _read_vizwiz(source: SplitSource) -> Iterator[Item]:
    for entry in read_json(source.folder / "annotations" / f"{source.split}.json"):
        image = source.folder / source.split / entry["image"]
        prefix = ANSWER.format(question=entry["question"])
        answers = (answer["answer"] for answer in entry["answers"] if answer["answer"])
        yield item(entry["image"], image, prefix, answers, entry.get("answer_type", ""))


_VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final"
BENCHMARKS = (
    Benchmark(
        name="vqav2",
        title="VQAv2",
        metrics={"VQA acc": VqaAccuracy()},
        splits={"val": ("VQAv2 (minival)", "VQAv2 (test-std)"), "train": ()},
        files=_vqav2_files,
        read=partial(_read_vqa, "v2_"),
        homepage="https://visualqa.org",
        note="The papers' minival is the last 10,240 questions of val in an unpublished order, and "
        "test-std is scored by a server; both figures are shown next to the score on all of val.",
    ),
    Benchmark(
        name="okvqa",
        title="OKVQA",
        metrics={"acc": DirectAnswerAccuracy()},
        splits={"val": ("OKVQA",), "train": ()},
        files=_okvqa_files,
        read=partial(_read_vqa, ""),
        homepage="https://okvqa.allenai.org",
    ),
    Benchmark(
        name="aokvqa-da",
        title="A-OKVQA, direct answers",
        metrics={"acc": DirectAnswerAccuracy()},
        splits={"val": ("AOKVQA-DA (val)", "AOKVQA-DA (test server)"), "train": ()},
        files=_aokvqa_files,
        read=_read_aokvqa_direct,
        homepage="https://aokvqa.allenai.org",
    ),
    Benchmark(
        name="aokvqa-mc",
        title="A-OKVQA, multiple choice",
        prompt=CHOOSE,
        metrics={"acc": ExactMatch()},
        splits={"val": ("AOKVQA-MC (val)", "AOKVQA-MC (test server)"), "train": ()},
        files=_aokvqa_files,
        read=_read_aokvqa_choice,
        homepage="https://aokvqa.allenai.org",
        max_new_tokens=128,
    ),
    Benchmark(
        name="textvqa",
        title="TextVQA",
        metrics={"VQA acc": VqaAccuracy()},
        splits={"val": ("TextVQA (val)", "TextVQA (test-std)"), "train": ()},
        files=_textvqa_files,
        read=_read_textvqa,
        homepage="https://textvqa.org",
    ),
    Benchmark(
        name="vizwizvqa",
        title="VizWizVQA",
        metrics={"VQA acc": DirectAnswerAccuracy()},
        splits={"val": ("VizWizVQA (val)", "VizWizVQA (test-std)"), "train": ()},
        files=lambda split: {
            f"annotations/{split}.json": f"{_VIZWIZ}/vqa_data/Annotations.zip",
            f"{split}/": f"{_VIZWIZ}/images/{split}.zip",
        },
        read=_read_vizwiz,
        homepage="https://vizwiz.org/tasks-and-datasets/vqa",
        max_new_tokens=48,
    ),
)
