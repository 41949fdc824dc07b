"""COCO annotations: boxes, masks (polygons or run lengths) and captions, in one JSON file.

Boxes are x, y, width, height in pixels. Crowds (`iscrowd`), which stand for many things at once,
are kept apart and counted. Pictures are looked for beside the file, in `images` beside it, and
where COCO's own folders have them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.data.annotation import clean_label, make_object, size_of
from paligemma.data.mask_shapes import polygons_to_mask, rle_to_mask
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    Entry,
    ReadOptions,
    Source,
    choose_split,
    existing_picture,
    read_text,
)
from paligemma.errors import DataError
from paligemma.processor.image import read_size_wh

NAME = "coco"
CROWDS = "crowd annotations kept out of training"
_ROBOFLOW_FILE = "_annotations.coco.json"
_HEAD = 4096  # characters; keys of the whole come early, or the name of the file says it


def is_here(path: Path) -> bool:
    """A JSON file with "images" and "annotations", or a folder that holds such files."""
    if path.is_file():
        return path.suffix.lower() == ".json" and _looks_right(path)
    return bool(_files(path))


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError when the file as a whole is not of this format."""
    if path.is_dir():
        _, path = choose_split(_files(path), options.split, str(path))
    whole = _parse(path)
    tally: Counter[str] = Counter()
    names = {
        category["id"]: clean_label(category.get("name"), f"The categories of {str(path)!r}")
        for category in whole.get("categories", [])
    }
    annotations: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in whole["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    has_captions = any("caption" in annotation for annotation in whole["annotations"])
    known = {image["id"] for image in whole["images"]}
    if lost := sum(len(found) for image_id, found in annotations.items() if image_id not in known):
        tally["annotations left out whose image_id no picture has"] = lost
    folder = options.images or _picture_folder(path, [str(i["file_name"]) for i in whole["images"]])
    entries = []
    for image in whole["images"]:
        where = f"Picture {image['id']} of {str(path)!r}"
        found = annotations.get(image["id"], [])
        build = (
            partial(_caption_record, image, found, folder, where, options.prefix or "caption en")
            if has_captions
            else partial(_object_record, image, found, names, folder, where, options, tally)
        )
        entries.append(Entry(str(image["id"]), where, build))
    if not entries:
        raise DataError(f"The COCO file {str(path)!r} lists no pictures.")
    # Some tools put a parent of all classes first, which labels nothing.
    used = {str(annotation.get("category_id")) for annotation in whole["annotations"]}
    parents = {
        str(category.get("supercategory"))
        for category in whole.get("categories", [])
        if category.get("supercategory") != category["name"]
    }
    class_names = [n for i, n in names.items() if str(i) in used or n not in parents]
    return Source(
        format=NAME,
        found=f"{len(entries)} pictures and {len(whole['annotations'])} annotations "
        f"in {path.name}, pictures in {folder}",
        entries=entries,
        class_names=tuple(dict.fromkeys(class_names)),
        tally=tally,
    )


def _files(folder: Path) -> dict[str, Path]:
    """Annotation files by split: `instances_train2017.json` is "train2017"."""
    if not folder.is_dir():
        return {}
    files: dict[str, Path] = {}
    for place in (folder, folder / "annotations"):
        for path in sorted(place.glob("*.json")):
            if _looks_right(path):
                files[path.stem.split("_")[-1] if "_" in path.stem else path.stem] = path
    for path in sorted(folder.glob(f"*/{_ROBOFLOW_FILE}")):
        files[path.parent.name] = path
    return files


def _looks_right(path: Path) -> bool:
    if path.name == _ROBOFLOW_FILE or path.stem.split("_")[0] in ("instances", "captions"):
        return True
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if b'"images"' in head or b'"annotations"' in head or b'"categories"' in head:
                return True
            if b'"info"' not in head and b'"licenses"' not in head:
                return False
            return b'"annotations"' in file.read()
    except OSError:
        return False


def _parse(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"The COCO file {str(path)!r} is not JSON: {error}.") from error
    lists = {
        "images": ("id", "file_name"),
        "annotations": ("image_id",),
        "categories": ("id",),
    }
    for name, keys in lists.items():
        items = (
            whole.get(name, [] if name == "categories" else None)
            if isinstance(whole, dict)
            else None
        )
        if not isinstance(items, list):
            raise DataError(
                f"The COCO file {str(path)!r} has no list {name!r}; it must have images and "
                "annotations."
            )
        for place, item in enumerate(items):
            missing = [k for k in keys if not isinstance(item, dict) or item.get(k) is None]
            if missing or not all(isinstance(item[k], str | int) for k in keys):
                raise DataError(
                    f"{name}[{place}] of {str(path)!r} lacks {', '.join(missing or keys)}."
                )
    assert isinstance(whole, dict)
    return whole


def _picture_folder(path: Path, names: list[str]) -> Path:
    """Where most of the first pictures are; beside the file where none are anywhere."""
    here, above = path.parent, path.parent.parent
    split = path.stem.split("_")[-1]
    near = [here, here / "images", here / split, here / "images" / split]
    places = [*near, above / split, above / "images" / split, above / "images", above]
    return max(places, key=lambda place: sum((place / name).is_file() for name in names[:20]))


def _caption_record(
    image: dict[str, Any], found: list[dict[str, Any]], folder: Path, where: str, prefix: str
) -> Record:
    captions = tuple(str(annotation.get("caption", "")).strip() for annotation in found)
    if not captions or not all(captions):
        raise DataError(f"{where} has no caption, or an empty one. Remove the picture or write it.")
    return Record(
        record_id=str(image["id"]),
        image=existing_picture(folder / str(image["file_name"]), where),
        prefix=prefix,
        references=captions,
        where=where,
    )


def _object_record(
    image: dict[str, Any],
    found: list[dict[str, Any]],
    names: dict[Any, str],
    folder: Path,
    where: str,
    options: ReadOptions,
    tally: Counter[str],
) -> Record:
    path = existing_picture(folder / str(image["file_name"]), where)
    size_wh = size_of(image.get("width"), image.get("height"), where) or read_size_wh(path)
    objects: list[TrueObject] = []
    crowds: list[TrueObject] = []
    for annotation in found:
        thing = _object(annotation, names, size_wh, where, tally)
        (crowds if annotation.get("iscrowd") else objects).append(thing)
    if crowds:
        tally[CROWDS] += len(crowds)
    return Record(
        record_id=str(image["id"]),
        image=path,
        prefix=options.prefix or "",
        objects=tuple(objects),
        crowds=tuple(crowds),
        size_wh=size_wh,
        where=where,
    )


def _object(
    annotation: dict[str, Any],
    names: dict[Any, str],
    size_wh: tuple[int, int],
    where: str,
    tally: Counter[str],
) -> TrueObject:
    where = f"{where}, annotation {annotation.get('id', '?')}"
    category = annotation.get("category_id")
    if not isinstance(category, str | int) or category not in names:
        raise DataError(f"{where} is of category {category!r}, which the file does not list.")
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(edge) for edge in box):
        raise DataError(f"{where}: the bbox is {box!r}; [x, y, width, height] is needed.")
    x, y, width, height = box
    shape = annotation.get("segmentation")
    make_mask = None
    if shape:  # an empty list, in some exports, where there are only boxes
        make = rle_to_mask if isinstance(shape, dict) else polygons_to_mask
        make_mask = partial(make, shape, size_wh, where)
    corners = (x, y, x + width, y + height)
    area: Any = annotation.get("area")
    return make_object(
        names[category],
        corners,
        size_wh,
        where,
        tally,
        make_mask,
        area=float(area) if _is_number(area) and area >= 0 else None,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
