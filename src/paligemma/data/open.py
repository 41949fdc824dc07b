"""open_data: a file or folder -> Records. Detects the format and sets bad records aside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args, overload

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
from paligemma.data.record import BadRecord, OnBadRecord, Record
from paligemma.data.source import Entry, ObjectTask, Reader, ReadOptions
from paligemma.errors import DataError, ImageError, OptionError

MAX_BAD_SHARE = 0.01

# In the order of detection: from formats that nothing else looks like to a folder of images.
READERS: dict[str, Reader] = {
    reader.NAME: cast(Reader, reader)
    for reader in (tar_shards, hugging_face, yolo, coco, voc, mask_folder, jsonl, caption_folder)
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Records(Sequence[Record]):
    """A data set: its good records, in the order of its files."""

    name: str
    format: str
    summary: str
    """In words, what was read."""
    records: tuple[Record, ...]
    slots: tuple[Record | BadRecord, ...]
    """One per entry of the files, including bad ones: an order drawn over these is the same
    whether a bad record is fixed, left out, or was never bad."""
    class_names: tuple[str, ...]
    """As the data set lists them, or sorted."""
    task: ObjectTask
    """The task that objects are meant for, unless the user chooses another."""
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
    on_bad_record: OnBadRecord = "error",
    max_bad_share: float = MAX_BAD_SHARE,
    bad_file: str | Path | None = None,
) -> Records:
    """Read the annotations of a data set; images are read when they are needed.

    `format` is one of `READERS`, detected by default; "huggingface" with a path that does not
    exist is a name on the hub. `split` is "train" where there are several. `prefix` is for records
    that have none. `images` is the folder of images, where it is not next to the annotations.

    A bad record (a missing image, a broken line, an empty answer, a box outside its image, a
    duplicate id) raises DataError that names the file and the line or id. With
    on_bad_record="skip" it is left out and written to `bad_file`, one JSON line each; more than
    the share `max_bad_share` of them (and more than one) is an error.

    >>> records = open_data("images/annotations/instances_train.json")  # doctest: +SKIP
    >>> records.format, len(records), records[0].objects[0].label       # doctest: +SKIP
    ('coco', 60, 'valve')
    """
    path = Path(path).expanduser()
    if on_bad_record not in get_args(OnBadRecord):
        raise OptionError(
            f"on_bad_record is {on_bad_record!r}; it must be one of {get_args(OnBadRecord)}."
        )
    options = ReadOptions(
        split=split, prefix=prefix, images=None if images is None else Path(images)
    )
    reader = _choose_reader(path, format)
    source = reader.read(path, options)
    slots = _build_records(source.entries, on_bad_record)
    bad = [slot for slot in slots if isinstance(slot, BadRecord)]
    if on_bad_record == "skip" and bad_file is not None:
        _write_bad(Path(bad_file), bad)
    _check_number_of_bad(bad, len(slots), max_bad_share)
    records = tuple(slot for slot in slots if isinstance(slot, Record))
    labels = {item.label for record in records for item in record.objects or ()}
    return Records(
        name=path.name,
        format=reader.NAME,
        summary=source.summary,
        records=records,
        slots=slots,
        class_names=source.class_names or tuple(sorted(labels)),
        task=source.task,
        notes=tuple(f"{count} {what}" for what, count in sorted(source.tally.items())),
    )


def _choose_reader(path: Path, format: str | None) -> Reader:
    formats = ", ".join(sorted(READERS))
    if format is not None:
        if format not in READERS:
            raise OptionError(f"Unknown format {format!r}. Formats: {formats}.")
        return READERS[format]
    if not path.exists():
        raise DataError(
            f"{str(path)!r} does not exist. Give a file or folder of data; for a data set of the "
            "Hugging Face hub use format='huggingface'."
        )
    # A file of JSON Lines has no other format, so no other reader has to look at it.
    first = [READERS[jsonl.NAME]] if path.is_file() else []
    for reader in (*first, *READERS.values()):
        if reader.recognizes(path):
            return reader
    content = ""
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir())
        content = f" It holds: {', '.join(names[:8]) or 'nothing'}{', ...' if names[8:] else ''}."
    raise DataError(
        f"{str(path)!r} does not look like any supported format: {formats}.{content} Choose one "
        "with format=..., or write JSON Lines of image, prefix and suffix."
    )


def _build_records(
    entries: Sequence[Entry], on_bad_record: OnBadRecord
) -> tuple[Record | BadRecord, ...]:
    slots: list[Record | BadRecord] = []
    first_with_id: dict[str, str] = {}
    for entry in entries:
        try:
            record = _build(entry)
            if (first := first_with_id.get(entry.record_id)) is not None:
                raise DataError(
                    f"{entry.where} has the same id as {first}: {entry.record_id!r}. "
                    "Give each record an id of its own."
                )
            first_with_id[entry.record_id] = entry.where
            slots.append(record)
        except DataError as error:
            if on_bad_record == "error":
                raise
            slots.append(BadRecord(record_id=entry.record_id, where=entry.where, reason=str(error)))
    return tuple(slots)


def _build(entry: Entry) -> Record:
    try:
        return entry.build()
    except ImageError as error:  # which may not know the record
        raise DataError(f"{entry.where}: {error}") from error


def _check_number_of_bad(bad: Sequence[BadRecord], num_slots: int, max_share: float) -> None:
    if len(bad) == num_slots:
        raise DataError(f"No record can be used. The first: {bad[0].reason}")
    # One is always allowed, so that small data sets can be used, too.
    if len(bad) > max(1.0, max_share * num_slots):
        raise DataError(
            f"{len(bad)} of {num_slots} records are bad, more than {max_share:.1%}. The first: "
            f"{bad[0].reason} Fix the data, or raise max_bad_share."
        )


def _write_bad(path: Path, records: Sequence[BadRecord]) -> None:
    lines = [
        json.dumps({"id": bad.record_id, "where": bad.where, "reason": bad.reason})
        for bad in records
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"The file {str(path)!r} cannot be written: {error}.") from error
