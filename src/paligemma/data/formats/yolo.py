"""YOLO: per image a text file with one line per object.

    class x_center y_center width height          a box; a further number, of confidence, is ignored
    class x1 y1 x2 y2 x3 y3 ...                   a polygon (also the four corners of a rotated box)
    class x_center y_center width height x y v .. a box and keypoints, where data.yaml has kpt_shape

Without kpt_shape, lines that could be either are a question to the user. All numbers are in
fractions of the upright image. The text file of `.../images/a/1.jpg` is `.../labels/a/1.txt`,
or `1.txt` next to it. An image without one shows none of the classes.

Classes and splits are in data.yaml, in darknet's obj.data, or the classes alone in a file such as
classes.txt next to the labels.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paligemma.data.annotation import AnnotatedImage, Shape, clean_label
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    Entry,
    ReadRequest,
    Source,
    choose_split,
    existing_image,
    is_image,
    is_split_name,
    read_text,
)
from paligemma.errors import DataError, MissingExtraError, OptionError, counted
from paligemma.masks import box_of_points
from paligemma.processor.image import read_size_wh

NAME = "yolo"
UNLABELED = "images without a label file, taken to show none of the classes"
_SPLITS = ("train", "val", "valid", "test")
_YAML = (".yaml", ".yml")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "classes.names", "notes.json",
               "predefined_classes.txt", "labels.txt")  # fmt: skip
_OTHER_NAME_FILES = ("predefined_classes.txt", "labels.txt")  # may list something else
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_NUM_LOOKS = 50  # label files that are looked at to tell what they hold


class Layout(NamedTuple):
    """The classes and images of a data set, wherever they are listed."""

    file: Path
    """What lists the classes."""
    names: dict[int, str]
    splits: Mapping[str, Callable[[], list[Path]]]
    num_keypoints: int = 0
    """Numbers after the box that describe keypoints."""


def recognizes(path: Path) -> bool:
    """A YAML or .data file, a folder with one that lists names, or a folder of numeric labels."""
    if _list_file(path) is not None:
        return True
    if not path.is_dir() or any(map(_has_own_names, path.glob("*/"))):
        return False
    return _has_numeric_labels(path)


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError for an invalid data.yaml, or where the classes have no names; and
    MissingExtraError without PyYAML."""
    file = _list_file(path)
    if file is None:
        layout = _layout_of_folder(path, options)
    else:
        layout = _layout_of_data(file) if file.suffix.lower() == ".data" else _layout_of_yaml(file)
    split, list_images = choose_split(layout.splits, options, str(layout.file))
    images = list_images()
    if not images:
        raise DataError(f"The split {split!r} of {str(layout.file)!r} holds no images.")
    if options.yolo_lines is None and not layout.num_keypoints:
        _check_lines(images, layout)
    tally: Counter[str] = Counter()
    ids = _ids(images)
    reading = _Reading(layout=layout, options=options, tally=tally)
    entries = [
        Entry(record_id, f"Image {str(image)!r}", partial(reading.record, image, record_id))
        for record_id, image in zip(ids, images, strict=True)
    ]
    return Source(
        summary=f"{counted(len(entries), 'image')} of the split {split!r} in {layout.file}"
        if split
        else f"{counted(len(entries), 'image')}, classes in {layout.file}",
        entries=entries,
        class_names=tuple(dict.fromkeys(layout.names.values())),
        tally=tally,
        split=split or None,
        splits=tuple(filter(None, layout.splits)),
    )


def _list_file(path: Path) -> Path | None:
    """The YAML or .data file that lists the classes. Raises OptionError where several do."""
    if path.is_file():
        return path if path.suffix.lower() in (*_YAML, ".data") else None
    if not path.is_dir():
        return None
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (*_YAML, ".data"))
    files = [p for p in files if not p.name.startswith(".") and "names" in read_text(p)]
    named = [p for p in files if p.stem in ("data", "obj")]
    if len(named or files) > 1:
        raise OptionError(
            f"{str(path)!r} has several files that list names: "
            f"{', '.join(p.name for p in files)}. Give one of them as the data."
        )
    return next(iter(named or files), None)


def has_numeric_lines(text: str) -> bool | None:
    """Whether a file looks like labels, not like captions; None for an empty file."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return all(map(_is_label, lines)) if lines else None


def _is_label(words: list[str]) -> bool:
    is_numeric = len(words) >= 5 and all(map(_NUMBER.fullmatch, words))
    return is_numeric and float(words[0]).is_integer()


def _check_lines(images: list[Path], layout: Layout) -> None:
    """Raises OptionError where the lines of the first label files can be polygons or keypoints.

    Keypoints are the same number in all lines and lie in or near their box, which polygons read in
    this way seldom do.
    """
    files = (file for image in images if (file := label_file(image)).is_file())
    lines: list[list[str]] = []
    for file in islice(files, _NUM_LOOKS):
        lines += (line.split() for line in read_text(file).splitlines())
    longer = [words[1:] for words in lines if len(words) > 6 and _is_label(words)]
    if len({len(words) for words in longer}) != 1 or len(longer[0]) % 2:
        return
    fitting = sum(_may_be_keypoints(list(map(float, words))) for words in longer)
    if fitting >= 0.9 * len(longer):
        raise OptionError(
            f"The YOLO labels of {str(layout.file)!r} have {len(longer[0])} numbers after the "
            f"class, such as {' '.join(longer[0])!r}. They can be polygons, or a box and "
            "keypoints. Choose with yolo_lines='polygons' or yolo_lines='keypoints' "
            "(--yolo-lines), or set kpt_shape in data.yaml."
        )


def _may_be_keypoints(values: list[float]) -> bool:
    """Whether the first four numbers are a box in the image with the others' points in it."""
    x, y, width, height = values[:4]
    center, size = np.array([x, y]), np.array([width, height])
    if not size.all() or (abs(center - 0.5) + size / 2 > 0.51).any():
        return False
    for num_values in (2, 3):
        if (len(values) - 4) % num_values:
            continue
        points = np.array(values[4:]).reshape(-1, num_values)
        points, visible = points[points[:, :2].any(axis=1)], points[:, 2:]  # (0, 0): not labeled
        is_near = abs(points[:, :2] - center) <= 0.6 * size
        if is_near.all() and (visible >= 0).all() and (visible <= 2).all():
            return True
    return False


def _has_own_names(folder: Path) -> bool:
    """Whether a folder is a data set of its own, not a part of one."""
    if _list_file(folder) is not None:
        return True
    is_part = folder.name in ("images", "labels") or is_split_name(folder.name)
    return not is_part and any((folder / name).is_file() for name in _NAME_FILES)


def _label_files(folder: Path) -> Iterator[Path]:
    return (file for image in _images_below(folder) if (file := label_file(image)).is_file())


def _has_numeric_labels(folder: Path) -> bool:
    """Whether the first label files next to images, or in labels/, hold numbers. Raises OptionError
    for a mixture of numbers and text, which could be captions too."""
    kinds = {
        has_numeric_lines(read_text(path)) for path in islice(_label_files(folder), _NUM_LOOKS)
    }
    if kinds >= {True, False}:
        raise OptionError(
            f"Some text files in {str(folder)!r} hold numbers, like YOLO's labels, and some hold "
            "other text, like captions. Choose with format='yolo' or 'captions' (--format)."
        )
    return True in kinds


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_image(path))


def _layout_of_folder(folder: Path, options: ReadRequest) -> Layout:
    images = _images_below(options.images or folder) if folder.is_dir() else []
    if not images:
        raise DataError(f"The folder {str(folder)!r} holds no images and no data.yaml.")
    file = options.class_names or _name_file(folder)
    if file is None:
        raise DataError(
            f"{str(folder)!r} has YOLO labels but no names of their classes: no data.yaml, "
            "classes.txt or obj.names. Give a file with one name per line with --class-names."
        )
    groups: dict[str, list[Path]] = {}
    for image in images:
        parts = image.relative_to(options.images or folder).parts[:-1]
        groups.setdefault(next(filter(is_split_name, parts), ""), []).append(image)
    if "" in groups:  # not all of them are in a folder named as a split
        groups = {"": images}
    splits = {split: group.copy for split, group in groups.items()}
    return Layout(file, names_in(file), splits)


def _name_file(folder: Path) -> Path | None:
    """Raises OptionError where two files list different names, in the same folder or in splits."""
    parents = (folder, folder / "labels", *folder.glob("*/"), *folder.glob("*/labels/"))
    files = [path for p in parents for name in _NAME_FILES if (path := p / name).is_file()]
    for file in files[1:]:
        is_for_these = file.name == files[0].name or file.name not in _OTHER_NAME_FILES
        if is_for_these and names_in(file) != names_in(files[0]):
            raise OptionError(
                f"{str(files[0])!r} and {str(file)!r} list different classes. Choose one with "
                "--class-names."
            )
    return next(iter(files), None)


def names_in(file: Path) -> dict[int, str]:
    """Of one name per line, or of Label Studio's notes.json."""
    text = read_text(file)
    if file.suffix.lower() == ".json":
        try:
            return {
                int(c["id"]): clean_label(c["name"], str(file))
                for c in json.loads(text)["categories"]
            }
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{str(file)!r} does not list categories with id and name.") from error
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return {number: clean_label(name, str(file)) for number, name in enumerate(lines)}


def _layout_of_data(file: Path) -> Layout:
    """Of darknet's obj.data: train = data/train.txt, names = data/obj.names."""
    pairs = (line.split("=", 1) for line in read_text(file).splitlines() if "=" in line)
    content = {key.strip(): value.strip() for key, value in pairs}
    if not content.get("names"):
        raise DataError(f"{str(file)!r} must hold a line names = obj.names.")
    splits = {
        name: partial(_listed, _near(file, content[name]))
        for name in _SPLITS
        if content.get(name) and _near(file, content[name]).is_file()
    }
    if not splits:
        raise DataError(f"None of the files {str(file)!r} names for train, valid or test exists.")
    return Layout(file, names_in(_near(file, content["names"])), splits)


def _near(file: Path, name: str) -> Path:
    """A path of another machine or folder: the longest end of it that exists next to the file."""
    parts = name.replace("\\", "/").split("/")
    paths = [file.parent.joinpath(*parts[start:]) for start in range(len(parts))]
    return next((path for path in paths if path.exists()), paths[-1])


def _listed(file: Path) -> list[Path]:
    """The images listed in a text file, relative to it, or wherever the end of a path exists."""
    return [_near(file, line.strip()) for line in read_text(file).splitlines() if line.strip()]


def _layout_of_yaml(file: Path) -> Layout:
    content = _parse(file)
    names = _class_names(content.get("names"), file)
    splits = {
        name: partial(_images, content[name], content.get("path"), file)
        for name in _SPLITS
        if content.get(name)
    }
    if isinstance(count := content.get("nc"), int) and count != len(names):
        raise DataError(
            f"{str(file)!r} has {len(names)} names, and nc says {count}. Correct one of them."
        )
    shape = content.get("kpt_shape")
    if shape is not None and not (
        isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) for n in shape)
    ):
        raise DataError(f"{str(file)!r}: kpt_shape is {shape!r}; it must be [number, 2 or 3].")
    return Layout(file, names, splits, shape[0] * shape[1] if shape else 0)


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
        if not path.exists():
            path = _moved(folder, str(relative))
        if path.is_dir():
            images += sorted(p for p in path.rglob("*") if is_image(p))
        elif path.is_file():
            images += _listed(path)
        else:
            raise DataError(
                f"{str(file)!r} names {str(relative)!r}, which is neither a folder nor a file in "
                f"{str(folder)!r}. Correct path, train or val in it."
            )
    return images


def _moved(folder: Path, name: str) -> Path:
    """A path of another machine or folder: the longest end of it that exists in the folder.

    Without the name of a split, it would be another split's.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        path = folder.joinpath(*parts[start:])
        if path.exists():
            return path
        if is_split_name(parts[start]):
            break
    return folder / name


def _ids(images: list[Path]) -> list[str]:
    """File names; full paths where several images have the same name."""
    names = Counter(image.name for image in images)
    return [p.name if names[p.name] == 1 else p.as_posix() for p in images]


def label_file(image: Path) -> Path:
    """`labels/a/1.txt` of `images/a/1.jpg` where it exists, else `1.txt` next to the image."""
    parts = list(image.parts)
    indices = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if indices:
        parts[indices[-1]] = "labels"
        in_labels = Path(*parts).with_suffix(".txt")
        if in_labels.is_file():
            return in_labels
    return image.with_suffix(".txt")


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the records of one data set have in common."""

    layout: Layout
    options: ReadRequest
    tally: Counter[str]

    def record(self, image: Path, record_id: str) -> Record:
        where = f"Image {str(image)!r}"
        size_wh = read_size_wh(existing_image(image, where))
        annotated = AnnotatedImage(
            image=image, size_wh=size_wh, where=where, tally=self.tally, boxes=self.options.boxes
        )
        file = label_file(image)
        lines: list[str] = []
        if file.is_file():
            lines = read_text(file).splitlines()
        else:
            self.tally[UNLABELED] += 1
        objects = [
            self._object(line, annotated, f"Line {number} of {str(file)!r}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        return annotated.record(record_id, self.options.prefix, objects)

    def _object(self, line: str, image: AnnotatedImage, where: str) -> TrueObject | None:
        names = self.layout.names
        try:
            first, *values = (float(word) for word in line.split())
        except ValueError as error:
            raise DataError(f"{where} is {line.strip()!r}; it must consist of numbers.") from error
        if first not in names:
            raise DataError(
                f"{where} is of class {first:g}; {self.layout.file.name} names the classes "
                f"{min(names, default='none')} to {max(names, default='none')}."
            )
        name = names[int(first)]
        width, height = image.size_wh
        if self._is_box(values, where):
            x, y, w, h = values[:4]
            box = ((x - w / 2) * width, (y - h / 2) * height)
            corners = (*box, (x + w / 2) * width, (y + h / 2) * height)
            return image.object(name, corners, where=where)
        points = np.array(values).reshape(-1, 2) * (width, height)
        shape = Shape(polygons=[points.ravel().tolist()])
        return image.object(name, box_of_points(points), shape, where=where)

    def _is_box(self, values: list[float], where: str) -> bool:
        """Whether the numbers after the class begin with a box; False for a polygon."""
        extra = len(values) - 4
        if extra == 0:
            return True
        if extra == 1:
            self.tally["boxes with a further number, a confidence or a track, ignored"] += 1
            return True
        if self.options.yolo_lines == "keypoints":
            self.tally["boxes with keypoints, of which the box is used"] += 1
            return True
        if self.layout.num_keypoints and self.options.yolo_lines is None:
            if extra in (self.layout.num_keypoints, self.layout.num_keypoints + 1):
                self.tally["boxes with keypoints, of which the box is used"] += 1
                return True
            raise DataError(
                f"{where} has {len(values)} numbers after the class; with kpt_shape it must have "
                f"{4 + self.layout.num_keypoints}: a box and keypoints."
            )
        if len(values) < 6 or len(values) % 2:
            raise DataError(
                f"{where} has {len(values)} numbers after the class; 4 make a box, an even number "
                "from 6 on makes a polygon. For a box and keypoints, set kpt_shape in data.yaml, "
                "or yolo_lines='keypoints' (--yolo-lines)."
            )
        return False
