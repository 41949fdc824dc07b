"""What all routes share: reading a request, getting its images, and making jobs of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from paligemma.errors import OptionError, PaliGemmaError
from paligemma.predictor import asked_for
from paligemma.server.errors import ApiError, ClientGoneError
from paligemma.server.images import IMAGE, Fetcher, FileKind, decode_base64, read_form
from paligemma.server.jobs import Job, JobOptions, ScoreJob, Ticket, gather_results
from paligemma.server.requests import (
    GenerateRequest,
    GenerativeRequest,
    ImageUrl,
    ObjectsRequest,
    RequestModel,
    ScoreRequest,
    TaskRequest,
    validate,
)
from paligemma.server.service import Service
from paligemma.server.settings import Limits, Settings
from paligemma.server.strict_json import JsonError, read_json
from paligemma.tasks.second_look import second_look, separately

ValueT = TypeVar("ValueT")

_SMALL_BODY = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class RequestBody:
    """The body of a request."""

    fields: object
    file: bytes | None = None  # of a form, or all of the body
    is_text: bool = False  # whether all values of the fields are strings


@dataclass(frozen=True, kw_only=True)
class RequestHandler:
    """The service, the settings and the image fetcher, as routes use them."""

    service: Service
    settings: Settings
    fetcher: Fetcher

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    async def read_request(self, request: Request, kind: FileKind = IMAGE) -> RequestBody:
        """The request's fields, and its file if it has one. Raises ApiError."""
        content_type = request.headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        is_file = media_type.startswith("image/") or media_type == "application/octet-stream"
        is_file |= media_type in kind.media_types
        if not is_file and media_type not in ("application/json", "multipart/form-data"):
            raise ApiError(
                415,
                "wrong_content_type",
                "Send application/json, multipart/form-data, or the file itself, such as "
                f"{kind.media_types[0]}, with the other fields in the query.",
            )
        body = await read_body(request)
        if is_file:
            file = kind.checked(body, self.limits)
            content = RequestBody(fields=_query_fields(request), file=file, is_text=True)
        elif media_type == "application/json":
            content = RequestBody(fields=await run_blocking(_parse_json, body, size=len(body)))
        else:
            form = await run_blocking(
                read_form, body, content_type, self.limits, kind, size=len(body)
            )
            fields = {} if form.request is None else _parse_json(form.request)
            content = RequestBody(fields=fields, file=form.file)
        request.state.release_body()  # from here on the service counts images
        return content

    async def read_images(self, task: TaskRequest, file: bytes | None) -> tuple[bytes, ...]:
        """The image file; () where there is none and none is needed. Raises ApiError."""
        if file is not None:
            if task.image is not None:
                raise ApiError(
                    400,
                    "invalid_image",
                    "Image given twice: as a file and in the request.",
                    param="image",
                )
            return (file,)
        if task.image is None:
            if task.needs_image:
                raise ApiError(400, "missing_image", "An image is required.", param="image")
            return ()
        if isinstance(task.image, ImageUrl):
            return (await self.fetcher.fetch(task.image.url),)
        return (await self.decode(task.image),)

    async def decode(self, text: str, kind: FileKind = IMAGE) -> bytes:
        """The bytes of base64 or of a data URL. Raises ApiError."""
        return await run_blocking(decode_base64, text, self.limits, kind, size=len(text))

    def find_model(self, model: str | None) -> tuple[str, str | None]:
        """The name of the model and that of its adapter. Raises ApiError for unknown names.

        Names are looked up among those served, so no request can reach a file by a name.
        """
        models = self.service.models
        name = next(iter(models)) if model is None else model
        if name not in models:
            raise ApiError(404, "model_not_found", "Unknown model. See /v1/models.", param="model")
        return name, models[name]

    def with_phrases(self, task: TaskRequest) -> TaskRequest:
        """The task, without phrases with what its model was trained on. Raises ApiError."""
        if not isinstance(task, ObjectsRequest) or task.phrases is not None:
            return task
        _, adapter = self.find_model(task.model)
        trained_on = self.service.trained_on(adapter)
        try:
            asked = asked_for(
                task.task_name, None, trained_on, labels=task.labels, separate=task.separate
            )
        except OptionError as error:
            raise ApiError(400, "invalid_field", str(error), param="phrases") from None
        fields = task.model_dump(exclude_unset=True) | {
            "phrases": list(asked.phrases),
            "labels": asked.labels,
            "separate": asked.separate,
        }
        return validate(type(task), fields, self.limits)

    def build_jobs(
        self, task: TaskRequest, images: tuple[bytes, ...], client: str, *, stream: bool
    ) -> tuple[str, Sequence[Job | ScoreJob]]:
        """The model's name and one job per answer. Raises ApiError and InputError."""
        model, adapter = self.find_model(task.model)
        if isinstance(task, ScoreRequest):
            job = ScoreJob(
                prompt=task.prompt,
                suffixes=tuple(task.suffixes or [task.suffix or ""]),
                images=images,
                adapter=adapter,
                client=client,
            )
            return model, [job]
        assert isinstance(task, GenerativeRequest)
        options = JobOptions(
            max_new_tokens=task.max_new_tokens,
            temperature=task.temperature,
            top_k=task.top_k,
            top_p=task.top_p,
            seed=any_seed(task.seed, task.temperature),
            stop=task.stops if isinstance(task, GenerateRequest) else (),
            adapter=adapter,
        )
        common: dict[str, Any] = {
            "images": images,
            "options": options,
            "client": client,
            "notes": task.notes,
            "stream": stream,
        }
        if isinstance(task, GenerateRequest):
            return model, [Job(prompt=task.prompt, **common)]
        return model, [Job(task=each, **common) for each in task.tasks]

    async def gather(
        self, task: TaskRequest, jobs: Sequence[Job | ScoreJob], tickets: Sequence[Ticket]
    ) -> tuple[list[Ticket], list[Any]]:
        """All tickets in the end, and one result per answer.

        As `Predictor.detect` does, asks again where the answer for all phrases raises doubts.
        """
        results = await gather_results(tickets)
        all_tickets = list(tickets)
        if not isinstance(task, ObjectsRequest):
            return all_tickets, results
        if task.separate:
            return all_tickets, [separately(task.list_task).merge(results)]
        [first], [job] = results, jobs
        look = None if first.is_as_asked else second_look(task.list_task, first)
        if task.separate is not None or look is None:
            return all_tickets, results
        assert isinstance(job, Job)
        deadline = tickets[0].deadline
        further = [replace(job, task=each, deadline=deadline) for each in look.tasks]
        try:
            again = self.service.submit_all(further, is_continuation=True)
            answers = await gather_results(again)
        except PaliGemmaError:  # the first answer stands
            return all_tickets, results
        return [*all_tickets, *again], [look.merge(answers)]


def any_seed(seed: int | None, temperature: float | None) -> int:
    """The seed that was asked for; without one, sampling differs between requests."""
    if seed is None:
        return secrets.randbits(31) if temperature else 0
    return seed


def _query_fields(request: Request) -> dict[str, str | list[str]]:
    """The fields of the query; one that is repeated is a list."""
    query = request.query_params
    values = {name: query.getlist(name) for name in query}
    return {name: texts[0] if len(texts) == 1 else texts for name, texts in values.items()}


async def read_body(request: Request) -> bytes:
    """The whole body, within the limits of the middleware.

    Raises ApiError, and ClientGoneError when the client disconnects before it was sent.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
    except ClientDisconnect:
        raise ClientGoneError("the client disconnected") from None
    request.state.end_arrival()
    return bytes(body)


async def run_blocking(work: Callable[..., ValueT], *arguments: object, size: int) -> ValueT:
    """Call a function; in a thread if its input is large."""
    if size <= _SMALL_BODY:
        return work(*arguments)
    return await anyio.to_thread.run_sync(work, *arguments)


async def cancel_on_disconnect(receive: Receive, work: Awaitable[ValueT]) -> ValueT:
    """The work's result. If the client disconnects, cancels the work and raises ClientGoneError.

    The request's body must have been read before.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError("the client disconnected")
        return working.result()
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, ClientGoneError):
                    await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def request_schema(
    model: type[RequestModel], *, with_form: bool, kind: FileKind = IMAGE
) -> dict[str, Any]:
    """The OpenAPI description of a request's body, which may have a file of this kind."""
    name = kind.name
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{model.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    needs_file = kind is not IMAGE or (issubclass(model, TaskRequest) and model.needs_image)
    has_required = any(field.is_required() for field in model.model_fields.values())
    if with_form:
        content["multipart/form-data"] = {
            "schema": {
                "type": "object",
                "properties": {
                    name: {"type": "string", "format": "binary"},
                    "request": schema | {"properties": {name: {"type": "null"}}},
                },
                "required": [name] * needs_file + ["request"] * has_required,
                "additionalProperties": False,
            },
            "encoding": {"request": {"contentType": "application/json"}},
        }
        # Also with the media type of the file, which generators of clients do not understand.
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    if needs_file:
        schema |= {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
    body: dict[str, Any] = {"required": True, "content": content}
    if with_form:
        body["description"] = (
            f"With the {name} file as the body, the other fields are in the query."
        )
    return body


def _parse_json(body: bytes) -> object:
    try:
        return read_json(body)
    except JsonError as error:
        raise ApiError(400, "invalid_json", f"The body is not valid JSON. {error}") from None
