"""Masks as PNG files: folders of images and of masks, and the classes' names.

    images/1.jpg   masks/1.png            each pixel is the number of its class (gray or palette);
                                          0 is background, 255 (65535 in 16 bits) is ignored,
                                          or the only class where all masks are 0 and 255
    images/1.jpg   masks/1/dog.png        one file per object, any pixel but black is the object;
                   masks/1/dog_2.png      the number after the name tells files apart

    SegmentationClass/1.png               colors of classes, which `labelmap.txt` names in lines of
    SegmentationObject/1.png              cat:128,0,0:: ; a color per object (CVAT, Pascal VOC);
                                          images in JPEGImages, splits in ImageSets/Segmentation

Names: `labels.txt` (or `classes.txt`), one class per line: the first is class 1, unless it is named
background, which is class 0; or `labels.json`, {"1": "dog"}. One file per object needs no names.
All pixels of a class are one object in the first form, which cannot tell two dogs apart, and in the
last without SegmentationObject.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from paligemma.data.annotation import AnnotatedImage, box_of_mask, clean_label
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    IMAGE_SUFFIXES,
    Entry,
    ImageFinder,
    ReadRequest,
    Source,
    choose_split,
    images_in,
    is_file,
    read_text,
)
from paligemma.errors import DataError, counted
from paligemma.masks import Mask
from paligemma.processor.image import LARGEST_PIXELS, read_size_wh

NAME = "masks"
_IMAGES, _MASKS = "images", "masks"
_LABEL_MAP = "labelmap.txt"
CLASS_COLORS, _OBJECT_COLORS = "SegmentationClass", "SegmentationObject"
_COLOR = 0xFFFFFF
_VOID = 224 << 16 | 224 << 8 | 192
"""The color of what belongs to no class, such as edges, in Pascal VOC."""
_LABEL_FILES = ("labels.json", "labels.txt", "classes.txt")
_NUMBERED = re.compile(r"(\d+)\s*[:,;=\t]\s*(.+)")  # "1: dog", in every line
_BACKGROUND = {"background", "_background_", "__background__", "bg"}
_IGNORED = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def recognizes(path: Path) -> bool:
    """A folder with `images` and `masks`, or with one folder per split that has them; or one with
    `labelmap.txt` and `SegmentationClass`, unless it has boxes in `Annotations` too."""
    return bool(_splits(path)) or (_has_label_map(path) and not (path / "Annotations").is_dir())


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError where folders or names are missing. Masks are read once for their boxes."""
    if _has_label_map(path):
        return _read_colors(path, options)
    splits = _splits(path)
    split, folder = choose_split(splits, options, str(path))
    files = (p for parent in (folder, path) for n in _LABEL_FILES if (p := parent / n).is_file())
    label_file = options.class_names or next(files, None)
    names = {} if label_file is None else _read_names(label_file)
    images = images_in(options.images or folder / _IMAGES)
    if not images:
        raise DataError(f"The folder {str(folder / _IMAGES)!r} holds no images.")
    masks = folder / _MASKS
    tally: Counter[str] = Counter()
    white = _white_of_binary(masks, images)
    if white is not None and white not in names:
        if len(names) != 1:
            raise DataError(
                f"The masks in {str(masks)!r} hold only 0 and {white}, and "
                f"{'no class has a name' if not names else f'{len(names)} classes have names'}. "
                f"Name the only class in {_LABEL_FILES[1]}, or write class numbers into the masks."
            )
        names = {white: next(iter(names.values()))}
        tally[f"class for all pixels of {white}, the only value in the masks besides 0"] = 1
    reading = _Reading(masks=masks, names=names, options=options, tally=tally)
    entries = [Entry(p.name, f"Image {str(p)!r}", partial(reading.record, p)) for p in images]
    return _source(entries, names, tally, split, splits)


def _source(
    entries: Sequence[Entry],
    names: Mapping[int, str],
    tally: Counter[str],
    split: str,
    splits: Iterable[str],
) -> Source:
    """The data set of these records; the name "" is that of the background."""
    return Source(
        summary=f"{counted(len(entries), 'image')} with masks"
        + (f" of the split {split!r}" if split else ""),
        entries=entries,
        class_names=tuple(dict.fromkeys(filter(None, names.values()))),
        task="segment",
        tally=tally,
        split=split or None,
        splits=tuple(filter(None, splits)),
    )


def _white_of_binary(masks: Path, images: list[Path]) -> int | None:
    """255 (65535 in 16 bits) where the masks hold nothing but it and 0; stops at other values."""
    whites = set()
    for image in images:
        try:
            with Image.open(masks / f"{image.stem}.png", formats=("PNG",)) as file:
                if file.mode in ("RGB", "RGBA") or file.size[0] * file.size[1] > LARGEST_PIXELS:
                    return None
                values = np.unique(np.asarray(file))
        except (OSError, SyntaxError, ValueError):  # said when the record is built
            continue
        whites |= {int(value) for value in values.tolist() if value}
        if not whites <= {255} and not whites <= {65535}:
            return None
    return next(iter(whites), None)


def _splits(path: Path) -> dict[str, Path]:
    def has_both(folder: Path) -> bool:
        return (folder / _IMAGES).is_dir() and (folder / _MASKS).is_dir()

    if not path.is_dir():
        return {}
    return (
        {"": path} if has_both(path) else {f.name: f for f in sorted(path.iterdir()) if has_both(f)}
    )


def _read_names(file: Path) -> dict[int, str]:
    if file.suffix == ".json":
        try:
            content = json.loads(read_text(file))
            return {int(number): clean_label(n, str(file)) for number, n in content.items()}
        except (ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f'{str(file)!r} must hold {{"1": "name", ...}}: {error}.') from error
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    pairs = [_NUMBERED.fullmatch(line) for line in lines]
    if len(pairs) > 1 and pairs[0] is None and all(pairs[1:]):
        lines, pairs = lines[1:], pairs[1:]  # "id,name"
    numbered = [(int(pair[1]), pair[2]) for pair in pairs if pair]
    if numbered and len(numbered) < len(lines):
        raise DataError(
            f"{str(file)!r}: {len(numbered)} of {len(lines)} lines begin with a number. Give all "
            "lines a number, or none."
        )
    if len(dict(numbered)) < len(lines):
        first = 0 if lines and lines[0].casefold() in _BACKGROUND else 1
        numbered = list(enumerate(lines, start=first))
    names = {number: clean_label(name, str(file)) for number, name in numbered}
    names.pop(0, None)
    return names


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the records of one folder have in common."""

    masks: Path
    names: dict[int, str]
    options: ReadRequest
    tally: Counter[str]

    def record(self, image: Path) -> Record:
        where = f"Image {str(image)!r}"
        annotated = AnnotatedImage(
            image=image,
            size_wh=read_size_wh(image),
            where=where,
            tally=self.tally,
            boxes=self.options.boxes,
        )
        objects: Iterable[TrueObject | None]
        if (self.masks / image.stem).is_dir():
            files = sorted((self.masks / image.stem).glob("*.png"))
            objects = [self._object_of_file(f, annotated) for f in files]
        elif (file := self.masks / f"{image.stem}.png").is_file():
            objects = self._objects_of_classes(file, annotated)
        else:
            raise DataError(
                f"{where} has neither {image.stem}.png nor a folder {image.stem} in "
                f"{str(self.masks)!r}. An image without objects has a mask of zeros, or an empty "
                "folder."
            )
        return annotated.record(image.name, self.options.prefix, objects)

    def _object_of_file(self, file: Path, image: AnnotatedImage) -> TrueObject | None:
        where = f"Mask {str(file)!r}"
        label = clean_label(re.sub(r"_\d+$", "", file.stem), where)
        if self.names and label not in self.names.values():
            raise DataError(f"{where} is of class {label!r}, which the label file does not list.")
        make_mask = partial(read_binary_mask, file, image.size_wh)
        return image.object(label, box_of_mask(make_mask(), where), make_mask, where=where)

    def _objects_of_classes(self, file: Path, image: AnnotatedImage) -> list[TrueObject | None]:
        where, names = f"Mask {str(file)!r}", self.names
        values = _read(file, image.size_wh)
        if values.ndim != 2:
            raise DataError(
                f"{where} is in color; it must hold class numbers, in gray or as a palette."
            )
        objects = []
        for value in np.unique(values).tolist():
            if value == _IGNORED.get(values.dtype) and value not in names:
                self.tally[f"masks with pixels of {value}, which are ignored"] += 1
                continue
            if value == 0:
                continue
            if value not in names:
                listed = ", ".join(f"{n} {name}" for n, name in list(names.items())[:8]) or "none"
                raise DataError(
                    f"{where} holds the class {value}, which has no name; named are: {listed}. Add "
                    f"it to {_LABEL_FILES[1]} next to the folders."
                )
            make_mask = partial(_class_mask, file, image.size_wh, value)
            box = box_of_mask(values == value, where)
            objects.append(image.object(names[value], box, make_mask, where=where))
        return objects


# Colors


def _has_label_map(path: Path) -> bool:
    return (path / _LABEL_MAP).is_file() and (path / CLASS_COLORS).is_dir()


def _read_colors(path: Path, options: ReadRequest) -> Source:
    names = _read_label_map(options.class_names or path / _LABEL_MAP)
    folder = path / CLASS_COLORS
    lists = sorted((path / "ImageSets" / "Segmentation").glob("*.txt"))
    splits = {file.stem: read_text(file).splitlines() for file in lists}
    if not splits:
        masks = sorted(folder.rglob("*.png"))
        splits = {"": [str(mask.relative_to(folder).with_suffix("")) for mask in masks]}
    split, lines = choose_split(splits, options, str(path))
    stems = [line.strip() for line in lines if line.strip()]
    tally: Counter[str] = Counter()
    folders = [options.images] if options.images else [path / "JPEGImages", path / _IMAGES, path]
    reading = _Colors(
        path=path,
        names=names,
        options=options,
        tally=tally,
        folders=folders,
        finder=ImageFinder(folders, tally),
    )
    entries = [
        Entry(stem, f"Image {stem!r} of {str(path)!r}", partial(reading.record, stem))
        for stem in stems
    ]
    if not entries:
        raise DataError(f"{str(path)!r} lists no images.")
    return _source(entries, names, tally, split, splits)


def _read_label_map(file: Path) -> dict[int, str]:
    """Class name by color, red << 16 | green << 8 | blue; "" for the background."""
    names: dict[int, str] = {}
    for line in read_text(file).splitlines():
        if not (line := line.partition("#")[0].strip()):
            continue
        name, _, rest = line.partition(":")
        numbers = rest.partition(":")[0].split(",")
        if len(numbers) != 3 or not all(n.strip().isdecimal() for n in numbers):
            raise DataError(
                f"{str(file)!r}: the line {line!r} must have the form name:red,green,blue::"
            )
        red, green, blue = map(int, numbers)
        color = red << 16 | green << 8 | blue
        label = "" if name.casefold() in _BACKGROUND else clean_label(name, str(file))
        if max(red, green, blue) > 255 or names.setdefault(color, label) != label:
            raise DataError(
                f"{str(file)!r}: the color {rest.partition(':')[0]} of {name!r} is not a color, "
                "or that of another class."
            )
    names.setdefault(0, "")
    return names


@dataclass(frozen=True, kw_only=True)
class _Colors:
    """What the records of one folder of colored masks have in common."""

    path: Path
    names: dict[int, str]
    options: ReadRequest
    tally: Counter[str]
    folders: Sequence[Path]
    """Where images are looked for first."""
    finder: ImageFinder

    def record(self, stem: str) -> Record:
        where = f"Image {stem!r} of {str(self.path)!r}"
        names = [f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES]
        paths = (folder / name for folder in self.folders for name in names)
        image = next(filter(is_file, paths), None) or self.finder.find(names[0], where, names[1:])
        size_wh = read_size_wh(image)
        annotated = AnnotatedImage(
            image=image, size_wh=size_wh, where=where, tally=self.tally, boxes=self.options.boxes
        )
        numbers = self._numbers(stem, size_wh)
        objects = []
        for number in np.unique(numbers).tolist():
            if number >= 0 and (name := self.names[number & _COLOR]):
                make_mask = partial(self._mask, stem, size_wh, number)
                box = box_of_mask(numbers == number, where)
                objects.append(annotated.object(name, box, make_mask))
        return annotated.record(stem, self.options.prefix, objects)

    def _numbers(self, stem: str, size_wh: tuple[int, int]) -> npt.NDArray[np.int64]:
        """int64[H, W]: the object's color, if objects have colors, and the class's color below it.

        Pixels of no class or object are -1. Raises DataError for colors without a name.
        """
        classes = self._colors(CLASS_COLORS, stem, size_wh)
        numbers = np.unique(classes).tolist()
        if unknown := [n for n in numbers if n not in self.names and n != _VOID]:
            red, green, blue = unknown[0].to_bytes(3)
            raise DataError(
                f"{CLASS_COLORS}/{stem}.png of {str(self.path)!r} holds the color {red},{green},"
                f"{blue}, which {_LABEL_MAP} does not name."
            )
        background = [n for n in numbers if not self.names.get(n)]
        is_object = ~np.isin(classes, background)
        if (self.path / _OBJECT_COLORS / f"{stem}.png").is_file():
            objects = self._colors(_OBJECT_COLORS, stem, size_wh)
            is_object &= ~np.isin(objects, (0, _VOID))
            classes = classes | objects << 24
        return np.where(is_object, classes, -1)

    def _mask(self, stem: str, size_wh: tuple[int, int], number: int) -> Mask:
        return np.asarray(self._numbers(stem, size_wh) == number)

    def _colors(self, folder: str, stem: str, size_wh: tuple[int, int]) -> npt.NDArray[np.int64]:
        """int64[H, W]: red, green and blue of each pixel in one number."""
        values = _read(self.path / folder / f"{stem}.png", size_wh, as_colors=True)
        rgb = values.astype(np.int64)
        return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def _class_mask(file: Path, size_wh: tuple[int, int], value: int) -> Mask:
    return np.asarray(_read(file, size_wh) == value, dtype=np.bool_)


def read_binary_mask(file: Path, size_wh: tuple[int, int]) -> Mask:
    """bool[H, W]: any pixel but black. Raises DataError."""
    values = _read(file, size_wh)
    return np.asarray(values[..., :3].any(axis=2) if values.ndim == 3 else values > 0)


def _read(file: Path, size_wh: tuple[int, int], *, as_colors: bool = False) -> npt.NDArray[Any]:
    """uint8 or uint16 [H, W], or uint8[H, W, channels], as stored or as RGB. Raises DataError."""
    where = f"Mask {str(file)!r}"
    try:
        with Image.open(file, formats=("PNG",)) as image:
            size = image.size
            if size == size_wh and size[0] * size[1] <= LARGEST_PIXELS:
                values = np.asarray(image.convert("RGB") if as_colors else image)
                if values.dtype == np.int32:  # how Pillow holds some 16-bit files
                    values = values.astype(np.uint16)
                return values.astype(np.uint8) if values.dtype == np.bool_ else values
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be read as a PNG file: {error}.") from error
    raise DataError(
        f"{where} has {size[0]} x {size[1]} pixels, its image {size_wh[0]} x {size_wh[1]}. "
        "Both must be the same, after the image is turned upright."
    )
