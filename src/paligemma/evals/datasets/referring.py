"""RefCOCO, RefCOCO+ and RefCOCOg: the mask of the thing that a phrase means.

Each phrase is a question of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.data.mask_shapes import polygons_to_mask, rle_to_mask
from paligemma.data.record import Mask, Record, TrueObject
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, Place
from paligemma.evals.datasets.files import read_json
from paligemma.evals.datasets.plain_pickle import read_plain_pickle
from paligemma.evals.datasets.prompts import EXPRESSION
from paligemma.evals.metrics.mask_iou import MaskIou


def _needs(folder: str, references: str, split: str) -> tuple[Needed, ...]:
    source = f"https://bvisionweb1.cs.unc.edu/licheng/referit/data/{folder}.zip"
    return (
        Needed(path=f"{folder}/{references}", source=source),
        Needed(path=f"{folder}/instances.json", source=source),
        Needed(path="train2014/", source="http://images.cocodataset.org/zips/train2014.zip"),
    )


def _read(folder: str, references: str, place: Place) -> Iterator[Item]:
    whole = read_json(place.folder / folder / "instances.json")
    images = {image["id"]: image for image in whole["images"]}
    annotations = {annotation["id"]: annotation for annotation in whole["annotations"]}
    for reference in read_plain_pickle(place.folder / folder / references):
        if reference["split"] != place.split:
            continue
        image = images[reference["image_id"]]
        annotation = annotations[reference["ann_id"]]
        for sentence in reference["sentences"]:
            yield Item(_record(place.folder, image, annotation, sentence))


def _record(
    folder: Path, image: dict[str, Any], annotation: dict[str, Any], sentence: dict[str, Any]
) -> Record:
    size_wh = image["width"], image["height"]
    where = f"The annotation {annotation['id']}"
    x, y, width, height = annotation["bbox"]
    thing = TrueObject(
        label=sentence["sent"],
        box_xyxy=(x, y, x + width, y + height),
        make_mask=partial(_mask, annotation["segmentation"], size_wh, where),
    )
    return Record(
        record_id=str(sentence["sent_id"]),
        image=folder / "train2014" / image["file_name"],
        prefix=EXPRESSION.format(expression=sentence["sent"]),
        objects=(thing,),
        size_wh=size_wh,
        where=where,
    )


def _mask(shape: Any, size_wh: tuple[int, int], where: str) -> Mask:
    if isinstance(shape, list):
        return polygons_to_mask(shape, size_wh, where)
    return rle_to_mask(shape, size_wh, where)


def _benchmark(name: str, title: str, references: str, splits: tuple[str, ...]) -> Benchmark:
    folder = title.lower()
    return Benchmark(
        name=name,
        title=title,
        task="segment",
        prompt=EXPRESSION,
        metrics={"mIoU": MaskIou()},
        splits={**{split: (f"{title} ({split})",) for split in splits}, "train": ()},
        needs=partial(_needs, folder, references),
        read=partial(_read, folder, references),
        homepage="https://github.com/lichengunc/refer",
        max_new_tokens=48,
        note="The answer is four loc and sixteen seg tokens without a label. The papers train on "
        "the three train sets together, less every picture of any val or test set.",
    )


REFCOCO = _benchmark("refcoco", "RefCOCO", "refs(unc).p", ("val", "testA", "testB"))
REFCOCO_PLUS = _benchmark("refcoco+", "RefCOCO+", "refs(unc).p", ("val", "testA", "testB"))
REFCOCOG = _benchmark("refcocog", "RefCOCOg", "refs(umd).p", ("val", "test"))
