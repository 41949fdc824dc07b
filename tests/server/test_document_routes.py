"""Documents over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import pytest
from PIL import Image
from starlette.types import ASGIApp

from tests.documents.pdf_files import pdf_of_pages, text_at
from tests.server.asgi import Answer, call
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
