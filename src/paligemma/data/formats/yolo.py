"""YOLO folders: data.yaml, and for each picture a text file with a line an object.

    class x_center y_center width height          a box
    class x1 y1 x2 y2 x3 y3 ...                   a polygon (also the four corners of a turned box)

in fractions of the upright picture. The text file of `.../images/a/1.jpg` is
`.../labels/a/1.txt`, or `1.txt` beside it. A picture without one shows none of the classes.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.data.annotation import clean_label, make_object
from paligemma.data.mask_shapes import box_of_points, polygons_to_mask
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    PICTURE_SUFFIXES,
    Entry,
    ReadOptions,
    Source,
    choose_split,
    existing_picture,
    read_text,
)
from paligemma.errors import DataError, MissingExtraError
from paligemma.processor.image import read_size_wh

NAME = "yolo"
UNLABELLED = "pictures without a label file, taken to show none of the classes"
_SPLITS = ("train", "val", "valid", "test")


def is_here(path: Path) -> bool:
    """A YAML file, or a folder with data.yaml or another YAML file that lists names."""
    return _yaml_file(path) is not None


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError where data.yaml is not of this form, MissingExtraError without PyYAML."""
    file = _yaml_file(path)
    if file is None:
        raise DataError(f"{str(path)!r} holds no data.yaml, which names a YOLO data set's classes.")
    content = _parse(file)
    names = _class_names(content.get("names"), file)
    splits = {name: content[name] for name in _SPLITS if content.get(name)}
    split, places = choose_split(splits, options.split, str(file))
    pictures = _pictures(places, content.get("path"), file)
    if not pictures:
        raise DataError(f"The split {split!r} of {str(file)!r} holds no pictures.")
    tally: Counter[str] = Counter()
    ids = _ids(pictures)
    entries = [
        Entry(
            record_id,
            f"Picture {str(picture)!r}",
            partial(_build, picture, record_id, names, options, tally),
        )
        for record_id, picture in zip(ids, pictures, strict=True)
    ]
    return Source(
        format=NAME,
        found=f"{len(entries)} pictures of the split {split!r} in {file}",
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
        raise DataError(f"{str(file)!r}: names is {names!r}; a list of class names is needed.")
    # A name may look like a number or a truth value to YAML.
    return {number: clean_label(str(name), str(file)) for number, name in items}


def _pictures(places: Any, root: Any, file: Path) -> list[Path]:
    folder = file.parent / str(root) if root else file.parent
    if not folder.is_dir():  # a path on the machine where the set was made
        folder = file.parent
    pictures: list[Path] = []
    for place in places if isinstance(places, list) else [places]:
        path = folder / str(place)
        if not path.exists() and str(place).startswith("../"):
            path = folder / str(place)[3:]  # some exports count from a folder that is not there
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
            pictures += sorted(found)
        elif path.is_file():
            lines = read_text(path).splitlines()
            pictures += [path.parent / line.strip() for line in lines if line.strip()]
        else:
            raise DataError(
                f"{str(file)!r} names {str(place)!r}, which is neither a folder nor a file in "
                f"{str(folder)!r}. Correct path, train or val in it."
            )
    return pictures


def _ids(pictures: list[Path]) -> list[str]:
    """File names; with folders where two are the same."""
    names = Counter(picture.name for picture in pictures)
    return [p.name if names[p.name] == 1 else p.as_posix() for p in pictures]


def _label_file(picture: Path) -> Path:
    parts = list(picture.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
        beside = Path(*parts).with_suffix(".txt")
        if beside.is_file():
            return beside
    return picture.with_suffix(".txt")


def _build(
    picture: Path, record_id: str, names: dict[int, str], options: ReadOptions, tally: Counter[str]
) -> Record:
    where = f"Picture {str(picture)!r}"
    size_wh = read_size_wh(existing_picture(picture, where))
    file = _label_file(picture)
    lines: list[str] = []
    if file.is_file():
        lines = read_text(file).splitlines()
    else:
        tally[UNLABELLED] += 1
    objects = [
        _object(line, names, size_wh, f"Line {number} of {str(file)!r}", tally)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return Record(
        record_id=record_id,
        image=picture,
        prefix=options.prefix or "",
        objects=tuple(objects),
        size_wh=size_wh,
        where=where,
    )


def _object(
    line: str, names: dict[int, str], size_wh: tuple[int, int], where: str, tally: Counter[str]
) -> TrueObject:
    try:
        first, *values = (float(word) for word in line.split())
    except ValueError as error:
        raise DataError(f"{where} is {line.strip()!r}; numbers are needed.") from error
    if first not in names:
        raise DataError(
            f"{where} is of class {first:g}; data.yaml names the classes {min(names)} to "
            f"{max(names)}."
        )
    name = names[int(first)]
    width, height = size_wh
    if len(values) == 4:
        x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height)
        corners = (*box, (x + w / 2) * width, (y + h / 2) * height)
        return make_object(name, corners, size_wh, where, tally)
    if len(values) < 6 or len(values) % 2:
        raise DataError(
            f"{where} has {len(values)} numbers behind the class; 4 make a box, an even number "
            "from 6 on makes a polygon."
        )
    points = np.array(values).reshape(-1, 2) * (width, height)
    polygon = points.ravel().tolist()
    make_mask = partial(polygons_to_mask, [polygon], size_wh, where)
    return make_object(name, box_of_points(points), size_wh, where, tally, make_mask)
