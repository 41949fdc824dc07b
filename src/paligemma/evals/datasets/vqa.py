"""VQAv2, OKVQA, A-OKVQA, TextVQA and VizWizVQA: questions with ten people's answers.

Answers are kept as written; the metric normalizes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from paligemma.data.record import Record
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_csv, read_json
from paligemma.evals.datasets.prompts import ANSWER, CHOOSE, choose
from paligemma.evals.metrics.texts import DirectAnswerAccuracy, ExactMatch, VqaAccuracy
from paligemma.processor.image import load_image

_COCO = "http://images.cocodataset.org/zips/{}.zip"
_COCO_2014 = {"train": "train2014", "val": "val2014"}


def _coco_2014(split: str) -> Needed:
    return Needed(path=f"{_COCO_2014[split]}/", source=_COCO.format(_COCO_2014[split]))


def _coco_image(folder: Path, split: str, image_id: int) -> Path:
    return folder / _COCO_2014[split] / f"COCO_{_COCO_2014[split]}_{image_id:012d}.jpg"


def _join(source: SplitSource, questions: str, annotations: str) -> Iterator[Item]:
    """The two files of VQA's format: questions, and the ten answers to each."""
    answers = {
        annotation["question_id"]: annotation
        for annotation in read_json(source.folder / annotations)["annotations"]
    }
    for question in read_json(source.folder / questions)["questions"]:
        annotation = answers[question["question_id"]]
        record = Record(
            record_id=str(question["question_id"]),
            image=_coco_image(source.folder, source.split, question["image_id"]),
            prefix=ANSWER.format(question=question["question"]),
            references=tuple(answer["answer"] for answer in annotation["answers"]),
        )
        yield Item(record, annotation.get("answer_type", ""))


def _vqav2_files(split: str) -> tuple[str, str]:
    name = _COCO_2014[split]
    return f"v2_OpenEnded_mscoco_{name}_questions.json", f"v2_mscoco_{name}_annotations.json"


def _vqav2_needs(split: str) -> tuple[Needed, ...]:
    questions, annotations = _vqav2_files(split)
    zips = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_{}_{}_mscoco.zip"
    return (
        Needed(path=questions, source=zips.format("Questions", split.title())),
        Needed(path=annotations, source=zips.format("Annotations", split.title())),
        _coco_2014(split),
    )


VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2",
    task="answer",
    prompt=ANSWER,
    metrics={"VQA acc": VqaAccuracy()},
    splits={"val": ("VQAv2 (minival)", "VQAv2 (test-std)"), "train": ()},
    needs=_vqav2_needs,
    read=lambda source: _join(source, *_vqav2_files(source.split)),
    homepage="https://visualqa.org",
    max_new_tokens=32,
    note="The papers' minival is the last 10,240 questions of val in an unpublished order, and "
    "test-std is scored by a server; both figures are shown next to the score on all of val.",
)


def _okvqa_files(split: str) -> tuple[str, str]:
    name = _COCO_2014[split]
    return f"OpenEnded_mscoco_{name}_questions.json", f"mscoco_{name}_annotations.json"


def _okvqa_needs(split: str) -> tuple[Needed, ...]:
    files = _okvqa_files(split)
    source = "https://okvqa.allenai.org/static/data/{}.zip"
    return (
        *(Needed(path=name, source=source.format(name)) for name in files),
        _coco_2014(split),
    )


OKVQA = Benchmark(
    name="okvqa",
    title="OKVQA",
    task="answer",
    prompt=ANSWER,
    metrics={"acc": DirectAnswerAccuracy()},
    splits={"val": ("OKVQA",), "train": ()},
    needs=_okvqa_needs,
    read=lambda source: _join(source, *_okvqa_files(source.split)),
    homepage="https://okvqa.allenai.org",
    max_new_tokens=32,
)


def _aokvqa_needs(split: str) -> tuple[Needed, ...]:
    return (
        Needed(
            path=f"aokvqa_v1p0_{split}.json",
            source="https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz",
        ),
        Needed(path=f"{split}2017/", source=_COCO.format(f"{split}2017")),
    )


def _aokvqa(source: SplitSource) -> Iterator[tuple[dict[str, Any], Path]]:
    for entry in read_json(source.folder / f"aokvqa_v1p0_{source.split}.json"):
        yield entry, source.folder / f"{source.split}2017" / f"{entry['image_id']:012d}.jpg"


def _read_aokvqa_direct(source: SplitSource) -> Iterator[Item]:
    for entry, image in _aokvqa(source):
        yield Item(
            Record(
                record_id=str(entry["question_id"]),
                image=image,
                prefix=ANSWER.format(question=entry["question"]),
                references=tuple(entry["direct_answers"]),
            )
        )


def _read_aokvqa_choice(source: SplitSource) -> Iterator[Item]:
    for entry, image in _aokvqa(source):
        answer = entry["choices"][entry["correct_choice_idx"]]
        yield Item(
            Record(
                record_id=str(entry["question_id"]),
                image=image,
                prefix=choose(entry["question"], entry["choices"]),
                suffix=answer,
                references=(answer,),
            )
        )


AOKVQA_DA = Benchmark(
    name="aokvqa-da",
    title="A-OKVQA, direct answers",
    task="answer",
    prompt=ANSWER,
    metrics={"acc": DirectAnswerAccuracy()},
    splits={"val": ("AOKVQA-DA (val)", "AOKVQA-DA (test server)"), "train": ()},
    needs=_aokvqa_needs,
    read=_read_aokvqa_direct,
    homepage="https://aokvqa.allenai.org",
    max_new_tokens=32,
)
AOKVQA_MC = Benchmark(
    name="aokvqa-mc",
    title="A-OKVQA, multiple choice",
    task="answer",
    prompt=CHOOSE,
    metrics={"acc": ExactMatch()},
    splits={"val": ("AOKVQA-MC (val)", "AOKVQA-MC (test server)"), "train": ()},
    needs=_aokvqa_needs,
    read=_read_aokvqa_choice,
    homepage="https://aokvqa.allenai.org",
    max_new_tokens=128,
)


def _textvqa_needs(split: str) -> tuple[Needed, ...]:
    base = "https://dl.fbaipublicfiles.com/textvqa"
    return (
        Needed(
            path=f"TextVQA_0.5.1_{split}.json", source=f"{base}/data/TextVQA_0.5.1_{split}.json"
        ),
        Needed(path="train_images/", source=f"{base}/images/train_val_images.zip"),
        Needed(
            path="train_images/rotation.csv",
            source="https://storage.googleapis.com/openimages/2018_04/train/"
            "train-images-boxable-with-rotation.csv, renamed",
        ),
    )


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

        def turned(path: Path = path, quarter_turns: int = quarter_turns) -> Image.Image:
            return load_image(path).rgb.rotate(90 * quarter_turns, expand=True)

        record = Record(
            record_id=str(entry["question_id"]),
            image=turned if quarter_turns else path,
            prefix=ANSWER.format(question=entry["question"]),
            references=tuple(entry["answers"]),
        )
        yield Item(record, files=(path,))


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA",
    task="answer",
    prompt=ANSWER,
    metrics={"VQA acc": VqaAccuracy()},
    splits={"val": ("TextVQA (val)", "TextVQA (test-std)"), "train": ()},
    needs=_textvqa_needs,
    read=_read_textvqa,
    homepage="https://textvqa.org",
    max_new_tokens=32,
)


def _vizwiz_needs(split: str) -> tuple[Needed, ...]:
    base = "https://vizwiz.cs.colorado.edu/VizWiz_final"
    return (
        Needed(path=f"annotations/{split}.json", source=f"{base}/vqa_data/Annotations.zip"),
        Needed(path=f"{split}/", source=f"{base}/images/{split}.zip"),
    )


def _read_vizwiz(source: SplitSource) -> Iterator[Item]:
    for entry in read_json(source.folder / "annotations" / f"{source.split}.json"):
        record = Record(
            record_id=entry["image"],
            image=source.folder / source.split / entry["image"],
            prefix=ANSWER.format(question=entry["question"]),
            references=tuple(a["answer"] for a in entry["answers"] if a["answer"]),
        )
        yield Item(record, entry.get("answer_type", ""))


VIZWIZVQA = Benchmark(
    name="vizwizvqa",
    title="VizWizVQA",
    task="answer",
    prompt=ANSWER,
    metrics={"VQA acc": DirectAnswerAccuracy()},
    splits={"val": ("VizWizVQA (val)", "VizWizVQA (test-std)"), "train": ()},
    needs=_vizwiz_needs,
    read=_read_vizwiz,
    homepage="https://vizwiz.org/tasks-and-datasets/vqa",
    max_new_tokens=48,
)
