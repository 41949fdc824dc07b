"""What a reader of one format returns to `open_data`: entries that are built one by one.

A reader lists entries and raises DataError only where the whole data set cannot be read. A fault
of one entry shows when it is built, so that bad records are handled in one place, in `open.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

from paligemma.data.record import OnBadRecord, Record
from paligemma.errors import DataError, ImageError, OptionError, check_choice
from paligemma.options import Option

ObjectTask = Literal["detect", "segment"]
Boxes = Literal["error", "clip", "drop", "from-masks"]
Crowds = Literal["ignore", "learn"]
YoloLines = Literal["polygons", "keypoints"]
Purpose = Literal["train", "validation", "test"]
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".ppm"),
)
DEFAULT_CAPTION_PREFIX = "caption en"
MAX_SKIPPED = 0.01
Marks = tuple[tuple[bytes, ...], ...]
"""Groups of words, all of which the beginning of a format's files holds for one of the groups."""
_HEAD = 4096
_SPLIT_NAMES: dict[Purpose, tuple[str, ...]] = {
    "train": ("train", "training", "trainval"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_DEFAULT_SPLITS: dict[Purpose, tuple[Purpose, ...]] = {
    "train": ("train",),
    "validation": ("validation",),
    "test": ("test", "validation"),
}
Split = TypeVar("Split")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a data set, apart from where it is. Train, eval and data check share them."""

    format: Annotated[str | None, Option(flags=("--format",), shown_default="detected")] = None
    """Format of the data: jsonl, coco, yolo, voc, masks, captions, huggingface, webdataset, cvat,
    labelme, labelstudio, labelbox, via, createml, csv, retinanet or conversations."""
    split: Annotated[str | None, Option(shown_default="train")] = None
    """Split to read, if the data has several."""
    images: Annotated[Path | None, Option(shown_default="next to the labels")] = None
    """Folder that holds the images."""
    class_names: Annotated[Path | None, Option(shown_default="next to the labels")] = None
    """File with the class names, one per line, for YOLO labels without a data.yaml."""
    prefix: Annotated[str | None, Option(shown_default="set by the format")] = None
    """Prefix to use when a record has none."""
    column: Annotated[str | None, Option(shown_default="the only one that fits")] = None
    """Column with the answers where several could be meant: objects, caption, or the name of a
    column of a table."""
    boxes: Boxes = "error"
    """What to do with a box that has no area or extends beyond its image: stop with an error, clip
    it to the image, or drop the object. from-masks computes all boxes from the masks."""
    crowds: Crowds = "ignore"
    """Objects marked as crowds (COCO) or as difficult (Pascal VOC): neither learn nor count them,
    or treat them like other objects."""
    first_pixel: Annotated[int, Option(least=0, most=1)] = 1
    """Number of the first pixel in Pascal VOC boxes: 1 in the original, 0 in files of CVAT."""
    yolo_lines: Annotated[
        YoloLines | None, Option(shown_default="by kpt_shape in data.yaml, else polygons")
    ] = None
    """What YOLO lines of more than six numbers hold: polygons, or a box and keypoints."""
    on_bad_record: OnBadRecord = "error"
    """What to do with an invalid record: stop with an error, or skip it."""
    max_skipped: Annotated[float, Option(least=0, most=1)] = MAX_SKIPPED
    """Largest share of the records that may be skipped; one record always may."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("boxes", Boxes), ("crowds", Crowds), ("on_bad_record", OnBadRecord)
        ):  # fmt: skip
            check_choice(name, getattr(self, name), choices)
        if self.yolo_lines is not None:
            check_choice("yolo_lines", self.yolo_lines, YoloLines)


@dataclass(frozen=True, kw_only=True)
class ReadRequest(ReadOptions):
    """What a reader gets: the options, and what the data are for."""

    purpose: Purpose = "train"
    """Chooses the split where the options name none."""


class Entry(NamedTuple):
    """A record that has not been built yet."""

    record_id: str
    where: str
    build: Callable[[], Record]
    """Raises DataError, or ImageError, where the entry is bad."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as its reader sees it."""

    summary: str
    """In words: "60 lines of JSON in train.jsonl"."""
    entries: Sequence[Entry]
    class_names: tuple[str, ...] = ()
    """As the data set lists its classes; empty where it has no such list."""
    task: ObjectTask = "detect"
    """The task that objects are meant for, unless the user chooses another."""
    tally: Counter[str] = field(default_factory=Counter)
    """What was left out or changed, counted while entries are built: {"crowds left out": 3}."""
    split: str | None = None
    """The split that was read; None where the data have none."""
    splits: tuple[str, ...] = ()


class Reader(Protocol):
    """A module in `formats/`."""

    NAME: str

    def recognizes(self, path: Path) -> bool:
        """Whether the path looks like this format; reads little."""
        ...

    def read(self, path: Path, options: ReadRequest) -> Source: ...


def choose_split(
    splits: Mapping[str, Split], options: ReadRequest, where: str
) -> tuple[str, Split]:
    """The split that the options name; else the only one, or the one for the purpose.

    Raises OptionError when there is no such split, when several could be meant, or when a model
    would be tested on what it was trained on; DataError when there is no split at all.

    >>> choose_split({"train2017": 1, "valid": 2}, ReadRequest(split="val"), "")
    ('valid', 2)
    """
    if not splits:
        raise DataError(f"{where!r} holds no data of this format. Check the path and the format.")
    name = options.split
    if name is not None:
        fitting = [name] if name in splits else _of_kind(splits, _kind_of_split(name) or name)
    elif options.purpose != "test" and len(splits) == 1:
        fitting = list(splits)
    else:
        fitting = []
        for kind in _DEFAULT_SPLITS[options.purpose]:
            fitting = fitting or _of_kind(splits, kind)
        if not fitting and len(splits) == 1 and _kind_of_split(next(iter(splits))) is None:
            fitting = list(splits)
    if len(fitting) == 1:
        return fitting[0], splits[fitting[0]]
    if name is not None and not fitting:
        problem = f"there is no split {name!r}"
    elif len(splits) == 1:
        problem = f"there is only the split {next(iter(splits))!r}, which models are trained on"
    else:
        problem = "there are several splits"
    raise OptionError(f"{where}: {problem}. Choose one of: {', '.join(splits)} (--split).")


def _kind_of_split(name: str) -> Purpose | None:
    """
    >>> _kind_of_split("train2017"), _kind_of_split("dogs")
    ('train', None)
    """
    letters = name.casefold().rstrip("0123456789_-")
    return next((kind for kind, names in _SPLIT_NAMES.items() if letters in names), None)


def _of_kind(splits: Iterable[str], kind: str) -> list[str]:
    """Those of a kind; of "train" and "trainval" only the one that is named as the kind."""
    names = [split for split in splits if _kind_of_split(split) == kind]
    return [kind] if kind in names else names


def validation_split(splits: Iterable[str]) -> str | None:
    """The only split that is named as one for validation."""
    names = _of_kind(splits, "validation")
    return names[0] if len(names) == 1 else None


def is_split_name(name: str) -> bool:
    """Whether a folder of this name holds a split."""
    return _kind_of_split(name) is not None


class ImageFinder:
    """Finds images by the names in annotations, which other machines and tools may have written.

    A name may be a path of another machine, have backslashes, %20 for blanks, or another case.
    `tally` counts images that were found elsewhere than their annotations say.
    """

    def __init__(self, folders: Iterable[Path], tally: Counter[str]) -> None:
        self._folders = tuple(dict.fromkeys(folders))
        self._tally = tally

    @cached_property
    def _by_name(self) -> dict[str, dict[Path, int]]:
        """All images in the folders and below, by name in lower case, each with the number of
        parts of its path below the nearest of the folders."""
        paths: dict[str, dict[Path, int]] = {}
        for folder in self._folders:
            for path in folder.rglob("*") if folder.is_dir() else ():
                if is_image(path):
                    group = paths.setdefault(path.name.casefold(), {})
                    depth = len(path.relative_to(folder).parts)
                    group[path] = min(depth, group.get(path, depth))
        return paths

    def find(self, name: str, where: str, more_names: Iterable[str] = ()) -> Path:
        """The image of this name, or else of one of `more_names`.

        A file fits whose path ends as the name does, or whose path below the folders is the end of
        the name. Raises DataError when there is none, or when several files fit.
        """
        for folder in self._folders:
            if is_file(path := folder / name):
                return path
        others: list[Path] = []
        for spelling in (name, *more_names):
            plain = unquote(spelling).replace("\\", "/").casefold()
            parts = [part for part in plain.split("/") if part not in ("", ".")]
            paths = self._by_name.get(parts[-1], {}) if parts else {}
            common = {path: _num_common(path, parts) for path in paths}
            fitting = [p for p, n in common.items() if n >= min(len(parts), paths[p])]
            most = max((common[path] for path in fitting), default=0)
            fitting = self._in_first_folder([path for path in fitting if common[path] == most])
            if len(fitting) > 1:
                raise DataError(
                    f"{where} names the image {name!r}, which could be {str(fitting[0])!r} or "
                    f"{str(fitting[1])!r}. Choose the folder with --images."
                )
            if fitting:
                self._tally["images found elsewhere than the annotations say"] += 1
                return fitting[0]
            others += paths
        advice = f" Is it {str(others[0])!r}? Then give --images." if others else ""
        path = self._folders[0] / name
        raise DataError(f"{where} names the image {str(path)!r}, which does not exist.{advice}")

    def _in_first_folder(self, paths: list[Path]) -> list[Path]:
        """Those in the first of the folders that holds any."""
        for folder in self._folders:
            if inside := [path for path in paths if path.is_relative_to(folder)]:
                return inside
        return paths


def _num_common(path: Path, parts: Sequence[str]) -> int:
    """How many parts at the end of both agree."""
    count = 0
    for mine, theirs in zip(reversed(path.parts), reversed(parts), strict=False):
        if mine.casefold() != theirs:
            break
        count += 1
    return count


def is_file(path: Path) -> bool:
    """False also for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def existing_image(path: Path, where: str) -> Path:
    """The path itself. Raises DataError when the file does not exist."""
    if not is_file(path):
        raise DataError(f"{where} names the image {str(path)!r}, which does not exist.")
    return path


def is_image(path: Path) -> bool:
    """Whether the file's name is that of an image, and not of macOS's notes on one (`._1.jpg`)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")


def images_in(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"The folder {str(folder)!r} cannot be listed: {error}.") from error
    return [path for path in paths if is_image(path) and not path.name.startswith(".")]


def images_below(folder: Path) -> list[str]:
    """The images in a folder and below, as paths with "/", in order; none in hidden folders.

    Raises ImageError for a folder without any, or that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise ImageError(
            f"The folder {error.filename!r} cannot be listed: {error.strerror}."
        ) from error

    if not folder.is_dir():
        raise ImageError(f"{str(folder)!r} is not a folder. Give the folder with the images.")
    found = []
    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(root, name).relative_to(folder).as_posix()
            for name in files
            if is_image(Path(name)) and not name.startswith(".")
        ]
    if not found:
        raise ImageError(f"The folder {str(folder)!r} contains no images. Check the path.")
    return sorted(found)


def fingerprint_of(path: Path) -> str:
    """What changes when a file does: its size and time of change; "" without the file."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def read_head(path: Path) -> bytes:
    """The first 4096 bytes, by which a format is recognized; b"" for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def begins_with(path: Path, marks: Marks) -> bool:
    """Whether the beginning of the file holds all marks of one of the groups."""
    head = read_head(path)
    return any(all(mark in head for mark in group) for group in marks)


def read_text(path: Path) -> str:
    """The file as UTF-8, with or without a byte order mark. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"The file {str(path)!r} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file {str(path)!r} cannot be read as UTF-8 text: {error}.") from error
