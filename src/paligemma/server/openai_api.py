"""The routes of OpenAI's dialect, so that its clients and what is built on them work unchanged.

    messages -> prompt and picture -> task, where the prompt is a task's -> jobs -> tickets
    -> choices, or chunks; the typed result stands beside the text, in the field `paligemma`

Form and names are those of the API reference at https://platform.openai.com/docs/api-reference.
Knows the service by its jobs and tickets; computes nothing on the event loop but small things.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from paligemma.engine.request import TopLogprob
from paligemma.errors import UnavailableError
from paligemma.mini import LANGUAGES
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.server.errors import ApiError
from paligemma.server.jobs import Job, JobOptions, Ticket, Update, Usage
from paligemma.server.native_api import Desk, begun, merged, request_schema
from paligemma.server.openai_schemas import (
    ChatBody,
    CompletionBody,
    OpenAiBody,
    without_unsupported,
)
from paligemma.server.prompt_tasks import task_of
from paligemma.server.schemas import Body, ImageAddress, error_responses, validate
from paligemma.server.sse import EventStream, event_frame, until_gone
from paligemma.server.strict_json import write_json

OPENAI_BODIES: tuple[type[Body], ...] = (ChatBody, CompletionBody)

_LEAST_LOGPROB = -9999.0
"""OpenAI's number for what cannot come, such as a token that a grammar bans."""

_ABOUT = ("family", "parameters", "resolution", "image_tokens", "dtype", "quantization")
_FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


def openai_routes(desk: Desk) -> APIRouter:
    """`/v1/chat/completions`, `/v1/completions`, `/v1/models` and `/v1/models/NAME`."""
    router = APIRouter(tags=["openai"])

    @router.post(
        "/v1/chat/completions",
        response_class=Response,
        responses=_RESPONSES,
        openapi_extra={"requestBody": request_schema(ChatBody, with_form=False)},
    )
    async def chat_completions(request: Request) -> Any:
        """Answer a prompt about a picture, both in one message."""
        body = validate(ChatBody, await _read(desk, request), desk.limits)
        return await _answer(request, _ask_chat(desk, body, request.state.client))

    @router.post(
        "/v1/completions",
        response_class=Response,
        responses=_RESPONSES,
        openapi_extra={"requestBody": request_schema(CompletionBody, with_form=False)},
    )
    async def completions(request: Request) -> Any:
        """Continue prompts, sent to the letter and held to no task's form."""
        body = validate(CompletionBody, await _read(desk, request), desk.limits)
        return await _answer(request, _ask_completions(desk, body, request.state.client))

    started = int(time.time())

    @router.get("/v1/models", response_class=Response, responses=_MODEL_RESPONSES)
    async def models() -> Response:
        """The model that is served, then its adapters."""
        return _json({"object": "list", "data": _models(desk, started)})

    @router.get("/v1/models/{model:path}", response_class=Response, responses=_MODEL_RESPONSES)
    async def model(model: str) -> Response:
        """One of them."""
        found = {entry["id"]: entry for entry in _models(desk, started)}
        name, _ = desk.adapter(model)
        return _json(found[name])

    return router


_ERRORS = error_responses(400, 401, 404, 429, 500, 503)
_MODEL_RESPONSES = {200: {"description": "What is served."}, **_ERRORS}
_RESPONSES = {
    200: {
        "description": "The answer; with `stream`, events of chunks.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **_ERRORS,
}


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Tickets on their way, and how their answers are to be worded."""

    dialect: _Dialect
    body: OpenAiBody
    model: str
    tickets: Sequence[Ticket]
    tokenizer: Tokenizer
    has_logprobs: bool
    answer_id: str
    created: int

    @property
    def usage(self) -> dict[str, Any]:
        """Each prompt counts once, however many answers it got."""
        num_answers = self.body.n or 1
        usages = [ticket.usage for ticket in self.tickets]
        read: list[Usage] = usages[::num_answers]
        prompt_tokens = sum(usage.prompt_tokens for usage in read)
        completion_tokens = sum(usage.completion_tokens for usage in usages)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"image_tokens": sum(usage.image_tokens for usage in read)},
        }


class _Told(NamedTuple):
    """A token of an answer, and what might have stood in its place."""

    token: TopLogprob
    others: tuple[TopLogprob, ...]


class _Dialect(Protocol):
    """How one of the two routes words its answers."""

    id_prefix: ClassVar[str]
    whole: ClassVar[str]
    chunk: ClassVar[str]

    def choice(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """An answer, without index and reason to end."""
        ...

    def opening(self) -> dict[str, Any] | None:
        """What opens an answer's stream."""
        ...

    def piece(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """Some more of an answer, "" at its end; without index and reason to end."""
        ...

    def logprobs(self, words: _Words, told: Sequence[_Told]) -> dict[str, Any]:
        """The tokens of an answer, or of a piece of it."""
        ...


class _Chat:
    id_prefix: ClassVar[str] = "chatcmpl"
    whole: ClassVar[str] = "chat.completion"
    chunk: ClassVar[str] = "chat.completion.chunk"

    def choice(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": logprobs}

    def opening(self) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": "", "refusal": None}, "logprobs": None}

    def piece(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"delta": {"content": text} if text or logprobs else {}, "logprobs": logprobs}

    def logprobs(self, words: _Words, told: Sequence[_Told]) -> dict[str, Any]:
        content = [
            {
                **words.describe(one.token),
                "top_logprobs": [words.describe(other) for other in one.others],
            }
            for one in told
        ]
        return {"content": content, "refusal": None}


class _Completions:
    id_prefix: ClassVar[str] = "cmpl"
    whole: ClassVar[str] = "text_completion"
    chunk: ClassVar[str] = "text_completion"

    def choice(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"text": text, "logprobs": logprobs}

    def opening(self) -> dict[str, Any] | None:
        return None

    def piece(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"text": text, "logprobs": logprobs}

    def logprobs(self, words: _Words, told: Sequence[_Told]) -> dict[str, Any]:
        tokens = [words.text(one.token) for one in told]
        # Where the pieces of one character stand each by itself, this counts them each as one.
        ends = list(itertools.accumulate(map(len, tokens), initial=words.num_characters))
        words.num_characters = ends[-1]
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(one.token.logprob) for one in told],
            "top_logprobs": [
                {words.text(other): _finite(other.logprob) for other in one.others} for one in told
            ],
            "text_offset": ends[:-1],
        }


class _Words:
    """Token ids as text, in the order of one answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.num_characters = 0
        """Of the tokens that were told so far."""

    def text(self, token: TopLogprob) -> str:
        """The token alone; U+FFFD for a piece of a character."""
        return self._tokenizer.token_bytes(token.token_id).decode("utf-8", "replace")

    def describe(self, token: TopLogprob) -> dict[str, Any]:
        """Text, log-probability and bytes: those of all tokens joined are the answer's."""
        found = self._tokenizer.token_bytes(token.token_id)
        return {
            "token": found.decode("utf-8", "replace"),
            "logprob": _finite(token.logprob),
            "bytes": list(found),
        }

    def told(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        others: Sequence[tuple[TopLogprob, ...]],
    ) -> list[_Told]:
        """The tokens that are text: all but the closing EOS. Without `others` there are none."""
        padded = others or [()] * len(token_ids)
        return [
            _Told(TopLogprob(token_id, logprob), likely)
            for token_id, logprob, likely in zip(token_ids, logprobs, padded, strict=True)
            if token_id != self._tokenizer.eos_id
        ]


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)


_CHAT = _Chat()
_COMPLETIONS = _Completions()


# Reading


async def _read(desk: Desk, request: Request) -> object:
    document, in_form = await desk.read_document(request)
    if in_form is not None:
        raise ApiError(415, "wrong_content_type", "Send application/json.")
    return without_unsupported(document)


async def _ask_chat(desk: Desk, body: ChatBody, client: str) -> _Asked:
    if not body.urls:
        raise ApiError(
            400,
            "missing_image",
            "There is no picture. These models speak about pictures: put an image_url part into "
            "the message, or send a text alone to /v1/completions.",
            param="messages",
        )
    if len(body.urls) > desk.limits.max_images:
        raise ApiError(
            400,
            "too_many_images",
            f"There are {len(body.urls)} pictures; at most {desk.limits.max_images} are taken.",
            param="messages",
        )
    model, adapter = desk.adapter(body.model)
    num_top = (body.top_logprobs or 0) if body.logprobs else 0
    spread = _spread(_options(body, adapter, num_top), body, desk, 1)
    images = tuple([await _picture_at(desk, url) for url in body.urls])
    # What a task asks is about one picture; of several, the prompt's meaning is the checkpoint's.
    task = task_of(body.prompt) if len(images) == 1 else None
    jobs = [
        Job(
            task=task,
            prompt=body.prompt if task is None else None,
            images=images,
            options=one,
            client=client,
            stream=True,  # a typed result is no longer the model's own text, the pieces are
        )
        for one in spread
    ]
    return _submitted(desk, _CHAT, body, model, jobs, has_logprobs=bool(body.logprobs))


async def _ask_completions(desk: Desk, body: CompletionBody, client: str) -> _Asked:
    model, adapter = desk.adapter(body.model)
    spread = _spread(_options(body, adapter, body.logprobs or 0), body, desk, len(body.prompts))
    images: tuple[bytes, ...] = ()
    if isinstance(body.image, ImageAddress):
        images = (await _picture_at(desk, body.image.url),)
    elif body.image is not None:
        images = (await desk.decode(body.image),)
    jobs = [
        Job(
            prompt=prompt,
            images=images,
            options=one,
            client=client,
            stream=True,
        )
        for prompt in body.prompts
        for one in spread
    ]
    has_logprobs = body.logprobs is not None
    return _submitted(desk, _COMPLETIONS, body, model, jobs, has_logprobs=has_logprobs)


async def _picture_at(desk: Desk, url: str) -> bytes:
    if url[:5].lower() == "data:":
        return await desk.decode(url)
    return await desk.fetcher.fetch(url)


def _options(body: OpenAiBody, adapter: str | None, num_top_logprobs: int) -> JobOptions:
    return JobOptions(
        max_tokens=body.num_tokens,
        temperature=body.temperature or 0.0,
        top_p=body.top_p,
        top_k=body.top_k,
        # Who asks for chance and names no seed wants another answer each time.
        seed=secrets.randbits(31) if body.seed is None else body.seed,
        stop=body.stops,
        logprobs=num_top_logprobs,
        adapter=adapter,
    )


def _spread(
    options: JobOptions, body: OpenAiBody, desk: Desk, num_prompts: int
) -> list[JobOptions]:
    """The options of each of n answers to one prompt. Raises ApiError."""
    num_answers = body.n or 1
    if num_answers * num_prompts > desk.limits.max_n:
        raise ApiError(
            400,
            "invalid_field",
            f"At most {desk.limits.max_n} answers are written in one request.",
            param="n" if num_answers > 1 else "prompt",
        )
    if num_answers > 1 and not body.temperature:
        raise ApiError(
            400,
            "invalid_field",
            "Without a temperature above 0 all n answers are the same. Set temperature, or leave "
            "n out.",
            param="n",
        )
    options.check(desk.limits)
    return [replace(options, n_th=number) for number in range(num_answers)]


def _submitted(
    desk: Desk,
    dialect: _Dialect,
    body: OpenAiBody,
    model: str,
    jobs: Sequence[Job],
    *,
    has_logprobs: bool,
) -> _Asked:
    tickets = desk.service.submit_all(jobs)
    predictor = desk.service.predictor
    assert predictor is not None  # else nothing is accepted
    return _Asked(
        dialect=dialect,
        body=body,
        model=model,
        tickets=tickets,
        tokenizer=predictor.processor.tokenizer,
        has_logprobs=has_logprobs,
        answer_id=f"{dialect.id_prefix}-{secrets.token_hex(12)}",
        created=int(time.time()),
    )


# Answering


async def _answer(request: Request, submitting: Awaitable[_Asked]) -> Any:
    asked = await until_gone(request.receive, submitting)
    if asked.body.stream:
        frames = await until_gone(request.receive, begun(_frames(asked)))
        return EventStream(frames, error_name=None)

    async def work() -> bytes:
        written = await _written(asked.tickets)
        return await anyio.to_thread.run_sync(lambda: write_json(_whole(asked, written)))

    data = await until_gone(request.receive, work())
    return Response(data, media_type="application/json")


async def _written(tickets: Sequence[Ticket]) -> list[Update]:
    """All that each answer's stream held, in one. The first error ends all."""
    found = [Update() for _ in tickets]
    try:
        async with aclosing(merged(tickets)) as updates:
            async for index, update in updates:
                found[index] = Update(
                    text=found[index].text + update.text,
                    token_ids=found[index].token_ids + update.token_ids,
                    logprobs=found[index].logprobs + update.logprobs,
                    top_logprobs=found[index].top_logprobs + update.top_logprobs,
                )
    finally:
        for ticket in tickets:
            ticket.cancel()
    return found


def _whole(asked: _Asked, written: Sequence[Update]) -> dict[str, Any]:
    """The JSON of an answer. Encoding masks takes time: call it in a thread."""
    choices = []
    for index, (ticket, answer) in enumerate(zip(asked.tickets, written, strict=True)):
        result = ticket.result()
        logprobs = None
        if asked.has_logprobs:
            words = _Words(asked.tokenizer)
            told = words.told(answer.token_ids, answer.logprobs, answer.top_logprobs)
            logprobs = asked.dialect.logprobs(words, told)
        choices.append(
            {
                "index": index,
                **asked.dialect.choice(answer.text, logprobs),
                "finish_reason": _FINISH_REASONS[result.stop_reason],
                "paligemma": result.to_dict(),
            }
        )
    return {**_head(asked, asked.dialect.whole), "choices": choices, "usage": asked.usage}


async def _frames(asked: _Asked) -> AsyncIterator[bytes]:
    """The chunks of a stream, without its closing line."""
    dialect = asked.dialect
    words = [_Words(asked.tokenizer) for _ in asked.tickets]
    opened: set[int] = set()

    def opening(index: int) -> bytes:
        first = None if index in opened else dialect.opening()
        opened.add(index)
        return b"" if first is None else _chunk(asked, index, first)

    try:
        async with aclosing(merged(asked.tickets)) as updates:
            async for index, update in updates:
                logprobs = None
                if asked.has_logprobs and update.token_ids:
                    told = words[index].told(update.token_ids, update.logprobs, update.top_logprobs)
                    logprobs = dialect.logprobs(words[index], told) if told else None
                if update.text or logprobs:
                    piece = dialect.piece(update.text, logprobs)
                    yield opening(index) + _chunk(asked, index, piece)
        for index, ticket in enumerate(asked.tickets):
            result = ticket.result()
            last = await anyio.to_thread.run_sync(result.to_dict)
            ending = _chunk(
                asked,
                index,
                dialect.piece("", None),
                finish_reason=_FINISH_REASONS[result.stop_reason],
                paligemma=last,
            )
            yield opening(index) + ending
        if asked.body.has_usage:
            head = _head(asked, dialect.chunk)
            yield event_frame(None, {**head, "choices": [], "usage": asked.usage})
    finally:
        for ticket in asked.tickets:
            ticket.cancel()


def _chunk(
    asked: _Asked,
    index: int,
    piece: dict[str, Any],
    finish_reason: str | None = None,
    **further: Any,
) -> bytes:
    choice = {"index": index, **piece, "finish_reason": finish_reason, **further}
    usage = {"usage": None} if asked.body.has_usage else {}
    return event_frame(None, {**_head(asked, asked.dialect.chunk), "choices": [choice], **usage})


def _head(asked: _Asked, kind: str) -> dict[str, Any]:
    return {
        "id": asked.answer_id,
        "object": kind,
        "created": asked.created,
        "model": asked.model,
    }


# Models


def _models(desk: Desk, created: int) -> list[dict[str, Any]]:
    """What is served, the model itself first. Raises UnavailableError until it is there."""
    predictor = desk.service.predictor
    if predictor is None or desk.service.state() in ("loading", "dead"):
        raise UnavailableError("The model is not there.")
    info = predictor.info()
    about = {name: info[name] for name in _ABOUT if info[name] is not None}
    base = desk.service.name

    def entry(name: str) -> dict[str, Any]:
        found = {"id": name, "object": "model", "created": created, "owned_by": "paligemma"}
        # What an adapter was taught, and under which terms, its base does not tell.
        own = {"parent": base} if name != base else {"parent": None, **_known_of(predictor)}
        return {**found, **own, **about}

    return [entry(name) for name in desk.service.models]


def _known_of(predictor: Predictor) -> dict[str, Any]:
    """The terms of a model's weights, and what it was taught, where its name tells them."""
    found: dict[str, Any] = {} if predictor.note is None else {"note": predictor.note}
    if predictor.name == "mini":
        return {**found, "license": "Apache-2.0", "languages": list(LANGUAGES)}
    if predictor.name.startswith("google/paligemma"):
        address = "https://ai.google.dev/gemma/terms"
        return {**found, "license": "Gemma Terms of Use", "license_url": address}
    return found


def _json(value: dict[str, Any]) -> Response:
    return Response(write_json(value), media_type="application/json")
