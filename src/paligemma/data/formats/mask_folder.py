"""Masks as PNG files: a folder `images`, a folder `masks`, and the classes' names.

    images/1.jpg   masks/1.png            each pixel is the number of its class (gray or palette);
                                          0 is background, 255 (65535 in 16 bits) is ignored,
                                          or the only class where all masks are 0 and 255
    images/1.jpg   masks/1/dog.png        one file per object, any pixel but black is the object;
                   masks/1/dog_2.png      the number after the name tells files apart

Names: `labels.txt` (or `classes.txt`), one class per line: the first is class 1, unless it is named
background, which is class 0; or `labels.json`, {"1": "dog"}. One file per object needs no names.
All pixels of a class are one object in the first form, which cannot tell two dogs apart.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from paligemma.data.annotation import AnnotatedImage, box_of_mask, clean_label
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import Entry, ReadRequest, Source, choose_split, images_in, read_text
from paligemma.errors import DataError, counted
from paligemma.masks import Mask
from paligemma.processor.image import LARGEST_PIXELS, read_size_wh

NAME = "masks"
_IMAGES, _MASKS = "images", "masks"
_LABEL_FILES = ("labels.json", "labels.txt", "classes.txt")
_NUMBERED = re.compile(r"(\d+)\s*[:,;=\t]\s*(.+)")  # "1: dog", in every line
_BACKGROUND = {"background", "_background_", "__background__", "bg"}
_IGNORED = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def recognizes(path: Path) -> bool:
    """A folder with `images` and `masks`, or with one folder per split that has them."""
    return bool(_splits(path))


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError where folders or names are missing. Masks are read once for their boxes."""
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
    return Source(
        summary=f"{counted(len(entries), 'image')} with masks"
        + (f" of the split {split!r}" if split else ""),
        entries=entries,
        class_names=tuple(dict.fromkeys(names.values())),
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
    numbered = [(int(pair[1]), pair[2]) for pair in pairs if pair]
    if len(numbered) < len(lines) or len(dict(numbered)) < len(lines):
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
        make_mask = partial(_binary_mask, file, image.size_wh)
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


def _class_mask(file: Path, size_wh: tuple[int, int], value: int) -> Mask:
    return np.asarray(_read(file, size_wh) == value, dtype=np.bool_)


def _binary_mask(file: Path, size_wh: tuple[int, int]) -> Mask:
    values = _read(file, size_wh)
    return np.asarray(values[..., :3].any(axis=2) if values.ndim == 3 else values > 0)


def _read(file: Path, size_wh: tuple[int, int]) -> npt.NDArray[Any]:
    """uint8 or uint16 [H, W], or uint8[H, W, channels], as stored. Raises DataError."""
    where = f"Mask {str(file)!r}"
    try:
        with Image.open(file, formats=("PNG",)) as image:
            size = image.size
            if size == size_wh and size[0] * size[1] <= LARGEST_PIXELS:
                values = np.asarray(image)
                if values.dtype == np.int32:  # how Pillow holds some 16-bit files
                    values = values.astype(np.uint16)
                return values.astype(np.uint8) if values.dtype == np.bool_ else values
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be read as a PNG file: {error}.") from error
    raise DataError(
        f"{where} has {size[0]} x {size[1]} pixels, its image {size_wh[0]} x {size_wh[1]}. "
        "Both must be the same, after the image is turned upright."
    )
