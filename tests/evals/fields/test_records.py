"""Documents with true fields: JSON Lines in all its forms, and what is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from paligemma.data.record import BadRecord
from paligemma.errors import DataError
from paligemma.evals.fields.records import (
    FieldRecord,
    TrueBox,
    is_field_data,
    keys_of,
    nested,
    read_field_records,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    return tmp_path


def read(folder: Path, *lines: object) -> list[FieldRecord | BadRecord]:
    path = folder / "forms.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return read_field_records(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"date": "1", "items": [{"name": "tea"}, {"name": None}]},
        {"date": "1", "items[0].name": "tea", "items[1].name": None},
        [
            {"path": "date", "value": "1", "box_xyxy": [1, 2, 3, 4]},
            {"path": "items[0].name", "value": "tea"},
            {"path": "items[1].name", "value": None},
        ],
    ],
)
def test_values_may_be_nested_or_by_path(folder: Path, fields: object) -> None:
    [record] = read(folder, {"file": "a.png", "fields": fields, "text": "x"})
    assert isinstance(record, FieldRecord)
    assert record.fields == {"date": "1", "items": [{"name": "tea"}, {"name": None}]}
    assert (record.record_id, record.text) == ("a.png", "x")
    if isinstance(fields, list):
        assert record.boxes == {"date": TrueBox(page=1, box_xyxy=(1.0, 2.0, 3.0, 4.0))}
    assert is_field_data(folder / "forms.jsonl")


def test_boxes_may_be_on_any_page(folder: Path) -> None:
    boxes = {"date": {"page": 2, "box_xyxy": [1, 2, 3, 4]}, "x": [0, 0, 1, 1]}
    [record] = read(folder, {"file": "a.png", "id": "7", "fields": {"date": "1"}, "boxes": boxes})
    assert isinstance(record, FieldRecord)
    assert record.record_id == "7"
    assert [box.page for box in record.boxes.values()] == [2, 1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1"),
        ("[1]", "no JSON object"),
        ({"fields": {}}, "'file'"),
        ({"file": "a.png"}, "neither 'fields' nor 'text'"),
        ({"file": "b.png", "fields": {}}, "does not exist"),
        ({"file": "a.png", "fields": 1}, "neither an object nor a list"),
        ({"file": "a.png", "fields": {"a[1]": "x"}}, "gaps"),
        ({"file": "a.png", "fields": {"a[99999999999]": "x"}}, "too large"),
        ({"file": "a.png", "fields": {"a..b": "x"}}, "not the path"),
        ({"file": "a.png", "fields": {"a": "x", "a.b": "y"}}, "inside of another value"),
        ({"file": "a.png", "fields": [{"path": "a"}, {"path": "a"}]}, "twice"),
        ({"file": "a.png", "fields": [{"value": 1}]}, "no 'path'"),
        ({"file": "a.png", "fields": {}, "boxes": {"a": [1, 2, 3]}}, "not four numbers"),
        ({"file": "a.png", "fields": {}, "boxes": {"a": [3, 2, 1, 4]}}, "no area"),
        ({"file": "a.png", "fields": {}, "truth": {}}, "'truth' is not known"),
        ({"file": "a.png", "fields": {}, "text": 3}, "is not text"),
        ('{"file": "a.png", "fields": ' + '{"a": ' * 300 + "1" + "}" * 301, "levels deep"),
        ('{"file": "a.png", "fields": ' + '{"a": ' * 30000 + "1" + "}" * 30001, ""),
    ],
)
def test_bad_lines_are_told_apart(folder: Path, line: object, reason: str) -> None:
    [record] = read(folder, line)
    assert isinstance(record, BadRecord)
    assert reason in record.reason


def test_files_without_records_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no records"):
        read(folder, "")
    with pytest.raises(DataError):
        read_field_records(folder / "missing.jsonl")
    assert not is_field_data(folder / "missing.jsonl")
    (folder / "images.jsonl").write_text('{"image": "a.png", "prefix": "ocr", "suffix": "x"}')
    assert not is_field_data(folder / "images.jsonl")


def test_paths_are_keys() -> None:
    assert keys_of('a b[0]["x.y"].c') == ("a b", 0, "x.y", "c")
    assert nested({}) == {}
    for path in ("", "a[", "a[-1]", "[b]", "a.b."):
        with pytest.raises(ValueError, match="path"):
            keys_of(path)
