"""Masks as PNG files: a folder `images`, a folder `masks`, and the classes' names.

    images/1.jpg   masks/1.png            each pixel is the number of its class (gray or palette);
                                          0 is background, 255 (65535 in 16 bits) is ignored
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from paligemma.data.annotation import AnnotatedImage, box_of_mask, clean_label
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import Entry, ReadOptions, Source, choose_split, images_in, read_text
from paligemma.errors import DataError, counted
from paligemma.masks import Mask
from paligemma.processor.image import MAX_PIXELS, read_size_wh

NAME = "masks"
_IMAGES, _MASKS = "images", "masks"
_LABEL_FILES = ("labels.json", "labels.txt", "classes.txt")
_BACKGROUND = {"background", "_background_", "__background__", "bg"}
_IGNORED = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def recognizes(path: Path) -> bool:
    """A folder with `images` and `masks`, or with one folder per split that has them."""
    return bool(_splits(path))


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError where folders or names are missing. Masks are read once for their boxes."""
    split, folder = choose_split(_splits(path), options.split, str(path))
    label_file = next(
        (p for parent in (folder, path) for n in _LABEL_FILES if (p := parent / n).is_file()), None
    )
    names = {} if label_file is None else _read_names(label_file)
    images = images_in(options.images or folder / _IMAGES)
    if not images:
        raise DataError(f"The folder {str(folder / _IMAGES)!r} holds no images.")
    tally: Counter[str] = Counter()
    entries = [
        Entry(
            p.name,
            f"Image {str(p)!r}",
            partial(_record, p, folder / _MASKS, names, options.prefix, tally),
        )
        for p in images
    ]
    return Source(
        summary=f"{counted(len(entries), 'image')} with masks"
        + (f" of the split {split!r}" if split else ""),
        entries=entries,
        class_names=tuple(dict.fromkeys(names.values())),
        task="segment",
        tally=tally,
    )


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
    first = 0 if lines and lines[0].casefold() in _BACKGROUND else 1
    names = {number: clean_label(n, str(file)) for number, n in enumerate(lines, start=first)}
    names.pop(0, None)
    return names


def _record(
    image: Path, masks: Path, names: dict[int, str], prefix: str | None, tally: Counter[str]
) -> Record:
    where = f"Image {str(image)!r}"
    annotated = AnnotatedImage(image=image, size_wh=read_size_wh(image), where=where, tally=tally)
    if (masks / image.stem).is_dir():
        files = sorted((masks / image.stem).glob("*.png"))
        objects = [_object_of_file(f, names, annotated) for f in files]
    elif (file := masks / f"{image.stem}.png").is_file():
        objects = _objects_of_classes(file, names, annotated)
    else:
        raise DataError(
            f"{where} has neither {image.stem}.png nor a folder {image.stem} in "
            f"{str(masks)!r}. An image without objects has a mask of zeros, or an empty folder."
        )
    return annotated.record(image.name, prefix, objects)


def _object_of_file(file: Path, names: dict[int, str], image: AnnotatedImage) -> TrueObject:
    where = f"Mask {str(file)!r}"
    label = clean_label(re.sub(r"_\d+$", "", file.stem), where)
    if names and label not in names.values():
        raise DataError(f"{where} is of class {label!r}, which the label file does not list.")
    make_mask = partial(_binary_mask, file, image.size_wh)
    return image.object(label, box_of_mask(make_mask(), where), make_mask, where=where)


def _objects_of_classes(
    file: Path, names: dict[int, str], image: AnnotatedImage
) -> list[TrueObject]:
    where = f"Mask {str(file)!r}"
    values = _read(file, image.size_wh)
    if values.ndim != 2:
        raise DataError(
            f"{where} is in color; it must hold class numbers, in gray or as a palette."
        )
    objects = []
    for value in np.unique(values).tolist():
        if value == 0 or (value == _IGNORED.get(values.dtype) and value not in names):
            continue
        if value not in names:
            listed = ", ".join(f"{n} {name}" for n, name in list(names.items())[:8]) or "none"
            raise DataError(
                f"{where} holds the class {value}, which has no name; named are: {listed}. Add it "
                f"to {_LABEL_FILES[1]} next to the folders."
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
            if size == size_wh and size[0] * size[1] <= MAX_PIXELS:
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
