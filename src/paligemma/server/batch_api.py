"""Many questions in one request: JSON lines in, JSON lines out.

Each line of the request is the body of a task's route with two more fields, `id` and `task`; each
line of the answer has the `id`, a `status` and the answer or the error. Lines come back as soon as
they are done, in any order. A batch that broke off is sent again as it was: what the server has
done for the same client under the same id, from the same line, is not done again. That memory is
bounded, and ends with the process. Knows what `native_api` knows.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from paligemma.errors import BusyError
from paligemma.server.errors import ApiError, to_api_error
from paligemma.server.logs import log_error
from paligemma.server.native_api import BODIES, Desk, answer_body, gather, in_thread, read_body
from paligemma.server.schemas import ErrorBody, Written, validate
from paligemma.server.sse import EventStream
from paligemma.server.strict_json import JsonError, read_json, write_json

MAX_LINES = 4096
MAX_ID_CHARACTERS = 128
AT_ONCE = 16
"""Lines of one batch that are with the service at a time: others get their turns in between."""

_MEMORY_BYTES = 64 * 2**20
_BUSY_SECONDS = 0.1
_TYPES = ("application/jsonl", "application/x-ndjson")


class Finished:
    """Answers given lately, by client, id and the line's hash: at most so many bytes of them."""

    def __init__(self, max_bytes: int = _MEMORY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lines: OrderedDict[bytes, bytes] = OrderedDict()
        self._num_bytes = 0

    def get(self, key: bytes) -> bytes | None:
        """The answer's line, if it is still known."""
        return self._lines.get(key)

    def put(self, key: bytes, line: bytes) -> None:
        """Keeps an answer; the oldest are forgotten."""
        self._num_bytes += len(line) - len(self._lines.pop(key, b""))
        self._lines[key] = line
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= len(self._lines.popitem(last=False)[1])


def batch_routes(desk: Desk) -> APIRouter:
    """`/v1/batch`."""
    router = APIRouter(tags=["tasks"])
    finished = Finished()

    @router.post(
        "/v1/batch",
        summary="Many questions, as JSON lines.",
        response_class=Response,
        responses={
            200: {
                "description": "One line for each line sent, as they are done.",
                "content": {"application/jsonl": {"schema": {"type": "string"}}},
            },
            400: {"description": "The lines cannot be told apart.", "model": ErrorBody},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/jsonl": {
                        "schema": {"type": "string"},
                        "example": '{"id": "1", "task": "caption", "image": "..."}\n',
                    }
                },
            }
        },
    )
    async def batch(request: Request) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _TYPES:
            raise ApiError(415, "wrong_content_type", f"Send {' or '.join(_TYPES)}.")
        body = await read_body(request)
        lines = await in_thread(_split, body, size=len(body))
        client = request.state.client
        return EventStream(
            _answers(desk, finished, client, lines),
            media_type="application/jsonl",
            error_name=None,
            done=b"",
            ping=b"\n",
        )

    return router


def _split(body: bytes) -> list[tuple[str, bytes, dict[str, Any]]]:
    """Id, bytes and fields of each line. Raises ApiError where a line has no id of its own."""
    # Counted before they are split: empty ones do not count, but take time and room.
    is_bounded = body.count(b"\n") <= 2 * MAX_LINES
    raw = [line for line in body.split(b"\n") if line.strip()] if is_bounded else []
    if not 1 <= len(raw) <= MAX_LINES:
        raise ApiError(400, "invalid_batch", f"A batch has 1 to {MAX_LINES} lines.")
    found: dict[str, tuple[str, bytes, dict[str, Any]]] = {}
    for number, line in enumerate(raw, start=1):
        try:
            fields = read_json(line)
        except JsonError as error:
            raise ApiError(400, "invalid_json", f"Line {number} cannot be read. {error}") from None
        name = fields.pop("id", None) if isinstance(fields, dict) else None
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_CHARACTERS:
            raise ApiError(
                400,
                "invalid_batch",
                f"Line {number} needs an id: a text of 1 to {MAX_ID_CHARACTERS} characters.",
            )
        if name in found:
            raise ApiError(400, "invalid_batch", f"The id of line {number} was there before.")
        found[name] = (name, line, fields)
    return list(found.values())


async def _answers(
    desk: Desk,
    finished: Finished,
    client: str,
    lines: list[tuple[str, bytes, dict[str, Any]]],
) -> AsyncIterator[bytes]:
    """One line for each, as they are done; never more than `AT_ONCE` under way."""
    waiting = iter(lines)
    working: set[asyncio.Task[bytes]] = set()

    async def one(name: str, line: bytes, fields: dict[str, Any]) -> bytes:
        key = hashlib.sha256(b"\0".join([client.encode(), name.encode(), line])).digest()
        if (known := finished.get(key)) is not None:
            return known
        status, found = await _answer(desk, client, name, fields)
        written = await anyio.to_thread.run_sync(
            lambda: write_json({"id": name, "status": status, **found}) + b"\n"
        )
        if status < 500 and status != 429:
            finished.put(key, written)
        return written

    try:
        while True:
            for line in waiting:
                working.add(asyncio.ensure_future(one(*line)))
                if len(working) >= AT_ONCE:
                    break
            if not working:
                return
            done, working = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


async def _answer(
    desk: Desk, client: str, name: str, fields: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Status and body of one line; no line harms another."""
    try:
        task = fields.pop("task", None)
        if not isinstance(task, str) or task not in BODIES:
            raise ApiError(
                400, "invalid_field", f"task must be one of {', '.join(BODIES)}.", param="task"
            )
        asked = validate(BODIES[task], fields, desk.limits)
        if isinstance(asked, Written) and asked.stream:
            raise ApiError(400, "invalid_field", "Lines are not streamed.", param="stream")
        images = await desk.picture(asked, None)
        model, jobs = desk.jobs(asked, images, client, stream=False)
        while True:
            try:
                tickets = desk.service.submit_all(jobs)
                break
            except BusyError:  # a batch has time
                await asyncio.sleep(_BUSY_SECONDS)
        results = await gather(tickets)
        return 200, await anyio.to_thread.run_sync(
            lambda: answer_body(name, model, asked, tickets, results)
        )
    except Exception as error:
        found = to_api_error(error)
        if found.code == "internal_error":
            log_error("batch_line_failed", error)
        return found.status, found.body
