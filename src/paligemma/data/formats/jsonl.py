"""JSON Lines: one record per line, {"image": "images/1.jpg", "prefix": ..., "suffix": ...}.

Paths are relative to the file; a list of them is a question about several images. For the other
fields see `annotation.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from paligemma.data.annotation import record_of_fields
from paligemma.data.record import Record
from paligemma.data.source import (
    Entry,
    ReadOptions,
    Source,
    choose_split,
    existing_image,
    read_text,
)
from paligemma.errors import DataError, counted

NAME = "jsonl"
_SUFFIXES = (".jsonl", ".ndjson")


def recognizes(path: Path) -> bool:
    """A file of this kind, or a folder with at least one."""
    return path.suffix.lower() in _SUFFIXES or bool(_files(path))


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError for a file that is not text; each line is checked when it is built."""
    if path.is_dir():
        _, path = choose_split(_files(path), options.split, str(path))
    text = read_text(path)
    tally: Counter[str] = Counter()
    # Not splitlines(): JSON may contain U+2028, which is not the end of a line in a file.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    entries = [_entry(path, number, line, options, tally) for number, line in lines]
    if not entries:
        raise DataError(
            f"The data file {str(path)!r} has no records. Write one JSON object per line."
        )
    return Source(
        summary=f"{counted(len(entries), 'line')} of JSON in {path.name}",
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
    record_id = f"line {number}"
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Entry(record_id, where, partial(_not_json, where, error))
    if isinstance(fields, dict) and isinstance(fields.get("id"), str | int):
        record_id = str(fields["id"])
    folder = options.images or path.parent
    build = partial(_record, fields, folder, record_id, where, options.prefix, tally)
    return Entry(record_id, where, build)


def _not_json(where: str, error: Exception) -> Record:
    raise DataError(f"{where} is not JSON: {error}. Write one object per line.")


def _record(
    fields: object,
    folder: Path,
    record_id: str,
    where: str,
    default_prefix: str | None,
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
    image, *more = (folder / name for name in names)
    if fields.get("objects") is not None:
        if more:
            raise DataError(
                f"{where} has objects and {len(names)} images, but boxes refer to one image. Give "
                "one image, or write the answer as suffix."
            )
        existing_image(image, where)  # its header is read
    record = record_of_fields(
        fields,
        record_id=record_id,
        where=where,
        image=image,
        default_prefix=default_prefix,
        tally=tally,
    )
    paths = [existing_image(path, where) for path in (image, *more)]
    return replace(record, more_images=tuple(paths[1:]))
