"""YOLO folders: data.yaml, and per image a text file with one line per object.

    class x_center y_center width height          a box
    class x1 y1 x2 y2 x3 y3 ...                   a polygon (also the four corners of a rotated box)

in fractions of the upright image. The text file of `.../images/a/1.jpg` is `.../labels/a/1.txt`,
or `1.txt` next to it. An image without one shows none of the classes.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.data.annotation import AnnotatedImage, clean_label
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    Entry,
    ReadOptions,
    Source,
    choose_split,
    existing_image,
    is_image,
    read_text,
)
from paligemma.errors import DataError, MissingExtraError, counted
from paligemma.masks import box_of_points, polygons_to_mask
from paligemma.processor.image import read_size_wh

NAME = "yolo"
UNLABELED = "images without a label file, taken to show none of the classes"
_SPLITS = ("train", "val", "valid", "test")


def recognizes(path: Path) -> bool:
    """A YAML file, or a folder with data.yaml or another YAML file that lists names."""
    return _yaml_file(path) is not None


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError for an invalid data.yaml, MissingExtraError without PyYAML."""
    file = _yaml_file(path)
    if file is None:
        raise DataError(
            f"{str(path)!r} holds no data.yaml with the class names of a YOLO data set."
        )
    content = _parse(file)
    names = _class_names(content.get("names"), file)
    splits = {name: content[name] for name in _SPLITS if content.get(name)}
    split, paths = choose_split(splits, options.split, str(file))
    images = _images(paths, content.get("path"), file)
    if not images:
        raise DataError(f"The split {split!r} of {str(file)!r} holds no images.")
    tally: Counter[str] = Counter()
    ids = _ids(images)
    entries = [
        Entry(
            record_id,
            f"Image {str(image)!r}",
            partial(_record, image, record_id, names, options.prefix, tally),
        )
        for record_id, image in zip(ids, images, strict=True)
    ]
    return Source(
        summary=f"{counted(len(entries), 'image')} of the split {split!r} in {file}",
        entries=entries,
        class_names=tuple(dict.fromkeys(names.values())),
        tally=tally,
    )


def _yaml_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    if not path.is_dir():
        return None
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".yaml", ".yml"))
    named = [p for p in files if p.stem == "data"]
    return next((p for p in (*named, *files) if "names" in read_text(p)), None)


def _parse(file: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("PyYAML", "data", "Reading a YOLO data.yaml") from error
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise DataError(f"{str(file)!r} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{str(file)!r} must hold the keys train (or val, test) and names.")
    return content


def _class_names(names: Any, file: Path) -> dict[int, str]:
    """By class number; YAML has a list or a map."""
    items = enumerate(names) if isinstance(names, list) else None
    if isinstance(names, dict) and all(type(number) is int for number in names):
        items = iter(names.items())  # type: ignore[assignment]
    if items is None or not names:
        raise DataError(f"{str(file)!r}: names is {names!r}; it must be a list of class names.")
    # YAML reads some names as numbers or truth values.
    return {number: clean_label(str(name), str(file)) for number, name in items}


def _images(paths: Any, root: Any, file: Path) -> list[Path]:
    folder = file.parent / str(root) if root else file.parent
    if not folder.is_dir():  # a path on the machine where the data set was made
        folder = file.parent
    images: list[Path] = []
    for relative in paths if isinstance(paths, list) else [paths]:
        path = folder / str(relative)
        if not path.exists() and str(relative).startswith("../"):
            path = folder / str(relative)[3:]  # some exports count from a folder below
        if path.is_dir():
            images += sorted(p for p in path.rglob("*") if is_image(p))
        elif path.is_file():
            lines = read_text(path).splitlines()
            images += [path.parent / line.strip() for line in lines if line.strip()]
        else:
            raise DataError(
                f"{str(file)!r} names {str(relative)!r}, which is neither a folder nor a file in "
                f"{str(folder)!r}. Correct path, train or val in it."
            )
    return images


def _ids(images: list[Path]) -> list[str]:
    """File names; full paths where several images have the same name."""
    names = Counter(image.name for image in images)
    return [p.name if names[p.name] == 1 else p.as_posix() for p in images]


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    indices = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if indices:
        parts[indices[-1]] = "labels"
        in_labels = Path(*parts).with_suffix(".txt")
        if in_labels.is_file():
            return in_labels
    return image.with_suffix(".txt")


def _record(
    image: Path, record_id: str, names: dict[int, str], prefix: str | None, tally: Counter[str]
) -> Record:
    where = f"Image {str(image)!r}"
    size_wh = read_size_wh(existing_image(image, where))
    annotated = AnnotatedImage(image=image, size_wh=size_wh, where=where, tally=tally)
    file = _label_file(image)
    lines: list[str] = []
    if file.is_file():
        lines = read_text(file).splitlines()
    else:
        tally[UNLABELED] += 1
    objects = [
        _object(line, names, annotated, f"Line {number} of {str(file)!r}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return annotated.record(record_id, prefix, objects)


def _object(line: str, names: dict[int, str], image: AnnotatedImage, where: str) -> TrueObject:
    try:
        first, *values = (float(word) for word in line.split())
    except ValueError as error:
        raise DataError(f"{where} is {line.strip()!r}; it must consist of numbers.") from error
    if first not in names:
        raise DataError(
            f"{where} is of class {first:g}; data.yaml names the classes {min(names)} to "
            f"{max(names)}."
        )
    name = names[int(first)]
    width, height = image.size_wh
    if len(values) == 4:
        x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height)
        corners = (*box, (x + w / 2) * width, (y + h / 2) * height)
        return image.object(name, corners, where=where)
    if len(values) < 6 or len(values) % 2:
        raise DataError(
            f"{where} has {len(values)} numbers after the class; 4 make a box, an even number "
            "from 6 on makes a polygon."
        )
    points = np.array(values).reshape(-1, 2) * (width, height)
    polygon = points.ravel().tolist()
    make_mask = partial(polygons_to_mask, [polygon], image.size_wh, where)
    return image.object(name, box_of_points(points), make_mask, where=where)
