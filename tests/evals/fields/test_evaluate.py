"""Evaluation by field: a model that knows the truth, or most of it, on documents of all kinds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma.data.record import BadRecord
from paligemma.errors import DataError
from paligemma.evals.fields.datasets import find_field_benchmark, open_field_benchmark
from paligemma.evals.fields.evaluation import (
    CELLS_FILE,
    EXTRACTIONS_FILE,
    REPORT_FILE,
    FieldEvalOptions,
    evaluate_fields,
    schema_of,
)
from paligemma.evals.fields.records import FieldRecord, TrueBox
from paligemma.extraction.options import ExtractOptions
from paligemma.fonts import Lettering
from tests.documents.scripted import ScriptedModel
from tests.extraction.french_invoice import ANSWERS, write_french_invoice

for package in ("pypdfium2", "defusedxml", "pydantic", "llguidance", "rapidfuzz"):
    pytest.importorskip(package)

SCHEMA: dict[str, Any] = {
    "title": "receipt",
    "type": "object",
    "properties": {
        "date": {"type": ["string", "null"], "format": "date", "question": "date?"},
        "total": {"type": ["string", "null"], "format": "decimal", "question": "total?"},
        "shop": {"type": ["string", "null"], "question": "shop?"},
        "items": {
            "type": "array",
            "question": "items?",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "price": {
                        "type": ["string", "null"],
                        "format": "decimal",
                        "question": "price of {name}?",
                    },
                },
                "required": ["name"],
            },
        },
    },
}


def page() -> Image.Image:
    """A page with some print: blank ones are not asked about."""
    image = Image.new("RGB", (100, 50), "white")
    Lettering(12).draw(image, (5, 30), "RECEIPT", (0, 0, 0))
    return image


def record(name: str, fields: dict[str, Any], **more: Any) -> FieldRecord:
    return FieldRecord(record_id=name, source=page, fields=fields, **more)


def model(answers: dict[str, str], **options: Any) -> ScriptedModel:
    def reply(prompt: str, image: Any) -> str:
        question = prompt.removeprefix("answer en ")
        return "" if prompt.startswith("detect") else answers.get(question, "unanswerable")

    return ScriptedModel(reply=reply, **options)


TRUE = {
    "date": "1 May 2024",
    "total": "1.234,50 €",
    "shop": None,
    "items": [{"name": "Tea", "price": "3,00"}, {"name": "Cake", "price": None}],
}
ANSWERS_TO = {
    "date?": "2024-05-01",
    "total?": "1234.50",
    "items?": "cake ; TEA",
    "price of TEA?": "4.00",
    "price of cake?": "n/a",
}


def test_values_are_compared_after_normalization_and_matching(tmp_path: Path) -> None:
    found = evaluate_fields(model(ANSWERS_TO), [record("a", TRUE)], SCHEMA, tmp_path)
    exact = {score.path: score.exact for score in found.fields}
    assert exact == {
        "date": 1.0,
        "total": 1.0,
        "shop": 1.0,  # absent, and not read
        "items[]": 0.75,
        "items[].name": 1.0,
        "items[].price": 0.5,
    }
    assert found["items[]"].f1 == pytest.approx(2 * 2 / (3 + 3))
    assert found.total is not None
    assert found.total.num_cells == 7
    cells = [json.loads(line) for line in (tmp_path / CELLS_FILE).read_text().split("\n") if line]
    tea = next(cell for cell in cells if cell["read"] == "4.00")
    assert (tea["record"], tea["path"], tea["true"]) == ("a", "items[].price", "3,00")
    report = json.loads((tmp_path / REPORT_FILE).read_text())
    assert report["total"]["exact"] == pytest.approx(6 / 7)


def test_invented_items_and_values_are_wrong(tmp_path: Path) -> None:
    true: dict[str, Any] = {"shop": None, "items": []}
    answers = {"shop?": "ACME", "items?": "Tea", "price of Tea?": "1.00"}
    found = evaluate_fields(model(answers), [record("a", true)], SCHEMA, tmp_path)
    assert {score.path: score.exact for score in found.fields} == {
        "shop": 0.0,
        "items[]": 0.0,
        "items[].name": 0.0,
        "items[].price": 0.0,
    }
    assert found.total is not None
    assert found.total.precision == 0.0
    assert found.total.coverage is None


def test_fields_without_truth_are_not_scored(tmp_path: Path) -> None:
    found = evaluate_fields(
        model(ANSWERS_TO), [record("a", {"shop": None, "color": "red"})], SCHEMA, tmp_path
    )
    assert [score.path for score in found.fields] == ["shop"]
    assert found.notes == ("1 field with true values is not in the schema, and not scored: color",)


def test_places_and_reading_order_are_scored_where_they_are_known(tmp_path: Path) -> None:
    boxes = {"date": TrueBox(page=1, box_xyxy=(0.0, 0.0, 100.0, 25.0))}
    records = [record("a", {"date": "2024-05-01"}, boxes=boxes), record("b", {}, text="one two")]
    found = evaluate_fields(
        model({"date?": "2024-05-01", "ocr": "one too"}), records, SCHEMA, tmp_path
    )
    # The place of an answer without a box is the part of the page that was shown: all of it.
    assert found["date"].evidence_iou == pytest.approx(0.5)
    assert found.reading_order is not None
    assert found.reading_order.num_records == 1
    assert 0 < found.reading_order.distance < 1


def test_runs_resume_and_refuse_other_options(tmp_path: Path) -> None:
    first = model(ANSWERS_TO)
    records = [record("a", TRUE), record("b", {"shop": "ACME"})]
    evaluate_fields(first, records[:1], SCHEMA, tmp_path)
    path = tmp_path / EXTRACTIONS_FILE
    path.write_text(path.read_text() + '{"id": "b", "fie')  # as a run that was killed
    second = model({"shop?": "acme."})
    found = evaluate_fields(second, records, SCHEMA, tmp_path)
    assert found["shop"].exact == 1.0
    assert not any("date?" in prompt for prompt in second.prompts[:1]) or len(second.prompts) < 20
    assert len(path.read_text().strip().split("\n")) == 3
    with pytest.raises(DataError, match="language"):
        evaluate_fields(
            second,
            records,
            SCHEMA,
            tmp_path,
            FieldEvalOptions(extract=ExtractOptions(language="de")),
        )


def test_bad_documents_are_errors_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 no more")
    bad = FieldRecord(record_id="bad", source=tmp_path / "bad.pdf", fields={"shop": "x"})
    good = [record(f"good {n}", {"shop": "ACME"}) for n in range(3)]
    reader = model({"shop?": "ACME"})
    with pytest.raises(DataError, match="--on-bad-record"):
        evaluate_fields(reader, [*good, bad], SCHEMA, tmp_path / "out")
    skipping = FieldEvalOptions(on_bad_record="skip")
    found = evaluate_fields(reader, [*good, bad], SCHEMA, tmp_path / "out", skipping)
    assert (found.num_records, [each.record_id for each in found.bad]) == (3, ["bad"])
    line = BadRecord(record_id="line 2", where="line 2", reason="line two is no JSON")
    with pytest.raises(DataError, match="two"):
        evaluate_fields(reader, [line], SCHEMA, tmp_path / "other")
    with pytest.raises(DataError, match="id"):
        evaluate_fields(reader, [good[0], good[0]], SCHEMA, tmp_path / "third")


def test_without_a_schema_the_fields_are_texts(tmp_path: Path) -> None:
    records = [record("a", {"shop_name": "ACME", "lines": ["x"], "to": {"city": "Ulm"}})]
    schema = schema_of(records)
    assert schema["properties"]["lines"] == {"type": "array", "items": {"type": "string"}}
    assert list(schema["properties"]["to"]["properties"]) == ["city"]
    answers: dict[str, str] = {}
    reader = ScriptedModel(reply=lambda prompt, image: answers.get(prompt, "ACME"))
    found = evaluate_fields(reader, records, None, tmp_path)
    assert {score.path: score.exact for score in found.fields} == {
        "shop_name": 1.0,
        "lines[]": 0.0,
        "to.city": 0.0,
    }


def test_a_french_electronic_invoice_is_read_field_by_field(tmp_path: Path) -> None:
    write_french_invoice(tmp_path / "fr.pdf")
    benchmark = find_field_benchmark("einvoices")
    assert benchmark is not None
    records = open_field_benchmark(benchmark, tmp_path)

    def reply(prompt: str, image: Any) -> str:
        matching = [text for key, text in ANSWERS.items() if key in prompt.lower()]
        return matching[-1] if matching and not prompt.startswith("detect") else "unanswerable"

    found = evaluate_fields(
        ScriptedModel(reply=reply, resolution=896),
        records,
        benchmark.schema,
        tmp_path / "out",
        FieldEvalOptions(extract=ExtractOptions(date_order="dmy")),
    )
    exact = {score.path: score.exact for score in found.fields}
    wrong = {path: share for path, share in exact.items() if share < 1}
    assert wrong == {"currency": 0.0}  # printed as €, which the script leaves out
    assert found.total is not None
    assert found.total.coverage is not None


def test_official_files_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    import io

    content = io.BytesIO()
    page().save(content, "PNG")
    png = content.getvalue()
    truth = {
        "gt_parse": {
            "menu": {"nm": "TEA", "cnt": "1 x", "price": "45,500"},
            "sub_total": [{"tax_price": "4,500"}],
            "total": {"total_price": ["45,500", "IDR"]},
        }
    }
    (tmp_path / "data").mkdir()
    rows = {
        "image": [{"bytes": png, "path": "a.png"}],
        "ground_truth": [json.dumps(truth)],
    }
    pyarrow.parquet.write_table(
        pyarrow.table(rows), tmp_path / "data" / "test-00000-of-00001.parquet"
    )
    for folder in ("test/img", "test/entities"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "test/img/X1.jpg").write_bytes(png)
    entities = {"company": "ACME", "date": "01/02/2018", "total": "9.00"}
    (tmp_path / "test/entities/X1.txt").write_text(json.dumps(entities))
    for folder in ("dataset/testing_data/annotations", "dataset/testing_data/images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dataset/testing_data/images/f.png").write_bytes(png)
    form = [
        {"id": 0, "label": "question", "text": "Date:", "box": [0, 0, 9, 9], "linking": [[0, 1]]},
        {"id": 1, "label": "answer", "text": "May 1", "box": [9, 0, 20, 9], "linking": [[0, 1]]},
        {"id": 2, "label": "question", "text": "Name:", "box": [0, 9, 9, 19], "linking": []},
        {"id": 3, "label": "header", "text": "FAX", "box": [0, 20, 9, 29], "linking": []},
    ]
    path = tmp_path / "dataset/testing_data/annotations/f.json"
    path.write_text(json.dumps({"form": form}))

    fields = {}
    for name in ("cord", "sroie", "funsd"):
        benchmark = find_field_benchmark(name)
        assert benchmark is not None
        [only] = open_field_benchmark(benchmark, tmp_path)
        assert isinstance(only, FieldRecord)
        fields[name] = only.fields
        reader = ScriptedModel(reply=lambda prompt, image: "unanswerable")
        found = evaluate_fields(reader, [only], benchmark.schema, tmp_path / name)
        assert found.total is not None
        with pytest.raises(DataError, match="missing"):
            open_field_benchmark(benchmark, tmp_path / "nowhere")
    assert fields["cord"]["menu"] == [
        {"nm": "TEA", "cnt": "1 x", "unitprice": None, "price": "45,500"}
    ]
    assert fields["cord"]["sub_total"]["tax_price"] == "4,500"
    assert fields["cord"]["total"]["total_price"] == "45,500 IDR"
    assert fields["sroie"] == {**entities, "address": None}
    assert fields["funsd"]["entries"] == [
        {"label": "Date", "value": "May 1"},
        {"label": "Name", "value": None},
    ]
    (tmp_path / "test/entities/X1.txt").write_text("no JSON")
    sroie = find_field_benchmark("sroie")
    assert sroie is not None
    with pytest.raises(DataError, match="not JSON"):
        open_field_benchmark(sroie, tmp_path)


def test_scores_say_which_share_can_be_accepted(tmp_path: Path) -> None:
    """20 sure and right ones, 5 unsure and wrong ones: 20 of 25, or with one wrong more."""
    sure = [record(str(n), {"shop": "ACME"}) for n in range(20)]
    unsure = [record(str(n), {"shop": "OTHER"}) for n in range(20, 25)]
    evaluate_fields(model({"shop?": "ACME"}, probability=0.99), sure, SCHEMA, tmp_path)
    found = evaluate_fields(
        model({"shop?": "ACME"}, probability=0.6), [*sure, *unsure], SCHEMA, tmp_path
    )
    assert found.total is not None
    assert found.total.coverage is not None
    assert found.total.coverage.share == 0.8
    assert found.total.coverage.min_score > 0.9
    assert found.total.exact == 0.8
    assert replace(found, notes=()).seconds >= 0
