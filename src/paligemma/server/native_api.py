"""The routes of this package's own dialect: one a task, as JSON or as a form, whole or streamed.

    body -> schema -> picture's bytes -> jobs -> tickets -> JSON, or server-sent events

Knows the service by its jobs and tickets; computes nothing on the event loop but small things.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from paligemma.results import Objects, Result
from paligemma.server.errors import ApiError
from paligemma.server.faults import Point
from paligemma.server.images import Fetcher, Form, decode_base64, read_form
from paligemma.server.jobs import Job, JobOptions, ScoreJob, Ticket, Update, Usage
from paligemma.server.limits import Limits
from paligemma.server.schemas import (
    AnswerBody,
    AskBody,
    Asked,
    Body,
    CaptionBody,
    DetectBody,
    GenerateBody,
    ImageAddress,
    ObjectsBody,
    OcrBody,
    ScoreBody,
    SegmentBody,
    Written,
    error_responses,
    validate,
)
from paligemma.server.service import Service
from paligemma.server.settings import Settings
from paligemma.server.sse import EventStream, event_frame, until_gone
from paligemma.server.strict_json import JsonError, read_json, write_json

BODIES: dict[str, type[Asked]] = {
    "caption": CaptionBody,
    "ask": AskBody,
    "ocr": OcrBody,
    "detect": DetectBody,
    "segment": SegmentBody,
    "generate": GenerateBody,
    "score": ScoreBody,
}
"""Name of the task, which is its route under /v1/ -> its body."""

ValueT = TypeVar("ValueT")

_SMALL_BODY = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What routes work with: reads requests, hands in jobs, writes answers."""

    service: Service
    settings: Settings
    fetcher: Fetcher

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    async def read_document(self, request: Request) -> tuple[object, bytes | None]:
        """The request's JSON, and its picture when it is a form. Raises ApiError."""
        content_type = request.headers.get("content-type", "")
        kind = content_type.partition(";")[0].strip().lower()
        if kind not in ("application/json", "multipart/form-data"):
            raise ApiError(
                415, "wrong_content_type", "Send application/json or multipart/form-data."
            )
        body = await read_body(request)
        if kind == "application/json":
            document, image = await in_thread(_json, body, size=len(body)), None
        else:
            form: Form = await in_thread(read_form, body, content_type, self.limits, size=len(body))
            document = {} if form.request is None else _json(form.request)
            image = form.image
        request.state.let_go_of_body()  # from here on the service counts pictures
        return document, image

    async def picture(self, asked: Asked, in_form: bytes | None) -> tuple[bytes, ...]:
        """The picture's bytes; () where there is none and none is needed. Raises ApiError."""
        if in_form is not None:
            if asked.image is not None:
                raise ApiError(400, "invalid_image", "There are two pictures.", param="image")
            return (in_form,)
        if asked.image is None:
            if asked.needs_image:
                raise ApiError(400, "missing_image", "There is no picture.", param="image")
            return ()
        if isinstance(asked.image, ImageAddress):
            await self.pass_point("fetch")
            return (await self.fetcher.fetch(asked.image.url),)
        return (await self.decode(asked.image),)

    async def decode(self, text: str) -> bytes:
        """The bytes of base64 or of a data URL. Raises ApiError."""
        return await in_thread(decode_base64, text, self.limits, size=len(text))

    def adapter(self, model: str | None) -> tuple[str, str | None]:
        """The model's name as it is told, and the adapter's. Raises ApiError for unknown ones.

        Names are looked up among those served: no request reaches a file by one.
        """
        models = self.service.models
        name = next(iter(models)) if model is None else model
        if name not in models:
            raise ApiError(
                404,
                "model_not_found",
                "No model of this name is served; see /v1/models.",
                param="model",
            )
        return name, models[name]

    async def pass_point(self, point: Point) -> None:
        """Where tests plant faults; nothing otherwise."""
        if self.service.faults.are_allowed:
            await anyio.to_thread.run_sync(self.service.faults.hit, point)

    def jobs(
        self, asked: Asked, images: tuple[bytes, ...], client: str, *, stream: bool
    ) -> tuple[str, Sequence[Job | ScoreJob]]:
        """The model's name and one job for each answer. Raises ApiError and the family's errors."""
        model, adapter = self.adapter(asked.model)
        if isinstance(asked, ScoreBody):
            suffixes = tuple(asked.suffixes or [asked.suffix or ""])
            job = ScoreJob(
                prompt=asked.prompt,
                suffixes=suffixes,
                images=images,
                adapter=adapter,
                client=client,
            )
            return model, [job]
        assert isinstance(asked, Written)
        options = JobOptions(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            seed=asked.seed,
            stop=asked.stops if isinstance(asked, GenerateBody) else (),
            adapter=adapter,
        )
        common: dict[str, Any] = {
            "images": images,
            "options": options,
            "client": client,
            "stream": stream,
        }
        if isinstance(asked, GenerateBody):
            return model, [Job(prompt=asked.prompt, **common)]
        return model, [Job(task=task, **common) for task in asked.tasks]


def native_routes(desk: Desk) -> APIRouter:
    """`/v1/caption`, `/v1/ask`, `/v1/ocr`, `/v1/detect`, `/v1/segment`, `/v1/generate` and
    `/v1/score`."""
    router = APIRouter(tags=["tasks"])
    for name, body in BODIES.items():
        router.add_api_route(
            f"/v1/{name}",
            _route(desk, body),
            methods=["POST"],
            name=name,
            summary=(body.__doc__ or "").splitlines()[0],
            response_class=Response,
            responses=_RESPONSES,
            openapi_extra={"requestBody": request_schema(body, with_form=True)},
        )
    return router


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, events: token, object, result, error.",
        "model": AnswerBody,
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **error_responses(),
}


def request_schema(body: type[Body], *, with_form: bool) -> dict[str, Any]:
    """What OpenAPI says about a request's body."""
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if with_form:
        content["multipart/form-data"] = {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "string", "format": "binary"},
                    "request": {"type": "string", "contentMediaType": "application/json"},
                },
            }
        }
    return {"required": True, "content": content}


def _route(desk: Desk, body: type[Asked]) -> Callable[[Request], Awaitable[Any]]:
    async def answer(request: Request) -> Any:
        document, in_form = await desk.read_document(request)
        asked = validate(body, document, desk.limits)
        streams = isinstance(asked, Written) and asked.stream
        client = request.state.client

        async def submit() -> tuple[str, list[Ticket]]:
            images = await desk.picture(asked, in_form)
            model, jobs = desk.jobs(asked, images, client, stream=streams)
            return model, desk.service.submit_all(jobs)

        if streams:
            model, tickets = await until_gone(request.receive, submit())
            frames = _frames(desk, request.state.request_id, model, asked, tickets)
            return EventStream(await until_gone(request.receive, begun(frames)))

        async def work() -> bytes:
            model, tickets = await submit()
            results = await gather(tickets)

            def write() -> bytes:
                return write_json(
                    answer_body(request.state.request_id, model, asked, tickets, results)
                )

            # Only masks take long to encode.
            is_large = isinstance(asked, SegmentBody)
            return await anyio.to_thread.run_sync(write) if is_large else write()

        data = await until_gone(request.receive, work())
        return Response(data, media_type="application/json")

    return answer


async def read_body(request: Request) -> bytes:
    """The whole body, within the limits of the middleware. Raises ApiError."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    return bytes(body)


async def in_thread(work: Callable[..., ValueT], *arguments: object, size: int) -> ValueT:
    """Calls a function; in a thread where the work is large."""
    if size <= _SMALL_BODY:
        return work(*arguments)
    return await anyio.to_thread.run_sync(work, *arguments)


async def gather(tickets: Sequence[Ticket]) -> list[Any]:
    """All results. One that fails, or a caller that gives up, cancels the others."""
    try:
        return [await ticket.wait() for ticket in tickets]
    finally:
        for ticket in tickets:
            ticket.cancel()


def answer_body(
    answer_id: str,
    model: str,
    asked: Asked,
    tickets: Sequence[Ticket],
    results: Sequence[Any],
) -> dict[str, Any]:
    """The JSON of an answer. Encoding masks takes time: call it in a thread."""
    written = [_to_dict(result, asked) for result in _flat(results)]
    has_list = (isinstance(asked, Written) and asked.has_list) or (
        isinstance(asked, ScoreBody) and asked.suffixes is not None
    )
    found: dict[str, Any] = {"results": written} if has_list else {"result": written[0]}
    usage = usage_dict([ticket.usage for ticket in tickets])
    return {"id": answer_id, "model": model, **found, "usage": usage}


def usage_dict(usages: Sequence[Usage]) -> dict[str, int]:
    """What several answers took together."""
    return {
        name: sum(getattr(usage, name) for usage in usages)
        for name in ("prompt_tokens", "completion_tokens", "image_tokens")
    }


def _flat(results: Sequence[Any]) -> list[Result]:
    return [item for found in results for item in (found if isinstance(found, list) else [found])]


def _to_dict(result: Result, asked: Asked) -> dict[str, Any]:
    if isinstance(asked, ObjectsBody) and isinstance(result, Objects):
        return result.filter(asked.min_score).to_dict()
    return result.to_dict()


async def begun(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same frames, once the first is there: what fails before has a status of its own.

    Who waits long for it gets the stream's beginning instead, and errors as events.
    """
    first = asyncio.ensure_future(anext(frames))
    try:
        await asyncio.wait({first}, timeout=_PATIENCE_SECONDS)
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
            await frames.aclose()  # type: ignore[attr-defined]

    return all_frames()


_PATIENCE_SECONDS = 5.0


async def _frames(
    desk: Desk, answer_id: str, model: str, asked: Asked, tickets: Sequence[Ticket]
) -> AsyncIterator[bytes]:
    """The events of an answer: of several questions, each event says whose it is by `index`."""
    has_list = isinstance(asked, Written) and asked.has_list
    min_score = asked.min_score if isinstance(asked, ObjectsBody) else 0.0
    try:
        async with aclosing(merged(tickets)) as updates:
            async for index, update in updates:
                place = {"index": index} if has_list else {}
                await desk.pass_point("send")
                if update.text:
                    yield event_frame("token", {"text": update.text, **place})
                if update.object is not None and update.object.score >= min_score:
                    found = await anyio.to_thread.run_sync(update.object.to_dict)
                    yield event_frame("object", {**found, **place})
        results = [ticket.result() for ticket in tickets]
        yield await anyio.to_thread.run_sync(
            lambda: event_frame("result", answer_body(answer_id, model, asked, tickets, results))
        )
    finally:
        for ticket in tickets:
            ticket.cancel()


async def merged(tickets: Sequence[Ticket]) -> AsyncGenerator[tuple[int, Update], None]:
    """The updates of all tickets as they come, each with its ticket's place."""
    queue: asyncio.Queue[tuple[int, Update | None]] = asyncio.Queue(maxsize=1)

    async def forward(index: int, ticket: Ticket) -> None:
        async for update in ticket.updates():
            await queue.put((index, update))
        await queue.put((index, None))

    tasks = [asyncio.ensure_future(forward(i, ticket)) for i, ticket in enumerate(tickets)]
    try:
        num_open = len(tickets)
        while num_open:
            index, update = await queue.get()
            if update is None:
                num_open -= 1
                tickets[index].result()  # an error ends the stream at once
            else:
                yield index, update
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _json(body: bytes) -> object:
    try:
        return read_json(body)
    except JsonError as error:
        raise ApiError(400, "invalid_json", f"The body cannot be read. {error}") from None
