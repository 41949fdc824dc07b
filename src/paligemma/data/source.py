"""What a reader of one format hands to `open_data`: entries that are built one by one.

A reader lists entries and raises DataError only where the whole data set cannot be read; what is
wrong with one entry shows when it is built, so that the policy for bad records is in one place.
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
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_SPLIT_NAMES = ({"val", "valid", "validation", "dev"}, {"train", "training"}, {"test", "testing"})
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a data set, apart from where it is."""

    format: Annotated[str | None, Option(flags=("--format",), shown_default="detected")] = None
    """Format of the data: jsonl, coco, yolo, voc, masks, captions, huggingface or webdataset."""
    split: Annotated[str | None, Option(shown_default="train")] = None
    """Split to read from data that has several."""
    images: Annotated[Path | None, Option(shown_default="next to the labels")] = None
    """Directory that holds the images."""
    prefix: Annotated[str | None, Option(shown_default="set by the format")] = None
    """Prefix to use when a record has none."""


class Entry(NamedTuple):
    """One record to be."""

    record_id: str
    where: str
    build: Callable[[], Record]
    """Raises DataError, or ImageError, where the entry is bad."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as a reader found it."""

    format: str
    found: str
    """In words: "2 files of JSON Lines"."""
    entries: Sequence[Entry]
    class_names: tuple[str, ...] = ()
    """As the data set lists its classes; empty where it has no such list."""
    task: ObjectTask = "detect"
    """What objects are there for, unless a person says otherwise."""
    tally: Counter[str] = field(default_factory=Counter)
    """What was left out or changed, counted while entries are built: {"crowds left out": 3}."""


class Reader(Protocol):
    """A module in `formats/`."""

    NAME: str

    def is_here(self, path: Path) -> bool:
        """Whether the path looks like this format; reads little."""
        ...

    def read(self, path: Path, options: ReadOptions) -> Source: ...


def choose_split(splits: Mapping[str, Found], wanted: str | None, where: str) -> tuple[str, Found]:
    """The split that was asked for; else the only one, or "train".

    Raises OptionError when it is not there, or when there are several and none is "train";
    DataError when there is nothing at all.

    >>> choose_split({"train": 1, "valid": 2}, "val", "")
    ('valid', 2)
    """
    if not splits:
        raise DataError(
            f"At {where!r} there is nothing of this form. Check the path and the format."
        )
    alike = next((names for names in _SPLIT_NAMES if wanted in names), {wanted})
    if wanted is None:
        alike = set(splits) if len(splits) == 1 else _SPLIT_NAMES[1]
    if wanted is not None and wanted in splits:
        return wanted, splits[wanted]
    for name, found in splits.items():
        if name in alike:
            return name, found
    there = ", ".join(splits)
    asked = "Several splits are there" if wanted is None else f"The split {wanted!r} is not there"
    raise OptionError(f"{where}: {asked}: {there}. Name one of them as the split.")


def existing_picture(path: Path, where: str) -> Path:
    """The path itself. Raises DataError when no file is there."""
    if not path.is_file():
        raise DataError(f"{where} names the picture {str(path)!r}, which is not there.")
    return path


def pictures_in(folder: Path) -> list[Path]:
    """The picture files right in a folder, by name."""
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
        )
    except OSError as error:
        raise DataError(f"The folder {str(folder)!r} cannot be listed: {error}.") from error


def read_text(path: Path) -> str:
    """The file as UTF-8, with or without a byte order mark. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file {str(path)!r} cannot be read as UTF-8 text: {error}.") from error
