"""Documents over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import defusedxml.ElementTree
import pytest
from PIL import Image
from starlette.types import ASGIApp

from paligemma.documents.open import open_document
from paligemma.documents.read import read_document
from paligemma.predictor import Predictor
from paligemma.server.app import create_app
from paligemma.server.settings import Limits, Settings
from tests.documents.pdf_files import pdf_of_pages, text_at
from tests.extraction.french_invoice import write_french_invoice
from tests.server.asgi import Answer, call
from tests.server.conftest import EXAMPLES, MakeService
from tests.server.serving import until
from tests.server.test_http_api import encoded, post

TWO_PAGES = pdf_of_pages([text_at(20, 70, "Hello brave world"), b""])


def form(data: bytes, fields: dict[str, Any], name: str = "document") -> tuple[bytes, str]:
    """A multipart body and its content type."""
    parts = [
        b'--xyz\r\nContent-Disposition: form-data; name="request"\r\n\r\n',
        json.dumps(fields).encode(),
        b"\r\n--xyz\r\n",
        f'Content-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode(),
        data,
        b"\r\n--xyz--\r\n",
    ]
    return b"".join(parts), "multipart/form-data; boundary=xyz"


def send(app: ASGIApp, path: str, body: bytes, content_type: str) -> Answer:
    return asyncio.run(call(app, "POST", path, body, {"content-type": content_type}))


def pages_of(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    pages: list[dict[str, Any]] = answer.json()["pages"]
    return pages


def test_pages_are_shown_as_images(mini_app: ASGIApp) -> None:
    answer = post(mini_app, "/v1/pages", {"document": encoded(TWO_PAGES), "max_side": 300})
    first, second = pages_of(answer)
    assert answer.json()["num_pages"] == 2
    assert first | {"image": ""} == {
        **{"page": 1, "size_wh": [200.0, 100.0], "unit": "pt", "turned": 0, "num_words": 3},
        "image": "",
    }
    assert second["num_words"] == 0
    kind, _, data = first["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (300, 150)


def test_a_document_comes_as_json_as_a_form_or_by_itself(mini_app: ASGIApp) -> None:
    url = "data:application/pdf;base64," + encoded(TWO_PAGES)
    fields = {"pages": "2", "max_side": 64}
    as_json = post(mini_app, "/v1/pages", {"document": url, **fields})
    body, content_type = form(TWO_PAGES, fields)
    as_form = send(mini_app, "/v1/pages", body, content_type)
    alone = send(mini_app, "/v1/pages?pages=2&max_side=64", TWO_PAGES, "application/pdf")
    assert pages_of(as_json) == pages_of(as_form) == pages_of(alone)
    assert [page["page"] for page in pages_of(alone)] == [2]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_document", "document"),
        ({"document": "JVBERi0="}, "invalid_document", "document"),
        ({"document": "data:text/html;base64,AAAA"}, "invalid_document", "document"),
        ({"document": "A"}, "invalid_document", "document"),
        ({"document": encoded(TWO_PAGES), "pages": "3"}, "invalid_option", None),
        ({"document": encoded(TWO_PAGES), "pages": "<script>"}, "invalid_field", "pages"),
        ({"document": encoded(TWO_PAGES), "pages": [1]}, "invalid_field", "pages"),
        ({"document": encoded(TWO_PAGES), "model": "other"}, "model_not_found", "model"),
        ({"document": encoded(TWO_PAGES), "max_side": 10**6}, "invalid_field", "max_side"),
        ({"document": {"url": "https://example.com/a.pdf"}}, "invalid_field", "document"),
    ],
)
def test_wrong_requests_about_documents_are_refused(
    fields: dict[str, Any], code: str, param: str | None, mini_app: ASGIApp
) -> None:
    answer = post(mini_app, "/v1/pages", fields)
    assert answer.status in (400, 404)
    assert (answer.error["code"], answer.error["param"]) == (code, param)
    assert "script" not in answer.error["message"]


def test_a_document_given_twice_is_refused(mini_app: ASGIApp) -> None:
    body, content_type = form(TWO_PAGES, {"document": encoded(TWO_PAGES)})
    answer = send(mini_app, "/v1/pages", body, content_type)
    assert answer.error["code"] == "invalid_document"
    body, content_type = form(TWO_PAGES, {}, name="image")
    assert send(mini_app, "/v1/pages", body, content_type).error["code"] == "invalid_form"


# Reading


def test_a_document_is_read_as_in_python(mini_app: ASGIApp, mini: Predictor) -> None:
    body, content_type = form(TWO_PAGES, {})
    answer = send(mini_app, "/v1/read", body, content_type)
    assert answer.status == 200, answer.body
    found = answer.json()
    expected = json.loads(json.dumps(read_document(mini, TWO_PAGES).to_dict()))
    texts = [[line["text"] for line in page["lines"]] for page in found["result"]["pages"]]
    assert texts == [[line["text"] for line in page["lines"]] for page in expected["pages"]]
    assert found["result"]["pages"][1] == expected["pages"][1]  # blank
    assert found["result"]["source"] == "model"
    assert found["usage"]["completion_tokens"] > 0
    assert found["model"] == "mini"


def test_the_text_layer_is_used_only_where_it_is_asked_for(mini_app: ASGIApp) -> None:
    fields = {"document": encoded(TWO_PAGES), "source": "text layer"}
    found = post(mini_app, "/v1/read", fields).json()
    assert found["result"]["source"] == "text layer"
    [line] = found["result"]["pages"][0]["lines"]
    assert (line["text"], line["score"]) == ("Hello brave world", None)
    assert line["source"] == "text layer"
    assert found["usage"]["completion_tokens"] == 0
    text = post(mini_app, "/v1/read", {**fields, "to": "txt"})
    assert text.body.decode() == "Hello brave world\f\n"
    assert text.headers["content-disposition"] == 'attachment; filename="document.txt"'
    assert text.headers["content-type"].startswith("text/plain")


def test_pages_come_as_they_are_read(mini_app: ASGIApp) -> None:
    fields = {"document": encoded(TWO_PAGES), "source": "text layer", "stream": True}
    events = post(mini_app, "/v1/read", fields).events
    assert [name for name, _ in events] == ["page", "page", "result", "done"]
    assert events[2][1]["result"]["pages"] == [events[0][1], events[1][1]]
    answer = post(mini_app, "/v1/read", {"document": "JVBERi0=", "stream": True})
    assert answer.error["code"] == "invalid_document"
    answer = post(mini_app, "/v1/read", {**fields, "to": "txt"})
    assert (answer.status, answer.error["param"]) == (400, "to")


def test_a_client_that_hangs_up_frees_its_place(
    make_service: MakeService, no_children_left: None
) -> None:
    service = make_service(Limits(max_documents=1))
    app = create_app(service, Settings(limits=service.limits))
    many = pdf_of_pages([text_at(20, 70, f"page {number}") for number in range(40)])

    async def main() -> None:
        hang_up = asyncio.Event()

        def seen(data: bytes) -> None:
            if b"event: progress" in data:
                hang_up.set()

        body, content_type = form(many, {"stream": True})
        headers = {"content-type": content_type}
        await call(app, "POST", "/v1/read", body, headers, hang_up=hang_up, seen=seen)
        assert service.stats().answered < 40
        await until(lambda: service.stats().waiting + service.stats().running == 0)
        body, content_type = form(TWO_PAGES, {"source": "text layer"})
        answer = await call(app, "POST", "/v1/read", body, {"content-type": content_type})
        assert answer.status == 200

    asyncio.run(main())
    app.close()


def test_a_second_client_is_answered_while_a_document_is_read(
    make_service: MakeService, scene: bytes
) -> None:
    service = make_service(Limits(max_documents=1))
    app = create_app(service, Settings(limits=service.limits))
    many = pdf_of_pages([text_at(20, 70, f"page {number}") for number in range(20)])
    events: list[str] = []

    async def main() -> None:
        body, content_type = form(many, {"stream": True})

        def seen(data: bytes) -> None:
            events.extend(line[7:] for line in data.decode().splitlines() if line[:7] == "event: ")

        reading = asyncio.ensure_future(
            call(app, "POST", "/v1/read", body, {"content-type": content_type}, seen=seen)
        )
        await until(lambda: "progress" in events)
        fields = json.dumps({"image": encoded(scene)}).encode()
        headers = {"content-type": "application/json"}
        caption = await call(app, "POST", "/v1/caption", fields, headers, client="10.0.0.2")
        assert caption.status == 200
        assert "result" not in events
        # A second document has to come later.
        busy = await call(app, "POST", "/v1/read", body, {"content-type": content_type})
        assert (busy.status, busy.error["code"]) == (429, "overloaded")
        assert int(busy.headers["retry-after"]) >= 1
        assert (await reading).events[-1] == ("done", None)
        assert "result" in events

    asyncio.run(main())
    app.close()


def test_i1_logs_and_metrics_say_nothing_of_the_document(
    mini_app: ASGIApp, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "Hunter2"
    data = pdf_of_pages([text_at(20, 70, secret)])
    fields = {"document": encoded(data), "password": secret, "source": "text layer"}
    with caplog.at_level("INFO", "paligemma.server"):
        assert secret in post(mini_app, "/v1/read", fields).body.decode()
        damaged = {**fields, "document": encoded(data[:60])}
        assert post(mini_app, "/v1/read", damaged).status == 400
    lines = [json.dumps(vars(record), default=str) for record in caplog.records]
    assert len(lines) == 2
    assert secret not in "".join(lines)
    metrics = asyncio.run(call(mini_app, "GET", "/metrics")).body.decode()
    assert 'route="/v1/read"' in metrics
    assert secret not in metrics


def test_what_was_read_is_written_as_files(mini_app: ASGIApp) -> None:
    fields = {"document": encoded(TWO_PAGES), "source": "text layer"}
    hocr = post(mini_app, "/v1/read", {**fields, "to": "hocr"})
    assert hocr.headers["content-type"].startswith("application/xhtml+xml")
    assert "brave" in hocr.body.decode()
    alto = post(mini_app, "/v1/read", {**fields, "to": "alto"})
    assert defusedxml.ElementTree.fromstring(alto.body).tag.endswith("alto")
    file = io.BytesIO()
    Image.new("RGB", (60, 40), "white").save(file, "PNG")
    for data, num_pages, source in (
        (TWO_PAGES, 2, "text layer"), (TWO_PAGES, 2, "model"), (file.getvalue(), 1, "text layer"),
    ):  # fmt: skip
        fields = {"document": encoded(data), "source": source, "to": "searchable-pdf"}
        found = post(mini_app, "/v1/read", fields)
        assert found.headers["content-disposition"] == 'attachment; filename="document.pdf"'
        with open_document(found.body) as document:
            assert document.num_pages == num_pages


# Extraction

SCHEMA = {
    "title": "Note",
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": ["integer", "null"]}},
    "required": ["name"],
}


def test_fields_are_those_of_python(mini_app: ASGIApp, mini: Predictor) -> None:
    answer = post(mini_app, "/v1/extract", {"document": encoded(TWO_PAGES), "schema": SCHEMA})
    assert answer.status == 200, answer.body
    found = answer.json()["result"]
    expected = json.loads(json.dumps(mini.extract(TWO_PAGES, SCHEMA).to_dict()))
    assert found.keys() == expected.keys()
    assert found["value"] == expected["value"]
    for one, other in zip(found["fields"], expected["fields"], strict=True):
        assert one.keys() == other.keys()
        for name in ("score", "held"):
            assert one.pop(name) == pytest.approx(other.pop(name), abs=2e-4)
        assert one == other
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_i9_fields_are_streamed_and_downloaded(mini_app: ASGIApp) -> None:
    fields = {"document": encoded(TWO_PAGES), "schema": SCHEMA, "pages": "1"}
    events = post(mini_app, "/v1/extract", {**fields, "stream": True}).events
    assert [name for name, _ in events[-2:]] == ["result", "done"]
    assert {name for name, _ in events[:-2]} == {"progress"}
    table = post(mini_app, "/v1/extract", {**fields, "to": "csv"})
    assert table.headers["content-disposition"] == 'attachment; filename="fields.csv"'
    assert table.body.startswith(b'"file","path","value"')
    page = post(mini_app, "/v1/extract", {**fields, "to": "html"})
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-disposition"].startswith("attachment")
    assert b"data:image" in page.body


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


REF = {"$ref": "#/$defs/b"}


def of_pattern(pattern: str) -> dict[str, Any]:
    return {"properties": {"a": {"type": "string", "pattern": pattern}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "https://example.com/schema.json"}}},
        {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"properties": {"a": {"$ref": "#/properties/a"}}},
        {"properties": {"a": REF}, "$defs": {"b": {"type": "object", "properties": {"b": REF}}}},
        {"properties": {"a": {"type": "string", "unknownKeyword": 1}}},
        {"properties": {}},
        {"properties": {f"a{number}": {"type": "string"} for number in range(600)}},
        {"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}},
        {},
        nested(20),
        nested(300),
        of_pattern("(a"),
        of_pattern("(?=a)b"),
        of_pattern("a" * 1000),
        "nothing",
        "invoice.py:Invoice",
        "os:system",
        "/etc/passwd",
        "../schema.json",
    ],
    ids=range(19),
)  # fmt: skip
def test_c16_schemas_that_cannot_be_asked_for_are_refused(
    schema: object, mini_app: ASGIApp
) -> None:
    started = time.monotonic()
    answer = post(mini_app, "/v1/extract", {"document": encoded(TWO_PAGES), "schema": schema})
    assert answer.status == 400, answer.body
    assert answer.error["code"] in ("invalid_option", "invalid_field", "invalid_json")
    assert "root:" not in answer.error["message"]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "pattern",
    [
        "^((a{0,300}){0,300}){0,300}$",
        "^(a+)+$",
        "^(a|a)*b$",
        "^(.*a){100}$",
        "^[^x]{0,400}x[^x]{0,400}$",
    ],
)
def test_c16_patterns_that_explode_end_in_time(pattern: str, mini_app: ASGIApp) -> None:
    """With an answer or an error; and the server answers others meanwhile."""
    started = time.monotonic()
    fields = {"document": encoded(TWO_PAGES), "schema": of_pattern(pattern), "pages": "1"}
    answer = post(mini_app, "/v1/extract", fields)
    assert answer.status in (200, 400), answer.body
    assert time.monotonic() - started < 20


def test_numbers_and_lists_without_bounds_get_some(mini_app: ASGIApp) -> None:
    schema = {
        "properties": {"a": {"type": "number"}, "b": {"type": "array", "items": {"type": "string"}}}
    }
    fields = {"document": encoded(TWO_PAGES), "schema": schema, "pages": "1"}
    answer = post(mini_app, "/v1/extract", fields)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"schema": 7}, "schema"),
        ({}, "schema"),
        ({"schema": "invoice", "check": "thrice"}, "check"),
        ({"schema": "invoice", "names": ["a"] * 3000}, "names"),
        ({"schema": "invoice", "names": {"nowhere": ["a"]}}, None),
        ({"schema": "invoice", "language": "<x>"}, "language"),
        ({"schema": "invoice", "min_score": 2}, "min_score"),
        ({"schema": "invoice", "to": "parquet"}, "to"),
    ],
)
def test_wrong_requests_to_extract_are_refused(
    fields: dict[str, Any], param: str | None, mini_app: ASGIApp
) -> None:
    answer = post(mini_app, "/v1/extract", {"document": encoded(TWO_PAGES), **fields})
    assert answer.status == 400
    assert answer.error["param"] == param


def test_values_of_an_invoices_xml_need_no_model(mini_app: ASGIApp, tmp_path: Path) -> None:
    write_french_invoice(tmp_path / "fr.pdf")
    fields = {"document": encoded((tmp_path / "fr.pdf").read_bytes()), "schema": "invoice"}
    answer = post(mini_app, "/v1/extract", {**fields, "source": "xml"})
    assert answer.status == 200, answer.body
    result = answer.json()["result"]
    total = next(field for field in result["fields"] if field["path"] == "total")
    assert (total["value"], total["source"], total["score"]) == ("158.25", "xml", None)
    assert answer.json()["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"schema": "invoice"}, "no XML of an electronic invoice"),
        ({"schema": "prescription"}, "no value of an electronic invoice"),
        ({"schema": "invoice", "check": "twice"}, "asks no model"),
        ({"schema": "invoice", "source": "yaml"}, "source"),
    ],
)
def test_documents_without_the_xml_of_an_invoice_are_refused(
    more: dict[str, Any], reason: str, mini_app: ASGIApp
) -> None:
    answer = post(
        mini_app, "/v1/extract", {"document": encoded(TWO_PAGES), "source": "xml", **more}
    )
    assert answer.status == 400
    assert reason in answer.error["message"]


def test_names_are_compared_with_what_was_read(mini_app: ASGIApp) -> None:
    fields = {
        "document": encoded(TWO_PAGES),
        "schema": {"properties": {"name": {"type": "string"}}},
        "names": {"name": ["Hello", "World"]},
        "pages": "1",
    }
    answer = post(mini_app, "/v1/extract", fields)
    assert answer.status == 200, answer.body
    [field] = answer.json()["result"]["fields"]
    assert "matched" in field


# Tables and charts


def test_tables_and_charts_are_those_of_python(mini_app: ASGIApp, mini: Predictor) -> None:
    image = (EXAMPLES / "scene.png").read_bytes()
    fields = {"document": encoded(image), "max_new_tokens": 20}
    found = post(mini_app, "/v1/table", fields).json()["result"]
    expected = json.loads(json.dumps(mini.table(image, max_new_tokens=20).to_dict()))
    assert [cell["text"] for cell in found["cells"]] == [c["text"] for c in expected["cells"]]
    assert found.keys() == expected.keys()
    found = post(mini_app, "/v1/chart", {**fields, "labels": ["cat"]}).json()["result"]
    expected = json.loads(
        json.dumps(mini.chart(image, labels=["cat"], max_new_tokens=20).to_dict())
    )
    assert [[p["raw"] for p in s["points"]] for s in found["series"]] == [
        [p["raw"] for p in s["points"]] for s in expected["series"]
    ]
    assert found.keys() == expected.keys()
    rows = post(mini_app, "/v1/chart", {**fields, "labels": ["=1+2"], "to": "csv"})
    assert rows.headers["content-type"].startswith("text/csv")
    assert b"'=1+2" in rows.body


def test_a_box_on_a_page_is_read(mini_app: ASGIApp) -> None:
    fields = {"document": encoded(TWO_PAGES), "page": 2, "max_new_tokens": 4}
    assert post(mini_app, "/v1/table", {**fields, "box_xyxy": [0, 0, 50, 50]}).status == 200
    outside = post(mini_app, "/v1/table", {**fields, "box_xyxy": [300, 0, 400, 50]})
    assert (outside.status, outside.error["code"]) == (400, "invalid_option")
    assert post(mini_app, "/v1/table", {**fields, "page": 3}).status == 400
    assert post(mini_app, "/v1/table", {**fields, "box_xyxy": [0, 0, 50]}).status == 400
