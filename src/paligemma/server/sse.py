"""Server-sent events: a stream of named JSON events that always ends with a closing line.

    event: token
    data: {"text":"a red"}

    data: [DONE]

The generator of events is closed as soon as the client disconnects.

Not sse-starlette: it replaces the exit handler of uvicorn for the whole process, and sends no
closing line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from paligemma.errors import PaliGemmaError
from paligemma.server.errors import ClientGoneError, to_api_error
from paligemma.server.handler import cancel_on_disconnect
from paligemma.server.logs import log_error
from paligemma.server.responses import ResponseModel

PING_SECONDS = 10.0
"""Time without an event after which a comment is sent, so that proxies keep the connection."""
_FIRST_FRAME_SECONDS = 5.0
DONE = b"data: [DONE]\n\n"


def event_frame(name: str | None, body: ResponseModel) -> bytes:
    """One event as it is sent."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + body.to_json() + b"\n\n"


def event_description(text: str, model: str | None = None) -> dict[str, Any]:
    """The OpenAPI description of a stream; `model` names the schema of each event's data."""
    schema: dict[str, Any] = {"type": "string", "description": text}
    if model is not None:
        schema["contentMediaType"] = "application/json"
        schema["contentSchema"] = {"$ref": f"#/components/schemas/{model}"}
    return {"schema": schema}


async def start_stream(frames: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """Wait for the first frame, so that an error before it gets its own status.

    After some seconds without a frame the stream begins anyway; errors are events then.
    """
    first = asyncio.ensure_future(anext(frames))
    try:
        await asyncio.wait({first}, timeout=_FIRST_FRAME_SECONDS)
        error = first.exception() if first.done() else None
        if error is not None and not isinstance(error, StopAsyncIteration):
            raise error
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        raise

    async def all_frames() -> AsyncIterator[bytes]:
        try:
            yield await first
            async for frame in frames:
                yield frame
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await frames.aclose()

    return all_frames()


def error_frame(error: Exception, name: str | None = "error") -> bytes:
    """The event for an error after the stream has begun."""
    return event_frame(name, to_api_error(error).body)


class EventStream(Response):
    """An ASGI response that sends frames as they come; an error becomes an event.

    `frames` yields complete frames, without the closing line `done`. `error_name` is the name of
    the error event; None in OpenAI's dialect, whose events have no names.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        media_type: str = "text/event-stream",
        error_name: str | None = "error",
        done: bytes = DONE,
        ping: bytes = b": still here\n\n",
    ) -> None:
        super().__init__()  # FastAPI passes only Response objects through
        self._frames = frames
        self._media_type = media_type
        self._error_name = error_name
        self._done = done
        self._ping = ping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", self._media_type.encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await cancel_on_disconnect(receive, self._pump(scope, send))
        except ClientGoneError as error:
            scope["state"]["error_code"] = to_api_error(error).code

    async def _pump(self, scope: Scope, send: Send) -> None:
        async with aclosing(with_pings(self._frames, self._ping)) as frames:
            try:
                async for frame in frames:
                    await _send(send, frame)
            except PaliGemmaError as error:
                scope["state"]["error_code"] = to_api_error(error).code
                await _send(send, error_frame(error, self._error_name))
            except Exception as error:
                scope["state"]["error_code"] = "internal_error"
                log_error("stream_failed", error, request_id=scope["state"].get("request_id"))
                await _send(send, error_frame(error, self._error_name))
        await _send(send, self._done, more=False)


async def _send(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def with_pings(frames: AsyncIterator[bytes], ping: bytes) -> AsyncGenerator[bytes, None]:
    """The frames, and a ping after every `PING_SECONDS` without one. Closes `frames` at its end."""
    try:
        while True:
            upcoming = asyncio.ensure_future(anext(frames))
            try:
                while not (await asyncio.wait({upcoming}, timeout=PING_SECONDS))[0]:
                    yield ping
            except BaseException:
                upcoming.cancel()
                with suppress(BaseException):
                    await upcoming
                raise
            try:
                frame = upcoming.result()
            except StopAsyncIteration:
                return
            yield frame
    finally:
        if (close := getattr(frames, "aclose", None)) is not None:
            await close()
