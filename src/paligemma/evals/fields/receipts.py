"""CORD, SROIE and FUNSD in their official files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paligemma.data.source import read_text
from paligemma.documents.geometry import union
from paligemma.errors import DataError
from paligemma.evals.datasets.files import read_json, read_table
from paligemma.evals.fields.records import FieldRecord, TrueBox

CORD_SCHEMA: dict[str, Any] = {
    "title": "receipt",
    "type": "object",
    "properties": {
        "menu": {
            "type": "array",
            "maxItems": 60,
            "question": "Which items are on the receipt?",
            "items": {
                "type": "object",
                "properties": {
                    "nm": {"type": "string", "description": "name of the item"},
                    "cnt": {"type": ["string", "null"], "description": "quantity of {nm}"},
                    "unitprice": {"type": ["string", "null"], "description": "unit price of {nm}"},
                    "price": {"type": ["string", "null"], "description": "price of {nm}"},
                },
                "required": ["nm"],
            },
        },
        "sub_total": {
            "type": "object",
            "properties": {
                name: {"type": ["string", "null"], "description": words}
                for name, words in (
                    ("subtotal_price", "subtotal"),
                    ("discount_price", "discount"),
                    ("service_price", "service charge"),
                    ("tax_price", "tax"),
                )
            },
        },
        "total": {
            "type": "object",
            "properties": {
                name: {"type": ["string", "null"], "description": words}
                for name, words in (
                    ("total_price", "total"),
                    ("cashprice", "amount paid in cash"),
                    ("changeprice", "change"),
                    ("creditcardprice", "amount paid by card"),
                    ("menuqty_cnt", "number of items"),
                )
            },
        },
    },
}
"""The fields of CORD that most receipts have, by CORD's own names."""

SROIE_SCHEMA: dict[str, Any] = {
    "title": "receipt",
    "type": "object",
    "properties": {
        "company": {"type": ["string", "null"], "description": "name of the company"},
        "date": {"type": ["string", "null"], "format": "date", "description": "date"},
        "address": {"type": ["string", "null"], "description": "address", "maxLength": 200},
        "total": {"type": ["string", "null"], "format": "decimal", "description": "total"},
    },
}


def read_cord(folder: Path, split: str) -> Iterator[FieldRecord]:
    """`ground_truth` holds JSON with "gt_parse". What it does not name, a receipt does not have."""
    for path in sorted((folder / "data").glob(f"{split}-*.parquet")):
        for number, row in enumerate(read_table(path, "image")):
            if row.image is None:
                continue
            truth = json.loads(row.values["ground_truth"])["gt_parse"]
            name = f"{path.stem}-{number}"
            yield FieldRecord(
                record_id=name, source=row.image, fields=_cord_fields(truth), where=name
            )


def _cord_fields(truth: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the schema; a value that is printed in several places is joined.

    >>> _cord_fields({"menu": {"nm": "TEA", "price": "5"}})["menu"]
    [{'nm': 'TEA', 'cnt': None, 'unitprice': None, 'price': '5'}]
    """
    properties = CORD_SCHEMA["properties"]
    menu = truth.get("menu", [])
    names = properties["menu"]["items"]["properties"]
    fields: dict[str, Any] = {
        "menu": [
            {name: _joined(item.get(name)) for name in names}
            for item in (menu if isinstance(menu, list) else [menu])
            if isinstance(item, Mapping)
        ]
    }
    for group in ("sub_total", "total"):
        part = truth.get(group, {})
        part = part[0] if isinstance(part, list) and part else part
        fields[group] = {
            name: _joined(part.get(name)) if isinstance(part, Mapping) else None
            for name in properties[group]["properties"]
        }
    return fields


def _joined(value: Any) -> str | None:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = " ".join(text for text in value if isinstance(text, str))
    return value if isinstance(value, str) and value.strip() else None


def read_sroie(folder: Path, split: str) -> Iterator[FieldRecord]:
    """entities/X51005200931.txt holds JSON about img/X51005200931.jpg."""
    for path in sorted((folder / split / "entities").glob("*.txt")):
        try:
            entities = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path.name!r} is not JSON: {error}.") from error
        names = SROIE_SCHEMA["properties"]
        yield FieldRecord(
            record_id=path.stem,
            source=folder / split / "img" / f"{path.stem}.jpg",
            fields={name: entities.get(name) or None for name in names},
            where=path.name,
        )


def read_funsd(folder: Path, split: str) -> Iterator[FieldRecord]:
    """Questions with the answers that are linked to them, as entries of the schema `form`."""
    part = folder / "dataset" / f"{split}ing_data"
    for path in sorted((part / "annotations").glob("*.json")):
        parts = {part["id"]: part for part in read_json(path)["form"]}
        entries: list[dict[str, Any]] = []
        boxes: dict[str, TrueBox] = {}
        for question in parts.values():
            if question["label"] != "question" or not question["text"].strip():
                continue
            answers = [
                parts[last]
                for first, last in question["linking"]
                if first == question["id"] and parts[last]["label"] == "answer"
            ]
            text = " ".join(answer["text"] for answer in answers).strip()
            if text:
                x1, y1, x2, y2 = union([tuple(answer["box"]) for answer in answers])
                box = (float(x1), float(y1), float(x2), float(y2))
                boxes[f"entries[{len(entries)}].value"] = TrueBox(page=1, box_xyxy=box)
            entries.append({"label": question["text"].strip(" :"), "value": text or None})
        yield FieldRecord(
            record_id=path.stem,
            source=part / "images" / f"{path.stem}.png",
            fields={"entries": entries},
            boxes=boxes,
            where=path.name,
        )
