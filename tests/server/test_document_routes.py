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

from paligemma.documents.read import read_document
from paligemma.predictor import Predictor
from paligemma.server.app import create_app
from paligemma.server.settings import Limits, Settings
from tests.documents.pdf_files import pdf_of_pages, text_at
from tests.server.asgi import Answer, call
from tests.server.conftest import MakeService
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
    assert text.body.decode() == "Hello brave world\f"
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


def test_logs_and_metrics_say_nothing_of_the_document(
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
