"""A folder of images with captions next to them: `1.jpg` and `1.txt`.

Each line of the text file is a caption; with several, one is learned per epoch. Subfolders are
read, too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from paligemma.data.formats.yolo import has_numeric_lines
from paligemma.data.record import Record
from paligemma.data.source import (
    DEFAULT_CAPTION_PREFIX,
    Entry,
    ReadRequest,
    Source,
    choose_split,
    is_image,
    is_split_name,
    read_text,
)
from paligemma.errors import DataError, counted

NAME = "captions"


def recognizes(path: Path) -> bool:
    """A folder where an image has a text file of the same name, other than YOLO's numbers."""
    if not path.is_dir():
        return False
    files = (image.with_suffix(".txt") for image in _images(path))
    return any(has_numeric_lines(read_text(file)) is False for file in files if file.is_file())


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError where there are no images. Folders named train, val and test are splits."""
    groups: dict[str, list[Path]] = {}
    images = _images(path)
    for image in images:
        folders = image.relative_to(path).parts[:-1]
        groups.setdefault(folders[0] if folders else "", []).append(image)
    split: str | None = None
    splits: tuple[str, ...] = ()
    if groups and (options.split is not None or all(map(is_split_name, groups))):
        split, images = choose_split(groups, options, str(path))
        splits = tuple(groups)
    root = path / split if split else path
    if not images:
        raise DataError(f"The folder {str(root)!r} holds no images.")
    entries = [
        Entry(
            image.relative_to(root).as_posix(),
            f"Image {str(image)!r}",
            partial(_record, image, root, options.prefix or DEFAULT_CAPTION_PREFIX),
        )
        for image in images
    ]
    return Source(
        summary=f"{counted(len(entries), 'image')} in {root}",
        entries=entries,
        split=split,
        splits=splits,
    )


def _images(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if is_image(p))


def _record(image: Path, root: Path, prefix: str) -> Record:
    where = f"Image {str(image)!r}"
    file = image.with_suffix(".txt")
    if not file.is_file():
        raise DataError(f"{where} has no caption: {file.name} does not exist next to it.")
    captions = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not captions:
        raise DataError(f"{where} has an empty caption in {file.name}. Fill it in.")
    return Record(
        record_id=image.relative_to(root).as_posix(),
        image=image,
        prefix=prefix,
        references=captions,
        where=where,
    )
