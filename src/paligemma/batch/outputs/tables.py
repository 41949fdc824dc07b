"""JSON Lines, CSV and Parquet: a line for each image, or a row for each object or field."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from paligemma.batch.journal import Entry
from paligemma.batch.outputs.rows import Content, embedding, utf8
from paligemma.errors import MissingExtraError
from paligemma.escaping import csv_cell
from paligemma.results import CSV_COLUMNS

_ROWS_OF_A_GROUP = 1000
_FIELD_COLUMNS = ("field", "value", "score", "page", "problems")


def write_jsonl(content: Content, path: Path) -> None:
    """A JSON object for each image, with its result or error."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for entry in content.entries():
            line = content.line(entry)
            if content.task == "embed" and entry.result is not None:
                line["result"] = {"embedding": embedding(entry.result).tolist()}
            text = json.dumps(line, ensure_ascii=False, allow_nan=False)
            if utf8(text) != text:  # a name of the image or the model
                text = json.dumps(line, ensure_ascii=True, allow_nan=False)
            file.write(text + "\n")


def write_csv(content: Content, path: Path) -> None:
    """A row for each text, object or field, and one for each error. Text that a spreadsheet would
    take for a formula begins with an apostrophe."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns, rows_of = _csv_form(content)
        asked_columns = content.asked_columns()
        writer.writerow(("image", *asked_columns, *columns, "error"))
        for entry in content.entries():
            asked = (entry.asks.get(name, "") for name in asked_columns)
            about = [csv_cell(utf8(text), safe=True) for text in (entry.key, *asked)]
            if entry.error is not None:
                writer.writerow((*about, *[""] * len(columns), csv_cell(entry.error, safe=True)))
            else:
                writer.writerows((*about, *row, "") for row in rows_of(content, entry))


def _csv_form(content: Content) -> tuple[tuple[str, ...], Any]:
    if content.task in ("detect", "segment"):
        return CSV_COLUMNS, _object_rows
    if content.task == "extract":
        return _FIELD_COLUMNS, _field_rows
    return ("text", "score"), _text_rows


def _text_rows(content: Content, entry: Entry) -> Iterator[tuple[Any, ...]]:
    assert entry.result is not None
    yield csv_cell(content.text(entry), safe=True), entry.result.get("score", "")


def _object_rows(content: Content, entry: Entry) -> Iterator[tuple[Any, ...]]:
    assert entry.result is not None
    for each in entry.result["objects"]:
        score = "" if each["score"] is None else f"{each['score']:.4f}"
        box = (f"{edge:.2f}" for edge in each["box_xyxy"])
        yield csv_cell(each["label"], safe=True), score, *box, str(each["unsure"])


def _field_rows(content: Content, entry: Entry) -> Iterator[tuple[Any, ...]]:
    assert entry.result is not None
    for each in entry.result["fields"]:
        value = "" if each["value"] is None else csv_cell(str(each["value"]), safe=True)
        problems = csv_cell(" ; ".join(each["problems"]), safe=True)
        yield csv_cell(each["path"], safe=True), value, each["score"], each["page"], problems


def write_parquet(content: Content, path: Path) -> None:
    """A row for each image: id, what its row asked, text, score, error, model, task, and what the
    task finds."""
    pa, parquet = _pyarrow()
    schema = pa.schema(
        [
            ("id", pa.string()), *((name, pa.string()) for name in content.asked_columns()),
            ("text", pa.string()), ("score", pa.float64()),
            ("error", pa.string()), ("model", pa.string()), ("task", pa.string()),
            *_extra_columns(pa, content.task),
        ]
    )  # fmt: skip
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        entries = content.entries()
        while group := list(islice(entries, _ROWS_OF_A_GROUP)):
            rows = [_parquet_row(content, entry) for entry in group]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def check_parquet() -> None:
    """Raises MissingExtraError where Parquet cannot be written."""
    _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "batch", "Writing Parquet") from None
    return pyarrow, parquet


def _extra_columns(pa: Any, task: str) -> list[tuple[str, Any]]:
    if task == "embed":
        return [("embedding", pa.list_(pa.float32()))]
    if task == "extract":
        return [("value", pa.string())]
    if task not in ("detect", "segment"):
        return []
    edges = [(name, pa.float64()) for name in ("x1", "y1", "x2", "y2")]
    fields = [("label", pa.string()), *edges, ("score", pa.float64())]
    if task == "segment":
        size = ("size", pa.list_(pa.int64()))
        fields.append(("mask", pa.struct([size, ("counts", pa.string())])))
    return [("objects", pa.list_(pa.struct(fields)))]


def _parquet_row(content: Content, entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": utf8(entry.key),
        **{name: utf8(text) for name, text in entry.asks.items()},
        "error": None if entry.error is None else utf8(entry.error),
        "model": utf8(content.model),
        "task": content.task,
    }
    result = entry.result
    if result is None:
        return row
    row["text"] = utf8(content.text(entry)) if "text" in result else None
    row["score"] = result.get("score")
    match content.task:
        case "embed":
            row["embedding"] = embedding(result)
        case "extract":
            row["value"] = json.dumps(result["value"], ensure_ascii=False)
        case "detect" | "segment":
            row["objects"] = [_parquet_object(each) for each in result["objects"]]
    return row


def _parquet_object(values: dict[str, Any]) -> dict[str, Any]:
    edges = dict(zip(("x1", "y1", "x2", "y2"), values["box_xyxy"], strict=True))
    return {
        "label": values["label"],
        **edges,
        "score": values["score"],
        "mask": values.get("mask"),
    }
