"""JSON Lines: one record a line, {"image": "pictures/1.jpg", "prefix": ..., "suffix": ...}.

Paths are relative to the file; a list of them is a question about several pictures. The other
fields: see `fields.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from paligemma.data.fields import record_of_fields
from paligemma.data.record import Record
from paligemma.data.source import Entry, ReadOptions, Source, choose_split, existing_picture
from paligemma.errors import DataError

NAME = "jsonl"
_SUFFIXES = (".jsonl", ".ndjson")


def is_here(path: Path) -> bool:
    """A file of this kind, or a folder with at least one."""
    return path.suffix.lower() in _SUFFIXES or bool(_files(path))


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError for a file that is no text; lines are checked one by one."""
    if path.is_dir():
        _, path = choose_split(_files(path), options.split, str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The data file {str(path)!r} cannot be read as UTF-8 text. Give a JSON Lines "
            'file of {"image": ..., "prefix": ..., "suffix": ...}.'
        ) from error
    tally: Counter[str] = Counter()
    # Not splitlines(): JSON may hold U+2028, which ends no line of a file.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    entries = [_entry(path, number, line, options, tally) for number, line in lines]
    if not entries:
        raise DataError(f"The data file {str(path)!r} holds no example.")
    return Source(
        format=NAME,
        found=f"{len(entries)} lines of JSON in {path.name}",
        entries=entries,
        tally=tally,
    )


def _files(folder: Path) -> dict[str, Path]:
    """By split; a file `annotations.train.jsonl` or `_annotations.train.jsonl` is "train"."""
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    return {path.stem.split(".")[-1]: path for path in files}


def _entry(path: Path, number: int, line: str, options: ReadOptions, tally: Counter[str]) -> Entry:
    where = f"Line {number} of {str(path)!r}"
    try:
        fields = json.loads(line)
    except ValueError as error:
        return Entry(f"line {number}", where, partial(_fail, f"{where} is not JSON: {error}."))
    given = fields.get("id") if isinstance(fields, dict) else None
    record_id = str(given) if isinstance(given, str | int) else f"line {number}"
    build = partial(_build, path, fields, record_id, where, options, tally)
    return Entry(record_id, where, build)


def _fail(message: str) -> Record:
    raise DataError(f"{message} Write one object a line.")


def _build(
    path: Path,
    fields: object,
    record_id: str,
    where: str,
    options: ReadOptions,
    tally: Counter[str],
) -> Record:
    names = fields.get("image") if isinstance(fields, dict) else None
    if isinstance(names, str):
        names = [names]
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not isinstance(fields, dict) or not names or not is_list:
        raise DataError(
            f'{where} must be an object with text under "image", "prefix" and "suffix".'
        )
    image, *more = ((options.images or path.parent) / name for name in names)
    if fields.get("objects") is not None:
        if more:
            raise DataError(
                f"{where} has objects and {len(names)} pictures; boxes refer to one. Give one "
                "picture, or write the answer as suffix."
            )
        existing_picture(image, where)  # its header is read
    record = record_of_fields(
        fields,
        record_id=record_id,
        where=where,
        image=image,
        default_prefix=options.prefix,
        tally=tally,
    )
    pictures = [existing_picture(one, where) for one in (image, *more)]
    return replace(record, more_images=tuple(pictures[1:]))
