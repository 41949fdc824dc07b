"""The routes for documents and videos: one per task, and `/v1/pages`, which shows documents.

    body -> request model -> file and work -> thread: Document -> result, or a file to download

The work is done in the threads of `document_work.py`; only small computations run on the event
loop.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from paligemma.documents.page import Document, Page
from paligemma.errors import DocumentError
from paligemma.server.document_models import (
    DocumentRequest,
    PageImage,
    PagesRequest,
    PagesResponse,
    PageTextResult,
    ProgressEvent,
)
from paligemma.server.document_reader import DocumentFile
from paligemma.server.document_tasks import TASKS, VIDEO_TASK, DocumentTask, Download, Work
from paligemma.server.document_work import DocumentRunner, ServiceAsker
from paligemma.server.errors import ApiError
from paligemma.server.handler import RequestHandler, cancel_on_disconnect, request_schema
from paligemma.server.images import DOCUMENT, FileKind
from paligemma.server.requests import validate
from paligemma.server.responses import ResponseModel, error_responses
from paligemma.server.routes.native import REQUEST_ID, sum_usage
from paligemma.server.sse import EventStream, event_description, event_frame, start_stream
from paligemma.server.video_models import SegmentResult, VideoRequest
from paligemma.server.video_reader import VideoFile

RequestT = TypeVar("RequestT", bound=DocumentRequest | VideoRequest)

MAX_PAGE_IMAGES = 12
"""Pages in one answer of /v1/pages."""
_JPEG_QUALITY = 85
_PROGRESS_SECONDS = 0.25
_NO_VIDEO = (
    "This server does not accept videos. To enable them, its operator starts it with: paligemma "
    "serve --allow-video."
)


def document_routes(handler: RequestHandler, runner: DocumentRunner) -> APIRouter:
    """A route per task, that of videos where they are allowed, and `/v1/pages`."""
    router = APIRouter(tags=["documents"])

    @router.post("/v1/pages", name="pages", response_class=Response, include_in_schema=False)
    async def pages(request: Request) -> Response:
        """The pages of a document as images, for the page."""
        file, task = await _read(handler, request, PagesRequest)
        call = _Call(handler=handler, runner=runner, request=request, task=task, file=file)

        def work(document: Document, asker: ServiceAsker) -> PagesResponse:
            shown = [_page_image(page, task.max_side) for page in document.pages[:MAX_PAGE_IMAGES]]
            return PagesResponse(num_pages=document.num_pages, pages=shown)

        answer = await cancel_on_disconnect(request.receive, call.run(call.asker(), work))
        return Response(answer.to_json(), media_type="application/json")

    if not handler.settings.allow_video:

        @router.post("/v1/video", name="video", include_in_schema=False)
        async def no_video() -> Response:
            raise ApiError(404, "not_found", _NO_VIDEO)

    tasks = (*TASKS, VIDEO_TASK) if handler.settings.allow_video else TASKS
    for task in tasks:
        router.add_api_route(
            f"/v1/{task.name}",
            _route(handler, runner, task),
            methods=["POST"],
            name=task.name,
            operation_id=task.name,
            summary=(task.request.__doc__ or "").splitlines()[0],
            response_class=Response,
            responses={200: _answer_description(task), **error_responses()},
            openapi_extra={
                "parameters": [REQUEST_ID],
                "requestBody": request_schema(task.request, with_form=True, kind=task.kind),
            },
        )
    return router


def _answer_description(task: DocumentTask) -> dict[str, Any]:
    events = event_description(
        "Events `progress`, `page` (of /v1/read), `segment` (of /v1/video), `result` and `error`."
    )
    files = {name: {"schema": {"type": "string"}} for name in task.media_types}
    return {
        "description": "The answer; with `to`, a file; with `stream`, a stream of events.",
        "model": task.response,
        "content": {"application/json": {}, "text/event-stream": events, **files},
    }


async def _read(
    handler: RequestHandler, request: Request, model: type[RequestT], kind: FileKind = DOCUMENT
) -> tuple[DocumentFile | VideoFile, RequestT]:
    """The file and the other fields of a request. Raises ApiError."""
    body = await handler.read_request(request, kind)
    task = validate(model, body.fields, handler.limits, is_text=body.is_text)
    data, text = body.file, getattr(task, kind.name)
    if data is not None and text is not None:
        raise kind.invalid(f"{kind.name.capitalize()} given twice: as a file and in the request.")
    if text is not None:
        data = await handler.decode(text, kind)
    if data is None:
        message = f"A {kind.name} is required."
        raise ApiError(400, f"missing_{kind.name}", message, param=kind.name)
    if isinstance(task, VideoRequest):
        return VideoFile(data=data), task
    return DocumentFile(data=data, password=task.password, pages=task.page_numbers), task


def _route(handler: RequestHandler, runner: DocumentRunner, task: DocumentTask) -> Any:
    async def answer(request: Request) -> Response:
        file, fields = await _read(handler, request, task.request, task.kind)
        call = _Call(handler=handler, runner=runner, request=request, task=fields, file=file)
        work = task.prepare(fields)
        if fields.stream:
            frames = call.frames(task, work)
            return EventStream(await cancel_on_disconnect(request.receive, start_stream(frames)))
        asker = call.asker()
        result = await cancel_on_disconnect(request.receive, call.run(asker, work))
        if isinstance(result, Download):
            return result.response()
        body = call.whole(task, asker, result)
        return Response(body.to_json(), media_type="application/json")

    return answer


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One request about a document."""

    handler: RequestHandler
    runner: DocumentRunner
    request: Request
    task: DocumentRequest | VideoRequest
    file: DocumentFile | VideoFile

    def asker(self, on_event: Callable[[object], None] = lambda event: None) -> ServiceAsker:
        """Asks the model that the request names. Raises ApiError for an unknown one."""
        _, adapter = self.handler.find_model(self.task.model)
        client = self.request.state.client
        return ServiceAsker(self.handler.service, client=client, adapter=adapter, on_event=on_event)

    async def run(self, asker: ServiceAsker, work: Callable[..., Any]) -> Any:
        """What the work returns."""
        return await self.runner.run(self.file, work, asker, self.request.state.client)

    def whole(
        self, task: DocumentTask, asker: ServiceAsker, result: ResponseModel | Download
    ) -> ResponseModel:
        """The body of the answer."""
        return task.response.model_validate(
            {
                "id": self.request.state.request_id,
                "model": self.handler.find_model(self.task.model)[0],
                "result": result,
                "usage": sum_usage(asker.usages),
            }
        )

    async def frames(self, task: DocumentTask, work: Work) -> AsyncGenerator[bytes, None]:
        """The events of the answer."""
        if getattr(self.task, "to", "json") != "json":
            raise ApiError(400, "invalid_field", "Only JSON can be streamed.", param="to")
        events: asyncio.Queue[object] = asyncio.Queue()
        asker = self.asker(events.put_nowait)
        running = asyncio.ensure_future(self.run(asker, work))
        running.add_done_callback(lambda _: events.put_nowait(None))
        try:
            shown_at = -math.inf
            while (event := await events.get()) is not None:
                if isinstance(event, ResponseModel):
                    yield event_frame(_EVENT_NAMES[type(event)], event)
                elif time.monotonic() - shown_at >= _PROGRESS_SECONDS:
                    shown_at = time.monotonic()
                    answers = len(asker.usages)
                    yield event_frame("progress", ProgressEvent(answers=answers))
            yield event_frame("result", self.whole(task, asker, running.result()))
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


_EVENT_NAMES: dict[type[ResponseModel], str] = {PageTextResult: "page", SegmentResult: "segment"}


def _page_image(page: Page, max_side: int) -> PageImage:
    """A page as the page shows it; one that cannot be drawn has a problem instead."""
    width, height = page.size_wh
    scale = max_side / max(width, height)
    if page.unit == "px":
        scale = min(scale, 1.0)
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    about: dict[str, Any] = {
        "page": page.number,
        "size_wh": [width, height],
        "unit": page.unit,
        "turned": page.turned,
        "num_words": len(page.words),
    }
    try:
        file = io.BytesIO()
        page.render(size_wh=size_wh).save(file, "JPEG", quality=_JPEG_QUALITY)
    except DocumentError as error:
        return PageImage(**about, problem=str(error))
    return PageImage(
        **about, image="data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    )
