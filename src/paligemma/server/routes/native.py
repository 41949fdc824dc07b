"""The task routes: one per task, with JSON or a form, answered at once or as a stream.

    body -> request model -> image bytes -> jobs -> tickets -> response model, or events

Only small computations run on the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from paligemma.answering import Usage
from paligemma.processor.image import media_type
from paligemma.results import Objects, Result
from paligemma.server.handler import RequestHandler, cancel_on_disconnect, request_schema
from paligemma.server.jobs import Job, ScoreJob, Ticket, merge_updates
from paligemma.server.requests import (
    AskRequest,
    CaptionRequest,
    DetectRequest,
    GenerateRequest,
    GenerativeRequest,
    ImageUrl,
    ObjectsRequest,
    OcrRequest,
    ScoreRequest,
    SegmentRequest,
    TaskRequest,
    validate,
)
from paligemma.server.responses import (
    ResponseModel,
    TokenEvent,
    UsageResponse,
    error_responses,
    object_event,
    result_model,
)
from paligemma.server.sse import EventStream, event_description, event_frame, start_stream

REQUESTS: dict[str, type[TaskRequest]] = {
    "caption": CaptionRequest,
    "ask": AskRequest,
    "ocr": OcrRequest,
    "detect": DetectRequest,
    "segment": SegmentRequest,
    "generate": GenerateRequest,
    "score": ScoreRequest,
}
"""Name of the task, which is its route under /v1/ -> the model of its request."""

REQUEST_ID: dict[str, Any] = {
    "name": "X-Request-Id",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The id of the answer and of the request in the server's log: 1 to 64 letters, "
    "digits, dots, dashes or underscores. Others are replaced.",
}
"""Some generators write a client that works only for routes with an optional parameter."""


def native_routes(handler: RequestHandler) -> APIRouter:
    """`/v1/caption`, `/v1/ask`, `/v1/ocr`, `/v1/detect`, `/v1/segment`, `/v1/generate`,
    `/v1/score` and `/v1/image`."""
    router = APIRouter(tags=["tasks"])

    @router.post("/v1/image", name="image", response_class=Response, include_in_schema=False)
    async def image(request: Request) -> Response:
        """Fetch the image at an address, for the page, from an allowed domain."""
        body = await handler.read_request(request)
        url = validate(ImageUrl, body.fields, handler.limits).url
        data = await cancel_on_disconnect(request.receive, handler.fetcher.fetch(url))
        return Response(data, media_type=media_type(data))

    for name, model in REQUESTS.items():
        router.add_api_route(
            f"/v1/{name}",
            _route(handler, model),
            methods=["POST"],
            name=name,
            operation_id=name,
            summary=(model.__doc__ or "").splitlines()[0],
            response_class=Response,
            responses={200: _answer_description(model), **error_responses()},
            openapi_extra={
                "parameters": [REQUEST_ID],
                "requestBody": request_schema(model, with_form=True),
            },
        )
    return router


def _answer_description(model: type[TaskRequest]) -> dict[str, Any]:
    description: dict[str, Any] = {
        "description": "The answer.",
        "model": model.response,
        "content": {"application/json": {}},
    }
    if issubclass(model, GenerativeRequest):
        description["description"] = "The answer; with `stream`, a stream of events."
        description["content"]["text/event-stream"] = event_description(
            "Events `token`, `object`, `result` and `error`."
        )
    return description


def _route(
    handler: RequestHandler, model: type[TaskRequest]
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        body = await handler.read_request(request)
        task = handler.with_phrases(
            validate(model, body.fields, handler.limits, is_text=body.is_text)
        )
        streams = isinstance(task, GenerativeRequest) and task.stream

        async def submit() -> tuple[str, Sequence[Job | ScoreJob], list[Ticket]]:
            images = await handler.read_images(task, body.file)
            name, jobs = handler.build_jobs(task, images, request.state.client, stream=streams)
            return name, jobs, handler.service.submit_all(jobs)

        answer_id = request.state.request_id
        if streams:
            name, _, tickets = await cancel_on_disconnect(request.receive, submit())
            frames = _frames(handler, answer_id, name, task, tickets)
            return EventStream(await cancel_on_disconnect(request.receive, start_stream(frames)))

        async def work() -> bytes:
            name, jobs, submitted = await submit()
            tickets, results = await handler.gather(task, jobs, submitted)

            def write() -> bytes:
                return build_response(answer_id, name, task, tickets, results).to_json()

            # Only masks take long to encode.
            is_slow = isinstance(task, SegmentRequest)
            return await anyio.to_thread.run_sync(write) if is_slow else write()

        data = await cancel_on_disconnect(request.receive, work())
        return Response(data, media_type="application/json")

    return answer


def build_response(
    answer_id: str, model: str, task: TaskRequest, tickets: Sequence[Ticket], results: Sequence[Any]
) -> ResponseModel:
    """The body of an answer. Encoding masks takes time: call it in a thread."""
    models = [result_model(_filtered(result, task)) for result in _flat(results)]
    has_list = (isinstance(task, GenerativeRequest) and task.has_list) or (
        isinstance(task, ScoreRequest) and task.suffixes is not None
    )
    field = {"results": models} if has_list else {"result": models[0]}
    usage = sum_usage([ticket.usage for ticket in tickets])
    return task.response.model_validate({"id": answer_id, "model": model, **field, "usage": usage})


def sum_usage(usages: Sequence[Usage]) -> UsageResponse:
    """The tokens of several answers together."""
    return UsageResponse(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        image_tokens=sum(usage.image_tokens for usage in usages),
    )


def _flat(results: Sequence[Any]) -> list[Result]:
    return [r for result in results for r in (result if isinstance(result, list) else [result])]


def _filtered(result: Result, task: TaskRequest) -> Result:
    if isinstance(task, ObjectsRequest) and isinstance(result, Objects):
        return result.filter(task.min_score)
    return result


async def _frames(
    handler: RequestHandler,
    answer_id: str,
    model: str,
    task: TaskRequest,
    tickets: Sequence[Ticket],
) -> AsyncGenerator[bytes, None]:
    """The events of an answer. With several questions each event has the question's `index`."""
    has_list = isinstance(task, GenerativeRequest) and task.has_list
    min_score = task.min_score if isinstance(task, ObjectsRequest) else 0.0
    try:
        async with aclosing(merge_updates(tickets)) as updates:
            async for index, update in updates:
                index_field = {"index": index} if has_list else {}
                if update.text:
                    yield event_frame("token", TokenEvent(text=update.text, **index_field))
                detection = update.object
                if detection is not None and detection.score >= min_score:
                    event = await anyio.to_thread.run_sync(object_event, detection, index_field)
                    yield event_frame("object", event)
        results = [ticket.result() for ticket in tickets]
        yield await anyio.to_thread.run_sync(
            lambda: event_frame("result", build_response(answer_id, model, task, tickets, results))
        )
    finally:
        for ticket in tickets:
            ticket.cancel()
