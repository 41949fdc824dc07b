"""Boxes and masks of objects: COCO and DocLayNet, RefCOCO, RefCOCO+ and RefCOCOg.

COCO and DocLayNet ask for all boxes of an image, RefCOCO for the mask of the object that a phrase
refers to; each phrase is one record. The training splits of COCO and DocLayNet are read as any data
in COCO's format: `paligemma train annotations.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.data.formats import coco
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import ReadRequest
from paligemma.evals.datasets.benchmark import Benchmark, Item, SplitSource, coco_images
from paligemma.evals.datasets.files import read_json, read_plain_pickle
from paligemma.evals.datasets.prompts import DETECT_ALL, EXPRESSION
from paligemma.evals.metrics.detection import MeanAveragePrecision
from paligemma.evals.metrics.mask_iou import MaskIou
from paligemma.masks import Mask, polygons_to_mask, rle_to_mask

_NOTE = (
    "The paper's detection: all boxes in random order after 'detect all classes', noise boxes up "
    "to the full length; <noise> and the end token are never sampled."
)


def _read_coco(annotations: str, images: str, source: SplitSource) -> Iterator[Item]:
    """`annotations` and `images` have the split in place of braces."""
    entries = coco.read(
        source.folder / annotations.format(source.split),
        ReadRequest(images=source.folder / images.format(source.split)),
    ).entries
    for entry in entries:
        yield Item(replace(entry.build(), prefix=DETECT_ALL))


def _read_refcoco(folder: str, references: str, source: SplitSource) -> Iterator[Item]:
    instances = read_json(source.folder / folder / "instances.json")
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    for reference in read_plain_pickle(source.folder / folder / references):
        if reference["split"] != source.split:
            continue
        image = images[reference["image_id"]]
        annotation = annotations[reference["ann_id"]]
        for sentence in reference["sentences"]:
            yield Item(_refcoco_record(source.folder, image, annotation, sentence))


def _refcoco_record(
    folder: Path, image: dict[str, Any], annotation: dict[str, Any], sentence: dict[str, Any]
) -> Record:
    size_wh = image["width"], image["height"]
    where = f"The annotation {annotation['id']}"
    x, y, width, height = annotation["bbox"]
    true = TrueObject(
        label=sentence["sent"],
        box_xyxy=(x, y, x + width, y + height),
        make_mask=partial(_mask, annotation["segmentation"], size_wh, where),
    )
    return Record(
        record_id=str(sentence["sent_id"]),
        image=folder / "train2014" / image["file_name"],
        prefix=EXPRESSION.format(expression=sentence["sent"]),
        objects=(true,),
        size_wh=size_wh,
        where=where,
    )


def _mask(shape: Any, size_wh: tuple[int, int], where: str) -> Mask:
    if isinstance(shape, list):
        return polygons_to_mask(shape, size_wh, where)
    return rle_to_mask(shape, size_wh, where)


def _refcoco(name: str, title: str, references: str, splits: tuple[str, ...]) -> Benchmark:
    folder = title.lower()
    archive = f"https://bvisionweb1.cs.unc.edu/licheng/referit/data/{folder}.zip"
    return Benchmark(
        name=name,
        title=title,
        task="segment",
        prompt=EXPRESSION,
        metrics={"mIoU": MaskIou()},
        splits={**{split: (f"{title} ({split})",) for split in splits}, "train": ()},
        files=lambda split: {
            f"{folder}/{references}": archive,
            f"{folder}/instances.json": archive,
            **coco_images("train2014"),
        },
        read=partial(_read_refcoco, folder, references),
        homepage="https://github.com/lichengunc/refer",
        max_new_tokens=48,
        note="The answer is four loc and sixteen seg tokens without a label. The papers train on "
        "the three train sets together, without any image of a val or test set.",
    )


_DOCLAYNET = "https://github.com/DS4SD/DocLayNet"
_Detection = partial(
    Benchmark,
    task="detect",
    prompt=DETECT_ALL,
    metrics={"mAP": MeanAveragePrecision()},
    max_new_tokens=1024,
)
BENCHMARKS = (
    _refcoco("refcoco", "RefCOCO", "refs(unc).p", ("val", "testA", "testB")),
    _refcoco("refcoco+", "RefCOCO+", "refs(unc).p", ("val", "testA", "testB")),
    _refcoco("refcocog", "RefCOCOg", "refs(umd).p", ("val", "test")),
    _Detection(
        name="coco-detection",
        title="COCO detection",
        splits={"val2017": ("COCO detection",)},
        files=lambda split: {
            f"annotations/instances_{split}.json": "http://images.cocodataset.org/annotations/"
            "annotations_trainval2017.zip",
            **coco_images(split),
        },
        read=partial(_read_coco, "annotations/instances_{}.json", "{}"),
        homepage="https://cocodataset.org",
        note=_NOTE,
    ),
    _Detection(
        name="doclaynet",
        title="DocLayNet",
        splits={"test": ("DocLayNet",), "val": ()},
        files=lambda split: dict.fromkeys(
            (f"COCO/{split}.json", "PNG/"), f"{_DOCLAYNET}, DocLayNet_core.zip"
        ),
        read=partial(_read_coco, "COCO/{}.json", "PNG"),
        homepage=_DOCLAYNET,
        note=_NOTE + " The paper does not say which split it scored.",
    ),
)
