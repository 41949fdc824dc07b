"""POPE: does the model see what is not there?"""

from __future__ import annotations

from collections.abc import Iterator

from paligemma.data.record import Record
from paligemma.evals.benchmarks.benchmark import Benchmark, Item, Needed, Place
from paligemma.evals.benchmarks.files import read_json_lines
from paligemma.evals.benchmarks.prompts import ANSWER
from paligemma.evals.metrics.accuracy import ExactMatch

_KINDS = ("random", "popular", "adversarial")


def _kinds(split: str) -> tuple[str, ...]:
    return _KINDS if split == "all" else (split,)


def _needs(split: str) -> tuple[Needed, ...]:
    site = "https://github.com/AoiDragon/POPE, output/coco"
    return (
        *(Needed(path=f"pope/coco_pope_{kind}.json", source=site) for kind in _kinds(split)),
        Needed(path="val2014/", source="http://images.cocodataset.org/zips/val2014.zip"),
    )


def _read(place: Place) -> Iterator[Item]:
    for kind in _kinds(place.split):
        entries = read_json_lines(place.folder / "pope" / f"coco_pope_{kind}.json")
        for number, entry in enumerate(entries):
            record = Record(
                record_id=f"{kind}-{number}",
                image=place.folder / "val2014" / entry["image"],
                prefix=ANSWER.format(question=entry["text"]),
                suffix=entry["label"],
                references=(entry["label"],),
            )
            yield Item(record, kind)


POPE = Benchmark(
    name="pope",
    title="POPE",
    task="answer",
    prompt=ANSWER,
    metrics={"acc": ExactMatch(ignore_case=True)},
    splits={"all": ("POPE",), **{kind: (f"POPE ({kind})",) for kind in _KINDS}},
    needs=_needs,
    read=_read,
    homepage="https://github.com/AoiDragon/POPE",
    max_new_tokens=48,
    mean_of_groups=True,
    note="Asked of a model that was trained on VQAv2. The prompt is the paper's; big_vision's "
    "config asks without 'answer en'.",
)
