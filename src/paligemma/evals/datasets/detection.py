"""COCO and DocLayNet: all boxes of a picture. Both are in COCO's form.

Their train sets are read as any data of that form: `paligemma train annotations.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from paligemma.data.formats import coco
from paligemma.data.source import ReadOptions
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, Place
from paligemma.evals.datasets.prompts import DETECT_ALL
from paligemma.evals.metrics.detection import MeanAveragePrecision

_NOTE = (
    "The paper's detection: every box in random order after 'detect all classes', noise boxes up "
    "to the full length, <noise> and the end kept from being drawn."
)


def _read(annotations: str, pictures: str, place: Place) -> Iterator[Item]:
    """`annotations` and `pictures` name the split where they have braces."""
    source = coco.read(
        place.folder / annotations.format(place.split),
        ReadOptions(images=place.folder / pictures.format(place.split)),
    )
    for entry in source.entries:
        yield Item(replace(entry.build(), prefix=DETECT_ALL))


def _needs(
    annotations: str, pictures: str, sources: tuple[str, str], split: str
) -> tuple[Needed, ...]:
    return (
        Needed(path=annotations.format(split), source=sources[0]),
        Needed(path=f"{pictures.format(split)}/", source=sources[1].format(split)),
    )


_COCO = ("annotations/instances_{}.json", "{}")
_COCO_SOURCES = (
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    "http://images.cocodataset.org/zips/{}.zip",
)
COCO_DETECTION = Benchmark(
    name="coco-detection",
    title="COCO detection",
    task="detect",
    prompt=DETECT_ALL,
    metrics={"mAP": MeanAveragePrecision()},
    splits={"val2017": ("COCO detection",)},
    needs=partial(_needs, *_COCO, _COCO_SOURCES),
    read=partial(_read, *_COCO),
    homepage="https://cocodataset.org",
    max_new_tokens=1024,
    note=_NOTE,
)

_DOCLAYNET = ("COCO/{}.json", "PNG")
_DOCLAYNET_SOURCES = ("https://github.com/DS4SD/DocLayNet, DocLayNet_core.zip",) * 2
DOCLAYNET = Benchmark(
    name="doclaynet",
    title="DocLayNet",
    task="detect",
    prompt=DETECT_ALL,
    metrics={"mAP": MeanAveragePrecision()},
    splits={"test": ("DocLayNet",), "val": ()},
    needs=partial(_needs, *_DOCLAYNET, _DOCLAYNET_SOURCES),
    read=partial(_read, *_DOCLAYNET),
    homepage="https://github.com/DS4SD/DocLayNet",
    max_new_tokens=1024,
    note=_NOTE + " The paper does not say which split it scored.",
)
