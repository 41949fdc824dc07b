"""A server that only looks like one: it serves the page, and answers or fails as a test tells it.

Stands in where a real server would have to be brought into a state that tests cannot wait for:
busy, gone in mid-stream, refusing keys, slow. The canned answers have the form of
`results.py`'s `to_dict()`.
"""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paligemma.extraction.asking import FORCED
from paligemma.results import (
    Answer,
    Caption,
    Detection,
    Detections,
    Generation,
    Result,
    Segment,
    Segments,
    Text,
)

PAGE = Path(str(files("paligemma"))) / "server" / "page"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_WRITTEN: dict[str, Any] = {"token_ids": (5, 1), "logprobs": (-0.1, -0.2), "stop_reason": "eos"}

Reply = Callable[["Answering"], None]


@dataclass
class Asked:
    """One request as it came."""

    route: str
    fields: dict[str, Any]
    image: bytes
    image_name: str
    key: str | None
    hung_up: threading.Event = field(default_factory=threading.Event)


class Answering:
    """What a reply can do with a request: refuse it, send events, wait, hang up."""

    def __init__(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        self.asked = asked
        self._handler = handler
        self._begun = False

    def refuse(self, status: int, message: str, **headers: str) -> None:
        body = json.dumps({"error": {"message": message, "type": "x", "code": "x", "param": None}})
        send(self._handler, status, body.encode(), "application/json", headers)

    def event(self, name: str, data: Any) -> None:
        if not self.asked.fields.get("stream"):
            if name == "result":
                send(self._handler, 200, json.dumps(data).encode(), "application/json")
            return
        self.raw(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())

    def raw(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._handler.send_response(200)
            self._handler.send_header("Content-Type", "text/event-stream")
            self._handler.send_header("x-request-id", "req-7")
            self._handler.send_header("Connection", "close")
            self._handler.end_headers()
        try:
            self._handler.wfile.write(data)
            self._handler.wfile.flush()
        except OSError:
            self.asked.hung_up.set()
            raise

    def done(self) -> None:
        if self.asked.fields.get("stream"):
            self.raw(b"data: [DONE]\n\n")

    def json(self, value: Any) -> None:
        send(self._handler, 200, json.dumps(value).encode(), "application/json")

    def result(self, result: Result) -> None:
        self.plain(result.to_dict())

    def plain(self, result: dict[str, Any]) -> None:
        """The result of a task as JSON."""
        usage = {"prompt_tokens": 5, "completion_tokens": 8, "image_tokens": 100}
        model = self.asked.fields["model"]
        self.event("result", {"id": "a", "model": model, "result": result, "usage": usage})
        self.done()

    def text(self, result: Generation, pause: float = 0.0) -> None:
        """Word by word, then the whole."""
        for piece in result.text.split(" "):
            self.event("token", {"text": f" {piece}" if piece != result.text[:9] else piece})
            time.sleep(pause)
        self.result(result)

    def objects(self, result: Detections | Segments, pause: float = 0.0) -> None:
        """Object by object, then the whole."""
        for found in result:
            self.event("object", found.to_dict())
            time.sleep(pause)
        self.result(result)

    def wait_for_hang_up(self, seconds: float = 5.0) -> None:
        """Comments until the client is gone."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.asked.hung_up.is_set():
            self.raw(b": still here\n\n")
            time.sleep(0.02)


@dataclass
class Double:
    """The server's script and its memory."""

    url: str

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As at the beginning: one model, no key, good answers, nothing asked yet."""
        self.asked: list[Asked] = []
        self.asked_whole: list[Asked] = []
        """Those without a stream: what the page asks again, and other clients."""
        self.replies: dict[str, Reply] = canned()
        self.models_status = 200
        self.key: str | None = None
        self.models: list[dict[str, Any]] = [
            {
                "id": "mini",
                "parameters": 10_508_032,
                "resolution": 160,
                "license": "Apache-2.0",
                "note": "mini knows only its own world of simple pictures.",
            }
        ]
        self.limits = {"max_image_bytes": 20_000_000, "max_pixels": 50_000_000}

    def last(self) -> Asked:
        return self.asked[-1]


def send(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    kind: str,
    headers: dict[str, str] | None = None,
) -> None:
    handler.send_response(status)
    for name, value in {
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        **(headers or {}),
    }.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: Double

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            if self._is_keyless():
                return
            if self.double.models_status != 200:
                self._refuse(self.double.models_status, "The model is being loaded.")
                return
            self._json({"object": "list", "data": self.double.models})
        elif path == "/v1/limits":
            self._json(self.double.limits)
        else:
            inside = path.removeprefix("/").removeprefix("page/") or "index.html"
            file = PAGE / inside
            kind = "text/javascript" if file.suffix == ".js" else mimetypes.guess_type(file)[0]
            kept = {"Cache-Control": "max-age=600"}
            send(self, 200, file.read_bytes(), kind or "application/octet-stream", kept)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = self._read(body)
        is_streamed = asked.fields.get("stream")
        (self.double.asked if is_streamed else self.double.asked_whole).append(asked)
        if not self._is_keyless():
            try:
                self.double.replies[asked.route](Answering(self, asked))
            except OSError:
                asked.hung_up.set()
        self.close_connection = True

    def _read(self, body: bytes) -> Asked:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = message_from_bytes(head + body, policy=policy.HTTP)
        contents: dict[str, bytes] = {}
        file_name = ""
        for part in message.iter_parts():
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            contents[str(part.get_param("name", header="content-disposition"))] = content
            file_name = part.get_filename() or file_name
        return Asked(
            route=self.path.removeprefix("/v1/"),
            fields=json.loads(contents["request"]),
            image=contents["image"] if "image" in contents else contents["document"],
            image_name=file_name,
            key=self.headers.get("Authorization"),
        )

    def _is_keyless(self) -> bool:
        needed = self.double.key
        if needed is None or self.headers.get("Authorization") == f"Bearer {needed}":
            return False
        self._refuse(401, "A key is needed.")
        return True

    def _refuse(self, status: int, message: str) -> None:
        self._json({"error": {"message": message}}, status)

    def _json(self, value: Any, status: int = 200) -> None:
        send(self, status, json.dumps(value).encode(), "application/json")

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # browsers hang up when they like


@contextmanager
def serving() -> Iterator[Double]:
    """The double on a free port of this machine."""

    class Handler(_Handler):
        pass

    server = _Server(("127.0.0.1", 0), Handler)
    double = Double(url=f"http://127.0.0.1:{server.server_port}/")
    Handler.double = double
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def detection(label: str, box: tuple[float, float, float, float], score: float) -> Detection:
    """A box, given in fractions, in a picture of 384 x 384 pixels."""
    return Detection(
        label=label,
        box_xyxy=tuple(384 * edge for edge in box),  # type: ignore[arg-type]
        box_normalized_xyxy=box,
        score=score,
        existence_score=1.0,
        label_score=0.98,
        coordinate_score=score / 0.98,
    )


def segment(label: str, box: tuple[float, float, float, float], score: float) -> Segment:
    """The same with an ellipse as its mask."""
    found = detection(label, box, score)
    x1, y1, x2, y2 = found.box_xyxy
    rows, columns = np.mgrid[:384, :384] + 0.5
    across = (columns - (x1 + x2) / 2) / ((x2 - x1) / 2)
    down = (rows - (y1 + y2) / 2) / ((y2 - y1) / 2)
    return Segment(**vars(found), mask=across**2 + down**2 <= 1, mask_score=0.9)


_BOXES = (
    ("panda", (0.044, 0.506, 0.341, 0.786), 0.94),
    ("panda", (0.540, 0.458, 0.910, 0.798), 0.82),
    ("sign", (0.298, 0.24, 0.832, 0.415), 0.67),
)


def detections() -> Detections:
    return Detections(
        objects=tuple(detection(*box) for box in _BOXES),
        prompt="detect panda ; sign ; dog",
        phrases=("panda", "sign", "dog"),
        problems=(),
        size_wh=(384, 384),
        stop_reason="eos",
        text="<loc0518><loc0045><loc0804><loc0349> panda ; ...",
    )


def segments() -> Segments:
    return Segments(
        objects=tuple(segment(*box) for box in _BOXES[:2]),
        prompt="segment panda",
        phrases=("panda",),
        problems=(),
        size_wh=(384, 384),
        stop_reason="eos",
        text="<loc0518>...",
    )


def caption(text: str = "two pandas before a tree", language: str = "en") -> Caption:
    return Caption(text=text, score=0.83, language=language, **_WRITTEN)


def endless(words: str) -> Reply:
    """Says this much, and then nothing until the page hangs up."""

    def reply(to: Answering) -> None:
        to.event("token", {"text": words})
        to.wait_for_hang_up()

    return reply


def late(go_on: threading.Event) -> Reply:
    """Is there, and has a caption once it may go on."""

    def reply(to: Answering) -> None:
        to.raw(b": still here\n\n")
        go_on.wait(5)
        to.text(caption())

    return reply


def page_image(number: int, size: tuple[int, int] = (595, 842)) -> dict[str, Any]:
    """A page as /v1/pages shows it: a light sheet with a darker band that tells the pages apart."""
    sheet = Image.new("RGB", size, (250, 250, 248))
    sheet.paste((40, 40, 60), (40, 60 * number, 300, 60 * number + 12))
    file = io.BytesIO()
    sheet.save(file, "JPEG")
    image = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    about = {"page": number, "size_wh": list(size), "unit": "pt", "turned": 0, "num_words": 9}
    return {**about, "image": image}


def pages(to: Answering) -> None:
    """The pages of a document of three that were asked for."""
    first, _, last = to.asked.fields.get("pages", "1-3").partition("-")
    numbers = [n for n in range(int(first), int(last or first) + 1) if n <= 3]
    to.json({"num_pages": 3, "pages": [page_image(number) for number in numbers]})


def text_field(path: str, value: Any, **fields: Any) -> dict[str, Any]:
    """A field of /v1/extract."""
    usual: dict[str, Any] = {
        "raw": None if value is None else str(value),
        "unread": None,
        "score": 0.0 if value is None else 0.9,
        "held": 0.0,
        "page": None if value is None else 1,
        "box_xyxy": None,
        "box_source": None,
        "question": "What is it?",
        "prompt": "answer en What is it?",
        "tile_xyxy": None,
        "source": None if value is None else "model",
        "problems": [],
        "matched": None,
    }
    return {"path": path, "value": value, **usual, **fields}


def fields() -> dict[str, Any]:
    """What was extracted from the document of three pages."""
    problem = "the date may also be 2026-04-03"
    return {
        "schema": "Invoice",
        "value": {"number": "R-17", "date": "2026-03-04", "total": 571.04},
        "fields": [
            text_field(
                "number", "R-17", box_xyxy=[59.5, 84.2, 119, 101.0], box_source="text layer"
            ),
            text_field(
                "date", "2026-03-04", raw="03/04/2026", score=0.7, problems=[problem],
                page=2, box_xyxy=[297.5, 421, 416.5, 505.2], box_source="detect",
            ),
            text_field("currency", None, problems=[]),
            text_field(
                "total", 571.04, raw="571,04 €", score=0.31, held=0.62, page=3,
                problems=[FORCED],
            ),
            text_field(
                "lines[0].name", "Bolt", score=0.97, matched={"text": "Bolts", "score": 0.92}
            ),
        ],
        "missing": ["currency"],
        "unsure": ["total", "date"],
        "problems": [f"date: {problem}", "the lines do not add up to the total"],
        "notes": ["Texts may have 100 characters."],
        "num_pages": 3,
    }  # fmt: skip


def lines() -> list[dict[str, Any]]:
    """The pages of /v1/read."""

    def line(text: str, page: int, top: float, score: float) -> dict[str, Any]:
        box = [59.5, top, 297.5, top + 20]
        return {"text": text, "box_xyxy": box, "score": score, "page": page, "source": "model"}

    about = {"size_wh": [595.0, 842.0], "unit": "pt", "turned": 0, "problems": [], "error": None}
    first = [line("First line", 1, 84.2, 0.9), line("Second", 1, 168.4, 0.4)]
    return [
        {"page": 1, "lines": first, **about},
        {"page": 2, "lines": [], **about, "problems": ["blank: neither ink nor text"]},
        {"page": 3, "lines": [line("Last", 3, 421, 0.8)], **about, "turned": 180},
    ]  # fmt: skip


def read(to: Answering) -> None:
    """Page by page, then the whole."""
    for page in lines():
        to.event("progress", {"answers": page["page"]})
        to.event("page", page)
    to.plain({"name": "the document", "source": "model", "pages": lines()})


def table() -> dict[str, Any]:
    """A table whose heading covers two columns."""

    def cell(text: str, row: int, column: int, **fields: Any) -> dict[str, Any]:
        usual = {"rowspan": 1, "colspan": 1, "score": 0.9, "box_xyxy": None, "is_header": False}
        return {"text": text, "row": row, "column": column, **usual, **fields}

    return {
        "cells": [
            cell("Amounts", 0, 0, colspan=2, is_header=True),
            cell("Bolts", 1, 0, box_xyxy=[59.5, 84.2, 119, 101]),
            cell("=1+2", 1, 1, score=0.3),
        ],
        "title": "",
        "problems": [],
        "size_wh": [595.0, 842.0],
        "page": 1,
        "text": "<table>...",
        "stop_reason": "eos",
        "notes": [],
    }


def chart() -> dict[str, Any]:
    """A chart of two bars."""
    points = [
        {"x": "2024", "y": 3.0, "raw": "3 %", "score": 0.9},
        {"x": "2025", "y": None, "raw": "?", "score": 0.2},
    ]
    return {
        **table(),
        "series": [{"name": "Sales", "points": points}],
        "kind": "bar",
        "x_title": "Year",
    }


def canned() -> dict[str, Reply]:
    return {
        "pages": pages,
        "read": read,
        "extract": lambda to: to.plain(fields()),
        "table": lambda to: to.plain(table()),
        "chart": lambda to: to.plain(chart()),
        "caption": lambda to: to.text(caption(language=to.asked.fields["language"])),
        "ask": lambda to: to.text(
            Answer(text="2", score=0.9, question=to.asked.fields["question"], **_WRITTEN)
        ),
        "ocr": lambda to: to.text(Text(text="COFFEE", score=0.7, **_WRITTEN)),
        "detect": lambda to: to.objects(detections()),
        "segment": lambda to: to.objects(segments()),
        "generate": lambda to: to.text(Generation(text="a raw answer", **_WRITTEN)),
    }
