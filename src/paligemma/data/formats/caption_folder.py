"""A folder of images with captions next to them: `1.jpg` and `1.txt`.

Each line of the text file is a caption; with several, one is learned per epoch. Subfolders are
read, too.
"""

from __future__ import annotations

import re
from functools import partial
from itertools import islice
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
from paligemma.errors import DataError, OptionError, counted

NAME = "captions"
_NUM_LOOKS = 50  # text files that are looked at to tell captions from labels
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def recognizes(path: Path) -> bool:
    """A folder where an image has a text file of the same name, other than YOLO's numbers.

    Raises OptionError where all texts look like labels of a format that is not read.
    """
    if not path.is_dir():
        return False
    files = (image.with_suffix(".txt") for image in _images(path))
    texts = (read_text(file) for file in files if file.is_file())
    others = list(islice((text for text in texts if has_numeric_lines(text) is False), _NUM_LOOKS))
    if others and all(map(_looks_like_labels, others)):
        line = others[0].strip().splitlines()[0]
        raise OptionError(
            f"The text files next to the images of {str(path)!r} hold mostly numbers, such as "
            f"{line!r}. They look like labels of a format that is not read, such as KITTI's or "
            "DOTA's, or YOLO's with names or commas. Convert them to one that is; or, if they are "
            "captions, choose format='captions' (--format captions)."
        )
    return bool(others)


def _looks_like_labels(text: str) -> bool:
    """Whether each line is made of numbers, or has four or more of them and few other words."""
    for line in filter(str.strip, text.splitlines()):
        words = re.split(r"[\s,;]+", line.strip(" \t,;"))
        num_numbers = sum(bool(_NUMBER.fullmatch(word)) for word in words)
        if num_numbers < len(words) and (num_numbers < 4 or 2 * num_numbers < len(words)):
            return False
    return True


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
