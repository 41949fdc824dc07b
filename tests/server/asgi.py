"""A client that calls an ASGI application in this process, and can hang up or dawdle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

Headers = Iterable[tuple[str, str]] | dict[str, str]


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The one error object that every failed request gets."""
        document = self.json()
        assert list(document) == ["error"]
        assert list(document["error"]) == ["message", "type", "code", "param"]
        found: dict[str, Any] = document["error"]
        return found

    @property
    def events(self) -> list[tuple[str | None, Any]]:
        """Name and data of each event; ("done", None) is the end."""
        found: list[tuple[str | None, Any]] = []
        for block in self.body.decode().split("\n\n")[:-1]:
            lines = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
            if lines.get("data") == "[DONE]":
                found.append(("done", None))
            elif lines:
                found.append((lines.get("event"), json.loads(lines["data"])))
        return found


async def call(
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes | AsyncIterator[bytes] = b"",
    headers: Headers = (),
    *,
    hang_up: asyncio.Event | None = None,
    seen: Callable[[bytes], None] = lambda data: None,
    client: str = "127.0.0.1",
) -> Answer:
    """Sends a request. `hang_up` set: the client goes away; `seen` gets each piece of the body."""
    given = list(headers.items()) if isinstance(headers, dict) else list(headers)
    if not any(name.lower() == "host" for name, _ in given):
        given.append(("host", "localhost:8000"))
    route, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": route,
        "raw_path": route.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given],
        "client": (client, 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    answer = Answer()
    ended = asyncio.Event()
    gone = hang_up or asyncio.Event()
    pieces = body if not isinstance(body, bytes) else _one(body)
    is_sent = False

    async def receive() -> Message:
        nonlocal is_sent
        if not is_sent:
            try:
                return {"type": "http.request", "body": await anext(pieces), "more_body": True}
            except StopAsyncIteration:
                is_sent = True
                return {"type": "http.request", "body": b"", "more_body": False}
        waits = [asyncio.ensure_future(event.wait()) for event in (ended, gone)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if gone.is_set():
            return
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")
            seen(message.get("body", b""))
            if not message.get("more_body", False):
                answer.is_whole = True
                ended.set()

    await app(scope, receive, send)
    return answer


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body
