"""COCO annotations: boxes, masks (polygons or run lengths) and captions, in one JSON file.

Boxes are x, y, width, height in pixels. Crowds (`iscrowd`), which cover many objects at once, are
kept apart and counted. Images are looked for next to the file, in `images` next to it, and where
COCO's own folders have them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.data.annotation import AnnotatedImage, Shape, clean_label, is_number, size_of
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    DEFAULT_CAPTION_PREFIX,
    Entry,
    ImageFinder,
    ReadRequest,
    Source,
    choose_split,
    is_file,
    read_text,
)
from paligemma.errors import DataError, OptionError, counted
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


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError when the file as a whole is not of this format, OptionError where two files
    or two kinds of annotations could be meant."""
    tally: Counter[str] = Counter()
    split: str | None = None
    splits: tuple[str, ...] = ()
    if path.is_dir():
        files = _files(path)
        split, paths = choose_split(files, options, str(path))
        splits, path = tuple(files), _choose_file(paths, split, options.column, tally)
    content = _parse(path)
    names = _class_names(content, path)
    images, annotations = _by_image(content, tally)
    learns_captions = _learns_captions(content, options.column, path)
    finder = ImageFinder(_image_folders(path, options, images), tally)
    reading = _Reading(names=names, finder=finder, options=options, tally=tally)
    record = reading.caption_record if learns_captions else reading.object_record
    entries = []
    for image in images:
        where = f"Image {image['id']} of {str(path)!r}"
        of_image = annotations.get(str(image["id"]), [])
        entries.append(Entry(str(image["id"]), where, partial(record, image, of_image, where)))
    if not entries:
        raise DataError(f"The COCO file {str(path)!r} lists no images.")
    return Source(
        summary=f"{counted(len(entries), 'image')} and "
        f"{counted(len(content['annotations']), 'annotation')} in {path.name}",
        entries=entries,
        class_names=() if learns_captions else _listed_classes(content, names, tally),
        tally=tally,
        split=split,
        splits=splits,
    )


def _files(folder: Path) -> dict[str, list[Path]]:
    """Annotation files by split: `instances_train2017.json` is "train2017"."""
    files: dict[str, list[Path]] = {}
    for parent in (folder, folder / "annotations") if folder.is_dir() else ():
        for path in sorted(parent.glob("*.json")):
            if _is_coco(path):
                files.setdefault(path.stem.split("_")[-1], []).append(path)
    for path in sorted(folder.glob(f"*/{_ROBOFLOW_FILE}")):
        files.setdefault(path.parent.name, []).append(path)
    return files


def _choose_file(paths: list[Path], split: str, column: str | None, tally: Counter[str]) -> Path:
    """The only file of a split; boxes before keypoints, which repeat those of one class."""
    chosen = [path for path in paths if "keypoints" not in path.stem] or paths
    if column is not None and len(chosen) > 1:
        is_caption = column.startswith("caption")
        chosen = [path for path in chosen if path.stem.startswith("captions") == is_caption]
    if len(chosen) != 1:
        raise OptionError(
            f"The split {split!r} has several files: {', '.join(map(str, paths))}. Give one of "
            "them as the data, or choose with --column objects or --column caption."
        )
    for path in set(paths) - set(chosen):
        tally[f"other file of this split was not read: {path.name}"] += 1
    return chosen[0]


def _is_coco(path: Path) -> bool:
    if path.name == _ROBOFLOW_FILE or path.stem.split("_")[0] in ("instances", "captions"):
        return True
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            is_object = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
            if not is_object or b'"shapes"' in head:  # LabelMe's files hold whole images
                return False
            text = head + file.read() if b'"images"' not in head else head
            if b'"images"' not in text:
                return False
            return b'"annotations"' in text or b'"annotations"' in file.read()
    except OSError:
        return False


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
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


def _class_names(content: dict[str, Any], path: Path) -> dict[str, str]:
    """By category id, as text: some tools write 1 in one place and "1" in another."""
    names: dict[str, str] = {}
    for category in content.get("categories", []):
        name = clean_label(category.get("name"), f"The categories of {str(path)!r}")
        key = str(category["id"])
        if names.setdefault(key, name) != name:
            raise DataError(
                f"Two categories of {str(path)!r} have the id {key}: {names[key]!r} and {name!r}. "
                "Give each an id of its own."
            )
    return names


def _listed_classes(
    content: dict[str, Any], names: dict[str, str], tally: Counter[str]
) -> tuple[str, ...]:
    """Without a root of all classes that no annotation uses, which some tools list."""
    categories = content.get("categories", [])
    used = {str(annotation.get("category_id")) for annotation in content["annotations"]}
    parents = {str(category["name"]): str(category.get("supercategory")) for category in categories}
    roots = set()
    for key, name in names.items():
        of_others = {parent for other, parent in parents.items() if parent != other != name}
        has_none = parents.get(name, "").casefold() in ("none", "")
        if key not in used and has_none and of_others == {name}:
            roots.add(key)
            tally[f"class left out, the parent of all others: {name}"] = 1
    return tuple(dict.fromkeys(name for key, name in names.items() if key not in roots))


def _by_image(
    content: dict[str, Any], tally: Counter[str]
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The images, each file once, and annotations by image id, as text."""
    first_with_name: dict[str, str] = {}
    same_as: dict[str, str] = {}
    images = []
    for image in content["images"]:
        first = first_with_name.setdefault(str(image["file_name"]), str(image["id"]))
        if first != str(image["id"]):
            same_as[str(image["id"])] = first
            tally["images listed again under another id, whose annotations were merged"] += 1
        else:
            images.append(image)
    annotations: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        image_id = str(annotation["image_id"])
        annotations[same_as.get(image_id, image_id)].append(annotation)
    image_ids = {str(image["id"]) for image in images}
    if lost := sum(len(items) for key, items in annotations.items() if key not in image_ids):
        tally["annotations left out whose image_id no image has"] = lost
    return images, annotations


def _learns_captions(content: dict[str, Any], column: str | None, path: Path) -> bool:
    """Raises OptionError where annotations have both captions and boxes, and neither is chosen."""
    has_captions = any("caption" in annotation for annotation in content["annotations"])
    has_boxes = any("bbox" in annotation for annotation in content["annotations"])
    if column is not None:
        return column.startswith("caption")
    if has_captions and has_boxes:
        raise OptionError(
            f"{str(path)!r} has captions and boxes. Choose what to learn: --column objects or "
            "--column caption."
        )
    return has_captions


def _image_folders(path: Path, options: ReadRequest, images: list[dict[str, Any]]) -> list[Path]:
    """The folder with most of the first images first; the file's own where none exists."""
    if options.images is not None:
        return [options.images]
    own, parent = path.parent, path.parent.parent
    split = path.stem.split("_")[-1]
    folders = [own, own / "images", own / split, own / "images" / split]
    folders += [parent / split, parent / "images" / split, parent / "images", parent]
    names = [str(image["file_name"]) for image in images[:20]]
    best = max(folders, key=lambda folder: sum(is_file(folder / name) for name in names))
    # Other folders are searched only where they belong to the data set for certain.
    return [best, own, own / "images", *(f for f in folders if f.name == split and f.is_dir())]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the records of one file have in common."""

    names: dict[str, str]
    finder: ImageFinder
    options: ReadRequest
    tally: Counter[str]

    def caption_record(
        self, image: dict[str, Any], annotations: list[dict[str, Any]], where: str
    ) -> Record:
        captions = tuple(str(annotation.get("caption", "")).strip() for annotation in annotations)
        if not captions or not all(captions):
            raise DataError(
                f"{where} has no caption, or an empty one. Add it, or remove the image."
            )
        return Record(
            record_id=str(image["id"]),
            image=self.finder.find(str(image["file_name"]), where),
            prefix=self.options.prefix or DEFAULT_CAPTION_PREFIX,
            references=captions,
            where=where,
        )

    def object_record(
        self, image: dict[str, Any], annotations: list[dict[str, Any]], where: str
    ) -> Record:
        path = self.finder.find(str(image["file_name"]), where)
        size_wh = size_of(image.get("width"), image.get("height"), where) or read_size_wh(path)
        annotated = AnnotatedImage(
            image=path, size_wh=size_wh, where=where, tally=self.tally, boxes=self.options.boxes
        )
        objects: list[TrueObject | None] = []
        crowds: list[TrueObject | None] = []
        for annotation in annotations:
            item = self._object(annotation, annotated)
            is_crowd = str(annotation.get("iscrowd") or 0) not in ("0", "False", "false")
            if is_crowd and self.options.crowds == "ignore":
                self.tally[CROWDS] += 1
                crowds.append(item)
            else:
                objects.append(item)
        return annotated.record(str(image["id"]), self.options.prefix, objects, crowds)

    def _object(self, annotation: dict[str, Any], image: AnnotatedImage) -> TrueObject | None:
        where = f"{image.where}, annotation {annotation.get('id', '?')}"
        category = annotation.get("category_id")
        if not isinstance(category, str | int) or str(category) not in self.names:
            raise DataError(f"{where} is of category {category!r}, which the file does not list.")
        shape = Shape.of_segmentation(annotation.get("segmentation"), where, self.tally)
        box, corners = annotation.get("bbox"), None
        if box is not None or shape is None or self.options.boxes != "from-masks":
            if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
                raise DataError(f"{where}: the bbox is {box!r}; it must be [x, y, width, height].")
            x, y, width, height = box
            corners = (x, y, x + width, y + height)
        area: Any = annotation.get("area")
        return image.object(
            self.names[str(category)],
            corners,
            shape,
            area=float(area) if is_number(area) and area >= 0 else None,
            where=where,
        )
