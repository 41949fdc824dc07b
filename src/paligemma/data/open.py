"""open_data: a path -> Records. Guesses the format, says what it found, keeps bad records out.

Knows the readers in `formats/` and the policy for bad records; knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args, overload

from paligemma.data.formats import (
    caption_folder,
    coco,
    hugging_face,
    jsonl,
    mask_folder,
    tar_shards,
    voc,
    yolo,
)
from paligemma.data.record import BadRecord, Record
from paligemma.data.source import ObjectTask, Reader, ReadOptions, Source
from paligemma.errors import DataError, ImageError, OptionError

BadPolicy = Literal["error", "skip"]
MAX_SKIPPED = 0.01

# In the order of guessing: from forms that nothing else looks like to a folder of pictures.
READERS: dict[str, Reader] = {
    reader.NAME: cast(Reader, reader)
    for reader in (tar_shards, hugging_face, yolo, coco, voc, mask_folder, jsonl, caption_folder)
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Records(Sequence[Record]):
    """A data set: its good records, in the order of its files."""

    name: str
    format: str
    found: str
    """In words, what was read."""
    records: tuple[Record, ...]
    slots: tuple[Record | BadRecord, ...]
    """One for each place of the files, bad ones included: an order drawn over these is the same
    whether a bad record is repaired, left out, or was never bad."""
    class_names: tuple[str, ...]
    """As the data set lists them, or sorted."""
    task: ObjectTask
    """What to make of objects, unless a person says otherwise."""
    notes: tuple[str, ...]
    """What was left out or changed, with counts."""

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """The records that were left out."""
        return tuple(slot for slot in self.slots if isinstance(slot, BadRecord))

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)


def open_data(
    path: str | Path,
    *,
    format: str | None = None,
    split: str | None = None,
    prefix: str | None = None,
    images: str | Path | None = None,
    bad: BadPolicy = "error",
    max_skipped: float = MAX_SKIPPED,
    skipped_file: str | Path | None = None,
) -> Records:
    """Read a data set's annotations; pictures are read when they are asked for.

    `format` is one of `READERS`, guessed by default; "huggingface" with a path that does not exist
    is a name on the hub. `split`: "train" where there are several. `prefix` is for records that
    bring none. `images` is the folder of pictures where it is not beside the annotations.

    A bad record (a missing picture, a broken line, an empty answer, a box outside its picture, an
    id that was there before) raises DataError that names the file and the line or id. With
    bad="skip" it is left out and written to `skipped_file`, a JSON line each; more than
    `max_skipped` of them (and more than one) raise.

    >>> records = open_data("pictures/annotations/instances_train.json")  # doctest: +SKIP
    >>> records.format, len(records), records[0].objects[0].label         # doctest: +SKIP
    ('coco', 60, 'valve')
    """
    path = Path(path).expanduser()
    if bad not in get_args(BadPolicy):
        raise OptionError(f"bad is {bad!r}; it must be one of {get_args(BadPolicy)}.")
    options = ReadOptions(
        split=split, prefix=prefix, images=None if images is None else Path(images)
    )
    source = _reader(path, format).read(path, options)
    slots = _build(source, bad)
    skipped = [slot for slot in slots if isinstance(slot, BadRecord)]
    if bad == "skip" and skipped_file is not None:
        _write_skipped(Path(skipped_file), skipped)
    _check_skipped(skipped, len(slots), max_skipped)
    good = tuple(slot for slot in slots if isinstance(slot, Record))
    labels = {found.label for record in good for found in record.objects or ()}
    return Records(
        name=path.name,
        format=source.format,
        found=source.found,
        records=good,
        slots=slots,
        class_names=source.class_names or tuple(sorted(labels)),
        task=source.task,
        notes=tuple(f"{count} {what}" for what, count in sorted(source.tally.items())),
    )


def _reader(path: Path, format: str | None) -> Reader:
    if format is not None:
        if format not in READERS:
            raise OptionError(f"The format {format!r} is unknown; there are: {_known()}.")
        return READERS[format]
    if not path.exists():
        raise DataError(
            f"There is nothing at {str(path)!r}; a file or folder of data is needed. For a data "
            "set of the Hugging Face hub say format='huggingface'."
        )
    # A file of JSON Lines has no other format, so no other reader has to look at it.
    first = [READERS[jsonl.NAME]] if path.is_file() else []
    for reader in (*first, *READERS.values()):
        if reader.is_here(path):
            return reader
    inside = ""
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir())
        inside = f" It holds: {', '.join(names[:8]) or 'nothing'}{', ...' if names[8:] else ''}."
    raise DataError(
        f"{str(path)!r} looks like none of the known forms of data: {_known()}.{inside} Say which "
        "it is with format=..., or write JSON Lines of image, prefix and suffix."
    )


def _known() -> str:
    return ", ".join(sorted(READERS))


def _build(source: Source, policy: BadPolicy) -> tuple[Record | BadRecord, ...]:
    slots: list[Record | BadRecord] = []
    seen: dict[str, str] = {}
    for record_id, where, build in source.entries:
        try:
            try:
                record = build()
            except ImageError as error:  # which may not know whose picture it is
                raise DataError(f"{where}: {error}") from error
            if record_id in seen:
                raise DataError(f"{where} has the id {record_id!r}, as {seen[record_id]} has.")
            seen[record_id] = where
            slots.append(record)
        except DataError as error:
            if policy == "error":
                raise
            slots.append(BadRecord(record_id=record_id, where=where, reason=str(error)))
    return tuple(slots)


def _check_skipped(skipped: Sequence[BadRecord], num_slots: int, max_skipped: float) -> None:
    if len(skipped) == num_slots:
        raise DataError(f"No record can be used. The first: {skipped[0].reason}")
    # One is always borne, so that small sets can be used, too.
    if len(skipped) > max(1.0, max_skipped * num_slots):
        raise DataError(
            f"{len(skipped)} of {num_slots} records are bad, more than {max_skipped:.1%}. The "
            f"first: {skipped[0].reason} Repair the data, or allow more with max_skipped."
        )


def _write_skipped(path: Path, skipped: Sequence[BadRecord]) -> None:
    lines = [
        json.dumps({"id": bad.record_id, "where": bad.where, "reason": bad.reason})
        for bad in skipped
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"The file {str(path)!r} cannot be written: {error}.") from error
