"""JSON Lines: one record per line, {"image": "images/1.jpg", "prefix": ..., "suffix": ...}.

Paths are relative to the file; a list of them is a question about several images. "video" in place
of "image" names a film, of which "frames" frames (16) are the images, evenly spaced over one in
"stride" (1) between "start_s" and "end_s". For the other fields see `annotation.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.data.annotation import record_of_fields
from paligemma.data.record import Record
from paligemma.data.source import (
    Entry,
    ImageFinder,
    Marks,
    ReadRequest,
    Source,
    begins_with,
    choose_split,
    read_text,
)
from paligemma.errors import DataError, OptionError, counted
from paligemma.video.sampling import SampledFilm

NAME = "jsonl"
_SUFFIXES = (".jsonl", ".ndjson")
_CHAT_MARKS: Marks = ((b'"conversations"', b'"from"'), (b'"messages"', b'"role"'))
LABELBOX_MARKS: Marks = ((b'"data_row"', b'"row_data"'), (b'"Labeled Data"', b'"Label"'))


def recognizes(path: Path) -> bool:
    """A file of this kind, or a folder with at least one."""
    if path.is_dir():
        return bool(_files(path))
    return _is_own(path)


def _is_own(path: Path) -> bool:
    """Whether this reader takes the file; `annotation_tools.py` reads Labelbox's."""
    return (
        path.suffix.lower() in _SUFFIXES
        and not is_chat_file(path)
        and not begins_with(path, LABELBOX_MARKS)
    )


def is_chat_file(path: Path) -> bool:
    """Whether a JSON or JSON Lines file begins with a chat, which `conversations.py` reads."""
    if path.suffix.lower() not in (".json", *_SUFFIXES):
        return False
    return begins_with(path, _CHAT_MARKS)


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError for a file that is not text, OptionError where a split has several files;
    each line is checked when it is built."""
    split: str | None = None
    splits: tuple[str, ...] = ()
    if path.is_dir():
        files = _files(path)
        split, paths = choose_split(files, options, str(path))
        splits = tuple(files)
        if len(paths) > 1:
            raise OptionError(
                f"The split {split!r} has several files: {', '.join(p.name for p in paths)}. Give "
                "one of them as the data, or join them."
            )
        path = paths[0]
    text = read_text(path)
    tally: Counter[str] = Counter()
    finder = ImageFinder([options.images or path.parent], tally)
    # Not splitlines(): JSON may contain U+2028, which is not the end of a line in a file.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    reading = _Reading(finder=finder, options=options, tally=tally)
    entries = [reading.entry(path, number, line) for number, line in lines]
    if not entries:
        raise DataError(
            f"The data file {str(path)!r} has no records. Write one JSON object per line."
        )
    return Source(
        summary=f"{counted(len(entries), 'line')} of JSON in {path.name}",
        entries=entries,
        tally=tally,
        split=split,
        splits=splits,
    )


def _files(folder: Path) -> dict[str, list[Path]]:
    """By split; a file `annotations.train.jsonl` or `_annotations.train.jsonl` is "train"."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _is_own(path):
            files.setdefault(path.stem.split(".")[-1], []).append(path)
    return files


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the records of one file have in common."""

    finder: ImageFinder
    options: ReadRequest
    tally: Counter[str]

    def entry(self, path: Path, number: int, line: str) -> Entry:
        where = f"Line {number} of {str(path)!r}"
        record_id = f"line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            return Entry(record_id, where, partial(_not_json, where, error))
        if isinstance(fields, dict) and isinstance(fields.get("id"), str | int):
            record_id = str(fields["id"])
        return Entry(record_id, where, partial(self.record, fields, record_id, where))

    def record(self, fields: object, record_id: str, where: str) -> Record:
        if isinstance(fields, dict) and "video" in fields:
            return self._record_of_video(fields, record_id, where)
        names = fields.get("image") if isinstance(fields, dict) else None
        if isinstance(names, str):
            names = [names]
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not isinstance(fields, dict) or not names or not is_list:
            raise DataError(
                f'{where} must be an object with text under "image", "prefix" and "suffix".'
                f"{_advice(fields)}"
            )
        if fields.get("objects") is not None and len(names) > 1:
            raise DataError(
                f"{where} has objects and {len(names)} images, but boxes refer to one image. Give "
                "one image, or write the answer as suffix."
            )
        paths: list[Path] = []
        if fields.get("objects") is not None:  # the image's header is read
            paths = [self.finder.find(names[0], where)]
        record = record_of_fields(
            fields,
            record_id=record_id,
            where=where,
            image=paths[0] if paths else Path(names[0]),
            options=self.options,
            tally=self.tally,
        )
        paths = paths or [self.finder.find(name, where) for name in names]
        return replace(record, image=paths[0], more_images=tuple(paths[1:]))

    def _record_of_video(self, fields: dict[str, Any], record_id: str, where: str) -> Record:
        name = fields["video"]
        for other in ("image", "objects"):
            if fields.get(other) is not None:
                raise DataError(f'{where} has a "video" and "{other}". Give one of them.')
        if not isinstance(name, str) or not name:
            raise DataError(f'{where}: "video" is {name!r}; it must be the path of a film.')
        given = {field: fields[key] for key, field in _VIDEO_FIELDS.items() if key in fields}
        for key in ("start_s", "end_s"):
            if not _is_number(given.get(key, 0.0)):
                raise DataError(f'{where}: "{key}" is {given[key]!r}; it must be seconds.')
        try:
            film = SampledFilm(path=self.finder.find(name, where), **given)
        except OptionError as error:
            raise DataError(f"{where}: {error}") from error
        first, *others = film.images()
        record = record_of_fields(
            fields,
            record_id=record_id,
            where=where,
            image=first,
            options=self.options,
            tally=self.tally,
        )
        return replace(record, more_images=tuple(others))


_VIDEO_FIELDS = {"frames": "number", "stride": "stride", "start_s": "start_s", "end_s": "end_s"}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _advice(fields: object) -> str:
    keys = fields.keys() if isinstance(fields, dict) else ()
    if "file_name" in keys:
        return " metadata.jsonl of an image folder is read with --format huggingface."
    if {"conversations", "messages"} & set(keys):
        return " Chats are read with --format conversations."
    return ""


def _not_json(where: str, error: Exception) -> Record:
    raise DataError(f"{where} is not JSON: {error}. Write one object per line.")
