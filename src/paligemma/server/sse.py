"""Server-sent events: a stream of named JSON events that ends in words, whatever happens.

    event: token
    data: {"text":"a red"}

    data: [DONE]

The generator of events is closed as soon as the client hangs up. Knows no model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from paligemma.errors import PaliGemmaError
from paligemma.server.errors import ClientGoneError, to_api_error
from paligemma.server.logs import log_error
from paligemma.server.strict_json import write_json

PING_SECONDS = 10.0
"""A comment is sent after so long a silence, so that proxies keep the connection."""
DONE = b"data: [DONE]\n\n"

ValueT = TypeVar("ValueT")


def event_frame(name: str | None, value: Any) -> bytes:
    """One event as it goes over the wire."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + write_json(value) + b"\n\n"


def error_frame(error: Exception, name: str | None = "error") -> bytes:
    """What is said when a stream fails after its beginning."""
    return event_frame(name, to_api_error(error).body)


class EventStream(Response):
    """An ASGI response that sends frames as they come; an error becomes the last but one frame.

    `frames` gives whole frames, without the closing one. `error_name` is the name of the event
    that tells of an error; None for OpenAI's dialect, which has no names.
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
        super().__init__()  # FastAPI hands on nothing but responses
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
            await until_gone(receive, self._pump(scope, send))
        except ClientGoneError as error:  # nobody is there to be told
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


async def until_gone(receive: Receive, work: Awaitable[ValueT]) -> ValueT:
    """The work's result. Cancels the work, and raises ClientGoneError, when the client hangs up.

    The request's body must have been read before.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError("the client hung up")
        return working.result()
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, ClientGoneError):
                    await task


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
