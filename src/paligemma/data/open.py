"""open_data: a file or folder -> Records. Detects the format and sets bad records aside."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, cast, overload

from paligemma.data.formats import (
    caption_folder,
    coco,
    conversations,
    hugging_face,
    jsonl,
    mask_folder,
    tar_shards,
    voc,
    yolo,
)
from paligemma.data.formats.annotation_tools import TOOL_READERS
from paligemma.data.formats.csv_table import CSV_READERS
from paligemma.data.record import BadRecord, OnBadRecord, Record
from paligemma.data.source import (
    Entry,
    ObjectTask,
    Purpose,
    Reader,
    ReadOptions,
    ReadRequest,
    images_in,
)
from paligemma.errors import DataError, ImageError, OptionError
from paligemma.writing import write_whole

READERS: dict[str, Reader] = {
    reader.NAME: cast(Reader, reader)
    for reader in (
        jsonl, tar_shards, hugging_face, yolo, coco, voc, mask_folder, caption_folder,
        conversations, *TOOL_READERS, *CSV_READERS,
    )
}  # fmt: skip


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
    split: str | None = None
    """The split that was read; None where the data have none."""
    splits: tuple[str, ...] = ()
    """All splits of the data."""

    def without(self, bad: Sequence[BadRecord]) -> Records:
        """The same data set, in which these records are bad too."""
        by_id = {record.record_id: record for record in bad}
        return replace(
            self,
            records=tuple(record for record in self.records if record.record_id not in by_id),
            slots=tuple(by_id.get(slot.record_id, slot) for slot in self.slots),
        )

    def part(self, record_ids: Collection[str]) -> Records:
        """The records with these ids alone, good and bad."""
        return replace(
            self,
            records=tuple(record for record in self.records if record.record_id in record_ids),
            slots=tuple(slot for slot in self.slots if slot.record_id in record_ids),
        )

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
    options: ReadOptions | None = None,
    *,
    purpose: Purpose = "train",
    bad_file: str | Path | None = None,
    **choices: Any,
) -> Records:
    """Read the annotations of a data set; images are read when they are needed.

    `choices` are fields of `ReadOptions`: format, split, images, class_names, prefix, column,
    boxes, crowds, first_pixel, on_bad_record, max_skipped. The format is detected by default;
    "huggingface" with a path that does not exist is a name on the hub. Without a split, the
    `purpose` chooses: "train", "validation", or "test" (else validation, never train).

    A bad record (a missing image, a broken line, an empty answer, a box outside its image, a
    duplicate id) raises DataError that names the file and the line or id. With
    on_bad_record="skip" it is left out and written to `bad_file`, one JSON line each; more than
    the share `max_skipped` of them (and more than one) is an error. OptionError where the data can
    be read in two ways; it names both, and the option that chooses.

    >>> records = open_data("images/annotations/instances_train.json")  # doctest: +SKIP
    >>> records.format, len(records), records[0].objects[0].label       # doctest: +SKIP
    ('coco', 60, 'valve')
    """
    path = Path(os.path.expanduser(path))
    options = replace(options or ReadOptions(), **choices)
    fields = {field.name: getattr(options, field.name) for field in dataclass_fields(ReadOptions)}
    if options.images is not None:
        fields["images"] = Path(options.images)
    request = ReadRequest(**fields, purpose=purpose)
    path, reader = _choose_reader(path, options.format)
    source = reader.read(path, request)
    slots = _build_records(source.entries, options.on_bad_record)
    bad = [slot for slot in slots if isinstance(slot, BadRecord)]
    if options.on_bad_record == "skip" and bad_file is not None:
        write_bad(Path(bad_file), bad)
    check_number_of_bad(bad, len(slots), options.max_skipped)
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
        notes=tuple(f"{count} {what}" for what, count in sorted(source.tally.items()) if count),
        split=source.split,
        splits=source.splits,
    )


def _choose_reader(path: Path, format: str | None) -> tuple[Path, Reader]:
    """The reader, and the path where its data are: that of the only data set in a folder."""
    formats = ", ".join(sorted(READERS))
    if format is not None:
        if format not in READERS:
            raise OptionError(f"Unknown format {format!r}. Formats: {formats}.")
        return path, READERS[format]
    if not path.exists():
        raise DataError(
            f"{str(path)!r} does not exist. Give a file or folder of data; for a data set of the "
            "Hugging Face hub use format='huggingface' (--format huggingface)."
        )
    if reader := _only_reader(path):
        return path, reader
    content = ""
    if path.is_dir():
        folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        readers = {folder: reader for folder in folders if (reader := _only_reader(folder))}
        if len(readers) == 1:
            return next(iter(readers.items()))
        if readers:
            raise OptionError(
                f"{str(path)!r} holds several data sets: "
                f"{', '.join(f'{p.name} ({r.NAME})' for p, r in readers.items())}. Give one."
            )
        names = sorted(p.name for p in path.iterdir())
        content = f" It holds: {', '.join(names[:8]) or 'nothing'}{', ...' if names[8:] else ''}."
        if any(images_in(folder) for folder in folders):
            content += (
                " Folders of images named by class are read with format='huggingface' (--format "
                "huggingface)."
            )
    raise DataError(
        f"{str(path)!r} does not look like any supported format: {formats}.{content} Choose one "
        "with format=... (--format), or write JSON Lines of image, prefix and suffix."
    )


def _only_reader(path: Path) -> Reader | None:
    """Raises OptionError where the path looks like data of several formats."""
    lines = READERS[jsonl.NAME]
    if path.is_file() and lines.recognizes(path):  # so no other reader has to look at it
        return lines
    readers = [reader for reader in READERS.values() if reader.recognizes(path)]
    if len(readers) > 1:
        names = [reader.NAME for reader in readers]
        raise OptionError(
            f"{str(path)!r} can be read as {' and as '.join(names)}. Choose one with format=... "
            f"(--format {names[0]}), or give one of its files."
        )
    return readers[0] if readers else None


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


def check_number_of_bad(bad: Sequence[BadRecord], num_slots: int, max_skipped: float) -> None:
    """Raises DataError where no record is left, or more are bad than may be skipped."""
    if len(bad) == num_slots:
        raise DataError(f"No record can be used. The first: {bad[0].reason}")
    if len(bad) > max_bad(num_slots, max_skipped):
        raise DataError(
            f"{len(bad)} of {num_slots} records are bad, more than {max_skipped:.1%}. The first: "
            f"{bad[0].reason} Fix the data, or allow more with max_skipped (--max-skipped)."
        )


def max_bad(num_slots: int, max_skipped: float) -> float:
    """How many records may be skipped: one always, so that small data sets can be used too."""
    return max(1.0, max_skipped * num_slots)


def write_bad(path: Path, records: Sequence[BadRecord]) -> None:
    """Write one JSON line per record. Raises OptionError."""
    lines = [
        json.dumps({"id": bad.record_id, "where": bad.where, "reason": bad.reason})
        for bad in records
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise OptionError(f"The file {str(path)!r} cannot be written: {error}.") from error
