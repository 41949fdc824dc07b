"""A folder with captions beside the pictures: `1.jpg` and `1.txt`.

Each line of the text file is a caption; with several, one is learned at a time. Folders inside
are read too.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from paligemma.data.record import Record
from paligemma.data.source import PICTURE_SUFFIXES, Entry, ReadOptions, Source, read_text
from paligemma.errors import DataError

NAME = "captions"
_DEFAULT_PREFIX = "caption en"


def is_here(path: Path) -> bool:
    """A folder where a picture has its text file beside it."""
    return path.is_dir() and any(p.with_suffix(".txt").is_file() for p in _pictures(path))


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError where there are no pictures."""
    root = path / options.split if options.split else path
    pictures = _pictures(root)
    if not pictures:
        raise DataError(f"The folder {str(root)!r} holds no pictures.")
    tally: Counter[str] = Counter()
    entries = [
        Entry(
            picture.relative_to(root).as_posix(),
            f"Picture {str(picture)!r}",
            partial(_build, picture, root, options.prefix or _DEFAULT_PREFIX),
        )
        for picture in pictures
    ]
    return Source(
        format=NAME, found=f"{len(entries)} pictures in {root}", entries=entries, tally=tally
    )


def _pictures(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)


def _build(picture: Path, root: Path, prefix: str) -> Record:
    where = f"Picture {str(picture)!r}"
    file = picture.with_suffix(".txt")
    if not file.is_file():
        raise DataError(f"{where} has no caption: {file.name} is not beside it.")
    captions = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not captions:
        raise DataError(f"{where} has an empty caption in {file.name}. Write it.")
    return Record(
        record_id=picture.relative_to(root).as_posix(),
        image=picture,
        prefix=prefix,
        references=captions,
        where=where,
    )
