"""COCO annotations: boxes, masks (polygons or run lengths) and captions, in one JSON file.

Boxes are x, y, width, height in pixels. Crowds (`iscrowd`), which cover many objects at once, are
kept apart and counted. Images are looked for next to the file, in `images` next to it, and where
COCO's own folders have them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.data.annotation import AnnotatedImage, clean_label, size_of
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    DEFAULT_CAPTION_PREFIX,
    Entry,
    ReadOptions,
    Source,
    choose_split,
    existing_image,
    read_text,
)
from paligemma.errors import DataError, counted
from paligemma.masks import polygons_to_mask, rle_to_mask
from paligemma.processor.image import read_size_wh

NAME = "coco"
CROWDS = "crowd annotations kept out of training"
_ROBOFLOW_FILE = "_annotations.coco.json"
_HEAD = 4096  # bytes in which the top-level keys appear, unless the file's name is telling


def recognizes(path: Path) -> bool:
    """A JSON file with "images" and "annotations", or a folder that holds such files."""
    if path.is_file():
        return path.suffix.lower() == ".json" and _is_coco(path)
    return bool(_files(path))


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError when the file as a whole is not of this format."""
    if path.is_dir():
        _, path = choose_split(_files(path), options.split, str(path))
    content = _parse(path)
    tally: Counter[str] = Counter()
    names = {
        category["id"]: clean_label(category.get("name"), f"The categories of {str(path)!r}")
        for category in content.get("categories", [])
    }
    annotations: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    has_captions = any("caption" in annotation for annotation in content["annotations"])
    image_ids = {image["id"] for image in content["images"]}
    if lost := sum(len(items) for key, items in annotations.items() if key not in image_ids):
        tally["annotations left out whose image_id no image has"] = lost
    folder = options.images or _image_folder(path, [str(i["file_name"]) for i in content["images"]])
    entries = []
    for image in content["images"]:
        where = f"Image {image['id']} of {str(path)!r}"
        of_image = annotations.get(image["id"], [])
        prefix = options.prefix
        build = (
            partial(_caption_record, image, of_image, folder, where, prefix)
            if has_captions
            else partial(_object_record, image, of_image, names, folder, where, prefix, tally)
        )
        entries.append(Entry(str(image["id"]), where, build))
    if not entries:
        raise DataError(f"The COCO file {str(path)!r} lists no images.")
    # Some tools list a parent of all classes first, which no annotation uses.
    used = {str(annotation.get("category_id")) for annotation in content["annotations"]}
    parents = {
        str(category.get("supercategory"))
        for category in content.get("categories", [])
        if category.get("supercategory") != category["name"]
    }
    class_names = [n for i, n in names.items() if str(i) in used or n not in parents]
    return Source(
        summary=f"{counted(len(entries), 'image')} and "
        f"{counted(len(content['annotations']), 'annotation')} "
        f"in {path.name}, images in {folder}",
        entries=entries,
        class_names=tuple(dict.fromkeys(class_names)),
        tally=tally,
    )


def _files(folder: Path) -> dict[str, Path]:
    """Annotation files by split: `instances_train2017.json` is "train2017"."""
    if not folder.is_dir():
        return {}
    files: dict[str, Path] = {}
    for parent in (folder, folder / "annotations"):
        for path in sorted(parent.glob("*.json")):
            if _is_coco(path):
                files[path.stem.split("_")[-1] if "_" in path.stem else path.stem] = path
    for path in sorted(folder.glob(f"*/{_ROBOFLOW_FILE}")):
        files[path.parent.name] = path
    return files


def _is_coco(path: Path) -> bool:
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
        content = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"The COCO file {str(path)!r} is not JSON: {error}.") from error
    lists = {"images": ("id", "file_name"), "annotations": ("image_id",), "categories": ("id",)}
    for name, keys in lists.items():
        items = (
            content.get(name, [] if name == "categories" else None)
            if isinstance(content, dict)
            else None
        )
        if not isinstance(items, list):
            raise DataError(
                f"The COCO file {str(path)!r} has no list {name!r}; it must have images and "
                "annotations."
            )
        for index, item in enumerate(items):
            missing = [k for k in keys if not isinstance(item, dict) or item.get(k) is None]
            if missing or not all(isinstance(item[k], str | int) for k in keys):
                raise DataError(
                    f"{name}[{index}] of {str(path)!r} lacks {', '.join(missing or keys)}."
                )
    assert isinstance(content, dict)
    return content


def _image_folder(path: Path, names: list[str]) -> Path:
    """The folder with most of the first images; the file's own where no image exists anywhere."""
    own, parent = path.parent, path.parent.parent
    split = path.stem.split("_")[-1]
    folders = [own, own / "images", own / split, own / "images" / split]
    folders += [parent / split, parent / "images" / split, parent / "images", parent]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names[:20]))


def _caption_record(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    folder: Path,
    where: str,
    prefix: str | None,
) -> Record:
    captions = tuple(str(annotation.get("caption", "")).strip() for annotation in annotations)
    if not captions or not all(captions):
        raise DataError(f"{where} has no caption, or an empty one. Add it, or remove the image.")
    return Record(
        record_id=str(image["id"]),
        image=existing_image(folder / str(image["file_name"]), where),
        prefix=prefix or DEFAULT_CAPTION_PREFIX,
        references=captions,
        where=where,
    )


def _object_record(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    names: dict[Any, str],
    folder: Path,
    where: str,
    prefix: str | None,
    tally: Counter[str],
) -> Record:
    path = existing_image(folder / str(image["file_name"]), where)
    size_wh = size_of(image.get("width"), image.get("height"), where) or read_size_wh(path)
    annotated = AnnotatedImage(image=path, size_wh=size_wh, where=where, tally=tally)
    objects: list[TrueObject] = []
    crowds: list[TrueObject] = []
    for annotation in annotations:
        item = _object(annotation, names, annotated)
        (crowds if annotation.get("iscrowd") else objects).append(item)
    if crowds:
        tally[CROWDS] += len(crowds)
    return annotated.record(str(image["id"]), prefix, objects, crowds)


def _object(annotation: dict[str, Any], names: dict[Any, str], image: AnnotatedImage) -> TrueObject:
    where = f"{image.where}, annotation {annotation.get('id', '?')}"
    category = annotation.get("category_id")
    if not isinstance(category, str | int) or category not in names:
        raise DataError(f"{where} is of category {category!r}, which the file does not list.")
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(edge) for edge in box):
        raise DataError(f"{where}: the bbox is {box!r}; it must be [x, y, width, height].")
    x, y, width, height = box
    segmentation = annotation.get("segmentation")
    make_mask = None
    if segmentation:  # some exports have an empty list where there are only boxes
        make = rle_to_mask if isinstance(segmentation, dict) else polygons_to_mask
        make_mask = partial(make, segmentation, image.size_wh, where)
    area: Any = annotation.get("area")
    return image.object(
        names[category],
        (x, y, x + width, y + height),
        make_mask,
        area=float(area) if _is_number(area) and area >= 0 else None,
        where=where,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
