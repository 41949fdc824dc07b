"""What a reader of one format returns to `open_data`: entries that are built one by one.

A reader lists entries and raises DataError only where the whole data set cannot be read. A fault
of one entry shows when it is built, so that bad records are handled in one place, in `open.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol, TypeVar

from paligemma.data.record import Record
from paligemma.errors import DataError, OptionError
from paligemma.options import Option

ObjectTask = Literal["detect", "segment"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
DEFAULT_CAPTION_PREFIX = "caption en"
_VALIDATION_NAMES = {"val", "valid", "validation", "dev"}
_TRAIN_NAMES = {"train", "training"}
_TEST_NAMES = {"test", "testing"}
Split = TypeVar("Split")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a data set, apart from where it is."""

    format: Annotated[str | None, Option(flags=("--format",), shown_default="detected")] = None
    """Format of the data: jsonl, coco, yolo, voc, masks, captions, huggingface or webdataset."""
    split: Annotated[str | None, Option(shown_default="train")] = None
    """Split to read, if the data has several."""
    images: Annotated[Path | None, Option(shown_default="next to the labels")] = None
    """Folder that holds the images."""
    prefix: Annotated[str | None, Option(shown_default="set by the format")] = None
    """Prefix to use when a record has none."""


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


class Reader(Protocol):
    """A module in `formats/`."""

    NAME: str

    def recognizes(self, path: Path) -> bool:
        """Whether the path looks like this format; reads little."""
        ...

    def read(self, path: Path, options: ReadOptions) -> Source: ...


def choose_split(splits: Mapping[str, Split], name: str | None, where: str) -> tuple[str, Split]:
    """The split of this name; without a name the only one, or "train".

    Raises OptionError when there is no such split, or when there are several and none is "train";
    DataError when there is no split at all.

    >>> choose_split({"train": 1, "valid": 2}, "val", "")
    ('valid', 2)
    """
    if not splits:
        raise DataError(f"{where!r} holds no data of this format. Check the path and the format.")
    if name is None:
        names = set(splits) if len(splits) == 1 else _TRAIN_NAMES
    else:
        groups = (_VALIDATION_NAMES, _TRAIN_NAMES, _TEST_NAMES)
        names = next((group for group in groups if name in group), {name})
        if name in splits:
            return name, splits[name]
    for split, content in splits.items():
        if split in names:
            return split, content
    problem = "there are several splits" if name is None else f"there is no split {name!r}"
    raise OptionError(f"{where}: {problem}. Choose one of: {', '.join(splits)}.")


def existing_image(path: Path, where: str) -> Path:
    """The path itself. Raises DataError when the file does not exist."""
    try:
        exists = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        exists = False
    if not exists:
        raise DataError(f"{where} names the image {str(path)!r}, which does not exist.")
    return path


def is_image(path: Path) -> bool:
    """Whether the file's name is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def images_in(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"The folder {str(folder)!r} cannot be listed: {error}.") from error
    return [path for path in paths if is_image(path) and not path.name.startswith(".")]


def read_text(path: Path) -> str:
    """The file as UTF-8, with or without a byte order mark. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file {str(path)!r} cannot be read as UTF-8 text: {error}.") from error
