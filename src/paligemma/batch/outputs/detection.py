"""COCO and YOLO: the objects of all images with a result, with the same classes for all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from paligemma.batch.journal import Entry
from paligemma.batch.outputs.rows import Content, utf8
from paligemma.errors import OptionError
from paligemma.masks import Ring, mask_to_polygons, rle_to_mask


def write_coco(content: Content, path: Path) -> None:
    """A COCO data set whose annotations have scores; ids follow the order of the keys."""
    categories = {name: number for number, name in enumerate(_class_names(content), start=1)}
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write('{"images": [')
        _write_items(file, _images(content))
        file.write('],\n"annotations": [')
        _write_items(file, _annotations(content, categories))
        file.write('],\n"categories": [')
        _write_items(file, ({"id": n, "name": name} for name, n in categories.items()))
        file.write("]}\n")


def _write_items(file: TextIO, items: Iterator[dict[str, Any]]) -> None:
    """One by one, so that no more than one is in memory."""
    for number, item in enumerate(items):
        file.write(",\n" if number else "\n")
        file.write(json.dumps(item, ensure_ascii=False, allow_nan=False))


def _with_result(content: Content) -> Iterator[tuple[Entry, dict[str, Any]]]:
    return ((entry, entry.result) for entry in content.entries() if entry.result is not None)


def _class_names(content: Content) -> list[str]:
    """What was asked for, in that order, then other labels by name."""
    asked: dict[str, None] = {}
    others: set[str] = set()
    for _, result in _with_result(content):
        asked |= dict.fromkeys(result["phrases"])
        others.update(each["label"] for each in result["objects"])
    return [*asked, *sorted(others - asked.keys())]


def _images(content: Content) -> Iterator[dict[str, Any]]:
    for number, (entry, result) in enumerate(_with_result(content), start=1):
        width, height = result["size_wh"]
        yield {"id": number, "width": width, "height": height, "file_name": utf8(entry.key)}


def _annotations(content: Content, categories: dict[str, int]) -> Iterator[dict[str, Any]]:
    number = 0
    for image_id, (_, result) in enumerate(_with_result(content), start=1):
        for each in result["objects"]:
            number += 1
            x1, y1, x2, y2 = each["box_xyxy"]
            annotation = {
                "id": number,
                "image_id": image_id,
                "category_id": categories[each["label"]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": each["score"],
            }
            if "mask" in each:
                mask = rle_to_mask(each["mask"], result["size_wh"], "the mask")
                annotation |= {"area": int(mask.sum()), "segmentation": each["mask"]}
            yield annotation


def write_yolo(content: Content, folder: Path) -> None:
    """labels/NAME.txt for each image, and data.yaml. Other files in the folder, such as the images
    that were put there for training, stay.

    The labels appear whole, and data.yaml is there only while they fit it. Raises OptionError when
    it cannot be written.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    labels, table = folder / "labels", folder / "data.yaml"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        unfinished.mkdir()
        (unfinished / "labels").mkdir()
        classes = {name: number for number, name in enumerate(_class_names(content))}
        for entry, result in _with_result(content):
            path = unfinished / "labels" / label_file(entry.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(_yolo_lines(result, classes)), encoding="utf-8")
        names = "".join(
            f"  {number}: {json.dumps(name, ensure_ascii=False)}\n"
            for name, number in classes.items()
        )
        text = f"path: .\ntrain: images\nval: images\nnames:\n{names}"
        (unfinished / table.name).write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        table.unlink(missing_ok=True)
        if labels.exists():
            labels.replace(unfinished / "previous")
        (unfinished / "labels").replace(labels)
        (unfinished / table.name).replace(table)
    except OSError as error:
        raise OptionError(f"{str(folder)!r} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def label_file(key: str, suffix: str = ".txt") -> PurePosixPath:
    """The file that belongs to an image, below some folder. Raises OptionError for a key outside.

    >>> label_file("a/1.jpg"), label_file("scan.pdf#page=0002")
    (PurePosixPath('a/1.txt'), PurePosixPath('scan.pdf#page=0002.txt'))
    """
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts or "://" in key or "\\" in key:
        raise OptionError(
            f"The image {key!r} has no place below a folder, so that there is no file for its "
            "result. Use jsonl, csv or parquet."
        )
    if "#" in path.name:
        return path.with_name(path.name + suffix)
    return path.with_suffix(suffix)


def _yolo_lines(result: dict[str, Any], classes: dict[str, int]) -> Iterator[str]:
    width, height = result["size_wh"]
    for each in result["objects"]:
        rings = []
        if "mask" in each:
            rings = mask_to_polygons(rle_to_mask(each["mask"], (width, height), "the mask"))
        if rings:
            corners = max(rings, key=_doubled_area)
            values = [edge for x, y in corners for edge in (x / width, y / height)]
        else:
            x1, y1, x2, y2 = each["box_xyxy"]
            values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
            values += [(x2 - x1) / width, (y2 - y1) / height]
        number = classes[each["label"]]
        yield " ".join((str(number), *(f"{value:.6f}" for value in values))) + "\n"


def _doubled_area(ring: Ring) -> int:
    pairs = zip(ring, [*ring[1:], ring[0]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs))
