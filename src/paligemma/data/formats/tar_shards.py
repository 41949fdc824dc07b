"""webdataset shards: tar files in which the files of one sample share their name.

    000017.jpg + 000017.json     a record's fields (see `annotation.py`)
    000017.jpg + 000017.txt      a caption

Images are read from the tar file when they are needed, by their offset in it; so shards must not
be compressed.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from paligemma.data.annotation import record_of_fields
from paligemma.data.record import Record
from paligemma.data.source import (
    DEFAULT_CAPTION_PREFIX,
    IMAGE_SUFFIXES,
    Entry,
    ReadRequest,
    Source,
    choose_split,
)
from paligemma.errors import DataError, counted
from paligemma.processor.image import MAX_FILE_BYTES

NAME = "webdataset"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


class _Member(NamedTuple):
    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        if self.size > MAX_FILE_BYTES:
            raise DataError(
                f"{str(self.shard)!r} holds a file of {self.size} bytes; the limit is "
                f"{MAX_FILE_BYTES} bytes."
            )
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise DataError(f"The shard {str(self.shard)!r} cannot be read: {error}.") from error
        if len(data) < self.size:
            raise DataError(
                f"{str(self.shard)!r} was truncated while being read. Make sure that no other "
                "process writes to it, and copy it again if it is damaged."
            )
        return data


def recognizes(path: Path) -> bool:
    """A tar file, or a folder with at least one."""
    return bool(_shards(path)) or path.name.endswith(_COMPRESSED)


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError for a damaged or a compressed shard. Only headers are read."""
    if path.name.endswith(_COMPRESSED):
        raise DataError(f"The shard {str(path)!r} is compressed. Unpack it to a plain tar file.")
    groups = _shards(path)
    split, shards = choose_split(groups, options, str(path))
    tally: Counter[str] = Counter()
    entries = []
    for shard in shards:
        for key, members in _index(shard).items():
            where = f"Sample {key!r} of {str(shard)!r}"
            build = partial(_record, members, key, where, options, tally)
            entries.append(Entry(key, where, build))
    if not entries:
        raise DataError(f"The shards of {str(path)!r} hold no samples.")
    return Source(
        summary=f"{counted(len(entries), 'sample')} in {counted(len(shards), 'tar file')}",
        entries=entries,
        tally=tally,
        split=split or None,
        splits=tuple(filter(None, groups)),
    )


def _shards(path: Path) -> dict[str, list[Path]]:
    """By split, which is the letters at the beginning of a name: train-000001.tar."""
    if path.is_file():
        return {"": [path]} if path.suffix == ".tar" else {}
    groups: dict[str, list[Path]] = {}
    for file in sorted(path.glob("*.tar")) if path.is_dir() else ():
        letters = re.match(r"[A-Za-z]*", file.stem)
        groups.setdefault(letters[0] if letters else "", []).append(file)
    return groups


def _index(shard: Path) -> dict[str, dict[str, _Member]]:
    """Members by sample and by the part of their names after the first dot."""
    samples: dict[str, dict[str, _Member]] = {}
    try:
        with tarfile.open(shard, mode="r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if info.isfile() and suffix and stem:
                    key = f"{folder}/{stem}".removeprefix("./").lstrip("/")
                    member = _Member(shard, info.offset_data, info.size)
                    samples.setdefault(key, {})[suffix.lower()] = member
    except OSError as error:  # such as too many open files
        raise DataError(f"The shard {str(shard)!r} cannot be read: {error.strerror}.") from error
    except tarfile.TarError as error:
        raise DataError(f"The shard {str(shard)!r} is not a complete tar file: {error}.") from error
    return samples


def _record(
    members: dict[str, _Member],
    key: str,
    where: str,
    options: ReadRequest,
    tally: Counter[str],
) -> Record:
    image = next((members[s] for s in members if f".{s}" in IMAGE_SUFFIXES), None)
    if image is None:
        raise DataError(f"{where} has no image; its files are: {', '.join(members)}.")
    fields: Any = {}
    if "json" in members:
        try:
            fields = json.loads(members["json"].read())
        except ValueError as error:
            raise DataError(f"{where}: its JSON is invalid: {error}.") from error
        if not isinstance(fields, dict):
            raise DataError(f"{where}: its JSON must be an object.")
    if "txt" in members and "objects" in fields and options.column is None:
        raise DataError(
            f"{where} has objects and a text. Choose what to learn: --column objects or caption."
        )
    if "txt" in members and options.column != "objects":
        fields.pop("objects", None)
        if not {"suffix", "references"} & fields.keys():
            try:
                fields["suffix"] = members["txt"].read().decode().strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: its text is not UTF-8: {error}.") from error
    if options.prefix is None and "objects" not in fields:
        options = replace(options, prefix=DEFAULT_CAPTION_PREFIX)
    return record_of_fields(
        fields, record_id=key, where=where, image=image.read, options=options, tally=tally
    )
