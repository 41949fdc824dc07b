"""TallyQA and CountBenchQA: how many are there?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paligemma.data.record import Record
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_json, read_table
from paligemma.evals.datasets.prompts import ANSWER
from paligemma.evals.metrics.counting import CountAccuracy

_GENOME = ("VG_100K", "VG_100K_2")
_TALLYQA = "https://github.com/manoja328/tallyqa, tallyqa.zip"


def _tallyqa_needs(split: str) -> tuple[Needed, ...]:
    genome = (
        Needed(path=f"{name}/", source=f"https://cs.stanford.edu/people/rak248/VG_100K_2/{zipped}")
        for name, zipped in zip(_GENOME, ("images.zip", "images2.zip"), strict=True)
    )
    coco = (
        Needed(path=f"{name}/", source=f"http://images.cocodataset.org/zips/{name}.zip")
        for name in ("train2014", "val2014")
    )
    if split == "train":
        return Needed(path="train.json", source=_TALLYQA), *genome, *coco
    return Needed(path="test.json", source=_TALLYQA), *genome


def _read_tallyqa(source: SplitSource) -> Iterator[Item]:
    """`image` is "VG_100K_2/1.jpg"; only test separates simple from complex questions."""
    name = "train" if source.split == "train" else "test"
    for entry in read_json(source.folder / f"{name}.json"):
        kind = "simple" if entry.get("issimple") else "complex"
        if name == "test" and source.split != kind:
            continue
        record = Record(
            record_id=f"{entry['image_id']}-{entry['question_id']}",
            image=source.folder / entry["image"],
            prefix=ANSWER.format(question=entry["question"]),
            suffix=str(int(entry["answer"])),
            references=(str(int(entry["answer"])),),
        )
        yield Item(record)


TALLYQA = Benchmark(
    name="tallyqa",
    title="TallyQA",
    task="answer",
    prompt=ANSWER,
    metrics={"acc": CountAccuracy()},
    splits={"simple": ("TallyQA (simple)",), "complex": ("TallyQA (complex)",), "train": ()},
    needs=_tallyqa_needs,
    read=_read_tallyqa,
    homepage="https://github.com/manoja328/TallyQA_dataset",
    max_new_tokens=32,
)

_COUNTBENCH_TABLE = "train-00000-of-00001-cf54c241ba947306.parquet"
_COUNTBENCH_QUESTIONS = "countbench_paired_questions.json"


def _countbench_needs(split: str) -> tuple[Needed, ...]:
    return (
        Needed(
            path=_COUNTBENCH_TABLE,
            source=f"https://huggingface.co/datasets/nielsr/countbench, data/{_COUNTBENCH_TABLE}",
        ),
        Needed(
            path=_COUNTBENCH_QUESTIONS,
            source="https://github.com/google-research/big_vision, "
            f"big_vision/datasets/countbenchqa/data/{_COUNTBENCH_QUESTIONS}",
        ),
    )


def _read_countbench(source: SplitSource) -> Iterator[Item]:
    """Question n belongs to row n; rows with a missing or gray image are left out."""
    questions = read_json(source.folder / _COUNTBENCH_QUESTIONS)
    table: Path = source.folder / _COUNTBENCH_TABLE
    rows = read_table(table, "image", color_only=True)
    for number, (question, row) in enumerate(zip(questions, rows, strict=True)):
        if row.image is None:
            continue
        count = str(int(row.values["number"]))
        record = Record(
            record_id=str(number),
            image=row.image,
            prefix=ANSWER.format(question=question["question"]),
            suffix=count,
            references=(count,),
        )
        yield Item(record)


COUNTBENCHQA = Benchmark(
    name="countbenchqa",
    title="CountBenchQA",
    task="answer",
    prompt=ANSWER,
    metrics={"acc": CountAccuracy()},
    splits={"huggingface": ("CountBenchQA",)},
    needs=_countbench_needs,
    read=_read_countbench,
    homepage="https://teaching-clip-to-count.github.io",
    max_new_tokens=32,
    note="For a model that was trained on TallyQA.",
)
