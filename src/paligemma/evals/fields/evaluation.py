"""What a model reads in documents, compared with what is true, by field.

    records -> extractions.jsonl -> cells -> cells.jsonl (one line per value), report.json

As in `evals/evaluation.py`, scores are computed from the file of extractions, so that a run that
was interrupted, or is scored again, reads no document twice.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paligemma.data.open import check_number_of_bad, write_bad
from paligemma.data.record import BadRecord, OnBadRecord
from paligemma.data.source import MAX_SKIPPED
from paligemma.documents.asker import Asker
from paligemma.documents.read import read_document
from paligemma.errors import DataError, InputError, counted
from paligemma.evals.bootstrap import Interval, confidence_interval, mean_of
from paligemma.evals.fields.align import Aligner, ReadField
from paligemma.evals.fields.records import FieldRecord
from paligemma.evals.metrics.fields import (
    FieldCell,
    FieldScore,
    reading_order_distance,
    score_cells,
)
from paligemma.evals.predictions import model_header, open_lines
from paligemma.extraction.asking import extract
from paligemma.extraction.options import ExtractOptions
from paligemma.extraction.schema import Schema, read_schema
from paligemma.predictor import Predictor

EXTRACTIONS_FILE = "extractions.jsonl"
CELLS_FILE = "cells.jsonl"
REPORT_FILE = "report.json"
BAD_RECORDS_FILE = "bad_records.jsonl"
_FORMAT = 1
TOTAL = "all fields"


@dataclass(frozen=True, kw_only=True)
class FieldEvalOptions:
    """How documents are read and scored."""

    extract: ExtractOptions = field(default=ExtractOptions())
    """How fields are asked for, and how the true values are printed: order of dates, decimal
    mark. Places are searched only where a true place is known."""
    limit: int | None = None
    """Maximum number of documents."""
    on_bad_record: OnBadRecord = "error"
    max_skipped: float = MAX_SKIPPED
    seed: int = 0
    """Of the resampled documents that give the intervals."""


@dataclass(frozen=True, kw_only=True)
class ReadingOrder:
    """How far the text of the documents is from their text in reading order."""

    distance: float
    """The mean normalized edit distance; 0 is best."""
    interval: Interval | None
    num_records: int


@dataclass(frozen=True, kw_only=True)
class FieldEvaluation:
    """The results of an evaluation by field."""

    model: str
    data: str
    schema_name: str
    num_records: int
    fields: tuple[FieldScore, ...]
    """In the order of the schema."""
    total: FieldScore | None
    """Of the values of all fields together; None where only texts were compared."""
    reading_order: ReadingOrder | None
    bad: tuple[BadRecord, ...]
    notes: tuple[str, ...]
    seconds: float
    """Time spent on reading documents; short where extractions already existed."""

    def __getitem__(self, path: str) -> FieldScore:
        """The scores of a field. Raises KeyError."""
        for score in self.fields:
            if score.path == path:
                return score
        raise KeyError(path)


def evaluate_fields(
    asker: Asker,
    records: Sequence[FieldRecord | BadRecord],
    schema: Any,
    folder: Path,
    options: FieldEvalOptions | None = None,
    *,
    name: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> FieldEvaluation:
    """Read the documents, score every field, and write extractions, cells and report to a folder.

    `schema` is what `extract` takes; None makes one of text fields from the true values.

    Raises DataError for records that cannot be used, and what `extract` raises.
    """
    options = options or FieldEvalOptions()
    slots = list(records)[: options.limit]
    kept = [slot for slot in slots if isinstance(slot, FieldRecord)]
    bad = [slot for slot in slots if isinstance(slot, BadRecord)]
    if bad and options.on_bad_record == "error":
        raise DataError(f"{bad[0].reason} To leave such records out: --on-bad-record skip.")
    tree: Schema[Any] = read_schema(schema_of(kept) if schema is None else schema)
    start = time.perf_counter()
    run = _Run(asker=asker, schema=tree, options=options, path=folder / EXTRACTIONS_FILE)
    lines, unreadable = run.read(kept, on_progress)
    seconds = time.perf_counter() - start
    bad += unreadable
    check_number_of_bad(bad, len(slots), options.max_skipped)
    if bad:
        write_bad(folder / BAD_RECORDS_FILE, bad)
    kept = [record for record in kept if record.record_id in lines]
    aligner = Aligner.of(kept, tree, options.extract.formats)
    cells = [
        cell
        for number, record in enumerate(kept)
        for cell in aligner.cells(number, record, _read_fields(lines[record.record_id]))
    ]
    _write_cells(folder / CELLS_FILE, kept, cells)
    evaluation = FieldEvaluation(
        model=getattr(asker, "name", ""),
        data=name,
        schema_name=tree.name,
        num_records=len(kept),
        fields=_by_field(cells, tree, options.seed),
        total=score_cells(TOTAL, cells, seed=options.seed) if cells else None,
        reading_order=_reading_order(kept, lines, options.seed),
        bad=tuple(bad),
        notes=_notes(aligner),
        seconds=seconds,
    )
    _write_report(folder / REPORT_FILE, evaluation, options)
    return evaluation


def schema_of(records: Iterable[FieldRecord]) -> dict[str, Any]:
    """A JSON schema of text fields with the names that occur in the true values."""
    root: dict[str, Any] = {"type": "object", "title": "document", "properties": {}}
    for record in records:
        _add_to_schema(root, record.fields)
    return root


def _add_to_schema(schema: dict[str, Any], true: Mapping[str, Any]) -> None:
    for key, value in true.items():
        known = schema["properties"].get(key, {"type": ["string", "null"]})
        if isinstance(value, Mapping):
            known = {"type": "object", "properties": known.get("properties", {})}
            _add_to_schema(known, value)
        elif isinstance(value, list):
            item = known.get("items", {"type": "string"})
            for each in value:
                if isinstance(each, Mapping):
                    item = {"type": "object", "properties": item.get("properties", {})}
                    _add_to_schema(item, each)
            known = {"type": "array", "items": item}
        schema["properties"][key] = known


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The file of extractions, and what fills it."""

    asker: Asker
    schema: Schema[Any]
    options: FieldEvalOptions
    path: Path

    def read(
        self, records: Sequence[FieldRecord], on_progress: Callable[[int, int], None] | None
    ) -> tuple[dict[str, dict[str, Any]], list[BadRecord]]:
        """The line of each document by id, read from the file or written to it."""
        _check_ids(records)
        lines: dict[str, dict[str, Any]] = {}
        for text in open_lines(self.path, self._header()):
            value = json.loads(text)
            lines[value["id"]] = value
        bad: list[BadRecord] = []
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            for number, record in enumerate(records):
                if on_progress is not None:
                    on_progress(number, len(records))
                if record.record_id in lines:
                    continue
                try:
                    line = self._line(record)
                except (InputError, DataError) as error:
                    where = record.where or record.record_id
                    if self.options.on_bad_record == "error":
                        raise DataError(
                            f"{where}: {error} To leave such records out: --on-bad-record skip."
                        ) from error
                    bad.append(
                        BadRecord(
                            record_id=record.record_id, where=where, reason=f"{where}: {error}"
                        )
                    )
                    continue
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
                lines[record.record_id] = line
        if on_progress is not None:
            on_progress(len(records), len(records))
        return lines, bad

    def _line(self, record: FieldRecord) -> dict[str, Any]:
        line: dict[str, Any] = {"id": record.record_id}
        options = self.options.extract
        source = record.open()
        if record.fields:
            searched = replace(options, detect=options.detect and bool(record.boxes))
            found = extract(self.asker, source, self.schema, searched).to_dict()
            line |= {name: found[name] for name in ("fields", "problems", "notes")}
        if record.text is not None:
            line["text"] = read_document(self.asker, source).text
        return line

    def _header(self) -> dict[str, Any]:
        model = model_header(self.asker) if isinstance(self.asker, Predictor) else {}
        return {
            "paligemma_extractions": _FORMAT,
            "model": model,
            "options": {
                **asdict(replace(self.options.extract, password=None, batch_size=None)),
                "schema": json.dumps(self.schema.json_schema, sort_keys=True),
            },
        }


def _read_fields(line: Mapping[str, Any]) -> dict[str, ReadField]:
    return {each["path"]: ReadField.of(each) for each in line.get("fields", ())}


def _by_field(cells: Sequence[FieldCell], schema: Schema[Any], seed: int) -> tuple[FieldScore, ...]:
    """Fields in the order of the schema; before the values of a list, the list as a whole."""
    groups: dict[str, list[FieldCell]] = {}
    for leaf in schema.leaves():
        above = leaf.path.rpartition("[].")[0]
        if above:
            groups.setdefault(f"{above}[]", [])
        groups.setdefault(leaf.path, [])
    for cell in cells:
        groups[cell.path].append(cell)
        above = cell.path.rpartition("[].")[0]
        if above:
            groups[f"{above}[]"].append(cell)
    return tuple(score_cells(path, part, seed=seed) for path, part in groups.items() if part)


def _reading_order(
    records: Sequence[FieldRecord], lines: Mapping[str, Mapping[str, Any]], seed: int
) -> ReadingOrder | None:
    distances = [
        reading_order_distance(lines[record.record_id]["text"], record.text)
        for record in records
        if record.text is not None
    ]
    if not distances:
        return None
    return ReadingOrder(
        distance=sum(distances) / len(distances),
        interval=confidence_interval(mean_of(distances), len(distances), seed=seed),
        num_records=len(distances),
    )


def _notes(aligner: Aligner) -> tuple[str, ...]:
    missing = aligner.not_in_schema
    if not missing:
        return ()
    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return (
        f"{counted(len(missing), 'field')} with true values {'is' if len(missing) == 1 else 'are'} "
        f"not in the schema, and not scored: {shown}",
    )


def _check_ids(records: Sequence[FieldRecord]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.record_id in seen:
            raise DataError(
                f"Two records have the id {record.record_id!r}. Give each line an 'id' of its own."
            )
        seen.add(record.record_id)


def _write_cells(path: Path, records: Sequence[FieldRecord], cells: Sequence[FieldCell]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for cell in cells:
            line = {**asdict(cell), "record": records[cell.record].record_id}
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _write_report(path: Path, evaluation: FieldEvaluation, options: FieldEvalOptions) -> None:
    order = evaluation.reading_order
    report = {
        "model": evaluation.model,
        "data": evaluation.data,
        "schema": evaluation.schema_name,
        "num_records": evaluation.num_records,
        "fields": [score.to_dict() for score in evaluation.fields],
        "total": None if evaluation.total is None else evaluation.total.to_dict(),
        "reading_order": None if order is None else asdict(order),
        "bad_records": [bad.to_dict() for bad in evaluation.bad],
        "notes": list(evaluation.notes),
        "options": asdict(replace(options.extract, password=None)),
        "seconds": round(evaluation.seconds, 3),
        "versions": {"paligemma": version("paligemma"), "python": platform.python_version()},
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")
