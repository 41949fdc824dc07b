"""Many requests in one: JSON Lines in, JSON Lines out.

Each line of the request is the body of a task route with two more fields, `id` and `task`. Each
line of the answer has the `id`, a `status`, and the answer or the error. Lines are returned as
soon as they are done, in any order. After a broken connection the client sends the same batch
again: lines that were answered to the same client under the same id are not computed again. This
cache is bounded, and ends with the process.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from paligemma.errors import BusyError
from paligemma.server.errors import ApiError, to_api_error
from paligemma.server.handler import RequestHandler, read_body, run_blocking
from paligemma.server.logs import log_error
from paligemma.server.requests import GenerativeRequest, validate
from paligemma.server.responses import BatchLine, error_responses
from paligemma.server.routes.native import REQUESTS, build_response
from paligemma.server.sse import EventStream
from paligemma.server.strict_json import JsonError, read_json

MAX_LINES = 4096
MAX_ID_CHARACTERS = 128
AT_ONCE = 16
"""Maximum number of lines of a batch in the service, so that other clients get their turns."""

_MEMORY_BYTES = 64 * 2**20
_BUSY_SECONDS = 0.1
_TYPES = ("application/jsonl", "application/x-ndjson")


class AnswerCache:
    """Recent answers by client, id and hash of the line, up to a number of bytes."""

    def __init__(self, max_bytes: int = _MEMORY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lines: OrderedDict[bytes, bytes] = OrderedDict()
        self._num_bytes = 0

    def get(self, key: bytes) -> bytes | None:
        """The line of the answer, if it is still cached."""
        return self._lines.get(key)

    def put(self, key: bytes, line: bytes) -> None:
        """Keep an answer and drop the oldest ones."""
        self._num_bytes += len(line) - len(self._lines.pop(key, b""))
        self._lines[key] = line
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= len(self._lines.popitem(last=False)[1])


def batch_routes(handler: RequestHandler) -> APIRouter:
    """`/v1/batch`."""
    router = APIRouter(tags=["tasks"])
    cache = AnswerCache()

    @router.post(
        "/v1/batch",
        summary="Send many requests as JSON Lines.",
        response_class=Response,
        responses={
            200: {
                "description": "One line per line of the request, as they are done.",
                "content": {
                    "application/jsonl": {
                        "schema": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": {"$ref": "#/components/schemas/BatchLine"},
                        }
                    }
                },
            },
            **error_responses(),
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
    async def batch(request: Request) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in _TYPES:
            raise ApiError(415, "wrong_content_type", f"Send {' or '.join(_TYPES)}.")
        body = await read_body(request)
        lines = await run_blocking(_split, body, size=len(body))
        client = request.state.client
        return EventStream(
            _answers(handler, cache, client, lines),
            media_type="application/jsonl",
            error_name=None,
            done=b"",
            ping=b"\n",
        )

    return router


@dataclass(frozen=True, kw_only=True)
class _Line:
    number: int
    id: str | None
    data: bytes
    fields: dict[str, Any]
    error: ApiError | None


def _split(body: bytes) -> list[_Line]:
    """The lines; those that cannot be read have an error. Raises ApiError for too many lines."""
    # Counted before splitting: empty lines do not count, but take time and memory.
    is_bounded = body.count(b"\n") <= 2 * MAX_LINES
    raw_lines = [line for line in body.split(b"\n") if line.strip()] if is_bounded else []
    if not 1 <= len(raw_lines) <= MAX_LINES:
        raise ApiError(400, "invalid_batch", f"A batch must have 1 to {MAX_LINES} lines.")
    ids: set[str] = set()
    return [_read_line(number, line, ids) for number, line in enumerate(raw_lines, start=1)]


def _read_line(number: int, data: bytes, ids: set[str]) -> _Line:
    """A line of the batch; `ids` are those of earlier lines."""
    fields, name, error = {}, None, None
    try:
        fields = read_json(data)
        name = fields.pop("id", None) if isinstance(fields, dict) else None
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_CHARACTERS:
            name = None
            message = f"Line {number} needs an id: a string of 1 to {MAX_ID_CHARACTERS} characters."
            error = ApiError(400, "invalid_batch", message)
        elif name in ids:
            error = ApiError(400, "invalid_batch", f"Line {number} has the id of an earlier line.")
        else:
            ids.add(name)
    except JsonError as problem:
        message = f"Line {number} is not valid JSON. {problem}"
        error = ApiError(400, "invalid_json", message)
    return _Line(number=number, id=name, data=data, fields=fields, error=error)


async def _answers(
    handler: RequestHandler,
    cache: AnswerCache,
    client: str,
    lines: list[_Line],
) -> AsyncIterator[bytes]:
    """One answer per line, as they are done; at most `AT_ONCE` lines run at a time."""
    waiting = iter(lines)
    running: set[asyncio.Task[bytes]] = set()

    async def answer(line: _Line) -> bytes:
        if line.error is not None or line.id is None:
            assert line.error is not None
            error = line.error.body.error
            body = BatchLine(id=line.id, line=line.number, status=line.error.status, error=error)
            return body.to_json() + b"\n"
        key = hashlib.sha256(b"\0".join([client.encode(), line.id.encode(), line.data])).digest()
        if (cached := cache.get(key)) is not None:
            return cached
        body = await _answer(handler, client, line.id, line.fields)
        data = await anyio.to_thread.run_sync(body.to_json) + b"\n"
        if body.status < 500 and body.status != 429:
            cache.put(key, data)
        return data

    try:
        while True:
            for line in waiting:
                running.add(asyncio.ensure_future(answer(line)))
                if len(running) >= AT_ONCE:
                    break
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _answer(
    handler: RequestHandler, client: str, name: str, fields: dict[str, Any]
) -> BatchLine:
    """The answer to one line, or its error: a line never affects the others."""
    try:
        task_name = fields.pop("task", None)
        if not isinstance(task_name, str) or task_name not in REQUESTS:
            raise ApiError(
                400, "invalid_field", f"task must be one of {', '.join(REQUESTS)}.", param="task"
            )
        task = handler.with_phrases(validate(REQUESTS[task_name], fields, handler.limits))
        if isinstance(task, GenerativeRequest) and task.stream:
            raise ApiError(400, "invalid_field", "A batch cannot be streamed.", param="stream")
        images = await handler.read_images(task, None)
        model, jobs = handler.build_jobs(task, images, client, stream=False)
        while True:
            try:
                submitted = handler.service.submit_all(jobs)
                tickets, results = await handler.gather(task, jobs, submitted)
                break
            except BusyError:  # a batch can wait
                await asyncio.sleep(_BUSY_SECONDS)
        response = await anyio.to_thread.run_sync(
            lambda: build_response(name, model, task, tickets, results)
        )
        given = {field: getattr(response, field) for field in response.model_fields_set}
        return BatchLine(status=200, **given)
    except Exception as error:
        api_error = to_api_error(error)
        if api_error.code == "internal_error":
            log_error("batch_line_failed", error)
        return BatchLine(id=name, status=api_error.status, error=api_error.body.error)
