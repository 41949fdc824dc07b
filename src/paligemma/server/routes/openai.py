"""The routes of OpenAI's dialect, so that its clients work unchanged.

    messages -> prompt and image -> task, if the prompt is that of a task -> jobs -> tickets
    -> choices or chunks, with the typed result in the field `paligemma`

Format and names follow https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from paligemma.answering import Update, Usage
from paligemma.engine.request import TopLogprob
from paligemma.errors import UnavailableError
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import Generation, Objects, Result
from paligemma.server import openai_models as models
from paligemma.server.errors import ApiError
from paligemma.server.handler import (
    RequestHandler,
    any_seed,
    cancel_on_disconnect,
    request_schema,
    run_blocking,
)
from paligemma.server.images import decode_any_base64
from paligemma.server.jobs import Job, JobOptions, Ticket, merge_updates
from paligemma.server.openai_models import (
    ChatRequest,
    CompletionRequest,
    OpenAiRequest,
)
from paligemma.server.openai_reading import Reading, read_chat, read_completion, read_prompt
from paligemma.server.requests import ImageUrl, RequestModel, validate
from paligemma.server.responses import ResponseModel, error_responses, json_response, result_model
from paligemma.server.sse import EventStream, event_description, event_frame, start_stream
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask

OPENAI_REQUESTS: tuple[type[RequestModel], ...] = (ChatRequest, CompletionRequest)

_LEAST_LOGPROB = -9999.0  # OpenAI's value for impossible tokens, such as those that a grammar bans

_DETAILS = ("family", "parameters", "resolution", "image_tokens", "dtype", "quantization")
_FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


def openai_routes(handler: RequestHandler) -> APIRouter:
    """`/v1/chat/completions`, `/v1/completions`, `/v1/models` and `/v1/models/NAME`."""
    router = APIRouter(tags=["openai"])

    @router.post(
        "/v1/chat/completions",
        response_class=Response,
        responses=_responses(models.ChatCompletion, models.ChatCompletionChunk),
        openapi_extra={"requestBody": request_schema(ChatRequest, with_form=False)},
    )
    async def chat_completions(request: Request) -> Any:
        """Answer a prompt about an image, both in one message."""
        reading = read_chat(await read_fields(handler, request), handler.limits)
        return await _answer(request, ask_chat(handler, reading, request.state.client))

    @router.post(
        "/v1/completions",
        response_class=Response,
        responses=_responses(models.Completion, models.CompletionChunk),
        openapi_extra={"requestBody": request_schema(CompletionRequest, with_form=False)},
    )
    async def completions(request: Request) -> Any:
        """Continue prompts, used verbatim and without grammar-constrained decoding."""
        reading = read_completion(await read_fields(handler, request), handler.limits)
        return await _answer(request, _ask_completions(handler, reading, request.state.client))

    started = int(time.time())

    @router.get("/v1/models", response_class=Response, responses=_model_responses(models.ModelList))
    async def list_models() -> Response:
        """List the served model and its adapters."""
        return json_response(models.ModelList(object="list", data=_models(handler, started)))

    @router.get(
        "/v1/models/{model:path}",
        response_class=Response,
        responses=_model_responses(models.ModelEntry),
    )
    async def get_model(model: str) -> Response:
        """Return one of the served models."""
        entries = {entry.id: entry for entry in _models(handler, started)}
        name, _ = handler.find_model(model)
        return json_response(entries[name])

    return router


def _model_responses(model: type[ResponseModel]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": "The answer.", "model": model},
        **error_responses(401, 403, 404, 421, 431, 500, 503),
    }


def _responses(
    model: type[ResponseModel], chunk: type[ResponseModel]
) -> dict[int | str, dict[str, Any]]:
    events = event_description("Chunks, then [DONE].", chunk.__name__)
    return {
        200: {
            "description": "The answer; with `stream`, a stream of chunks.",
            "model": model,
            "content": {"application/json": {}, "text/event-stream": events},
        },
        **error_responses(),
    }


@dataclass(frozen=True, kw_only=True)
class Submission:
    dialect: _Dialect
    body: OpenAiRequest
    reading: Reading
    model: str
    tickets: Sequence[Ticket]
    tokenizer: Tokenizer
    has_logprobs: bool
    answer_id: str
    created: int

    @property
    def usage(self) -> models.CompletionUsage:
        """Each prompt counts once, however many answers it got."""
        num_answers = self.body.n or 1
        usages = [ticket.usage for ticket in self.tickets]
        per_prompt: list[Usage] = usages[::num_answers]
        prompt_tokens = sum(usage.prompt_tokens for usage in per_prompt)
        completion_tokens = sum(usage.completion_tokens for usage in usages)
        return models.CompletionUsage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=models.PromptTokensDetails(
                image_tokens=sum(usage.image_tokens for usage in per_prompt)
            ),
        )

    @property
    def head(self) -> dict[str, Any]:
        return {"id": self.answer_id, "created": self.created, "model": self.model}

    @property
    def notes(self) -> models.RequestNotes:
        return models.RequestNotes(ignored=self.reading.ignored, notes=self.reading.notes)

    def text(self, answer: Update, result: Result) -> str:
        """The answer as the client asked for it. Raises ApiError."""
        json_format = self.reading.json_format
        return answer.text if json_format is None else json_format.write(result)

    def finish_reason(self, result: Generation | Objects[Any]) -> str:
        """Why the answer ended."""
        json_format = self.reading.json_format
        has_call = json_format is not None and json_format.tool is not None
        reason = _FINISH_REASONS[result.stop_reason]
        return "tool_calls" if has_call and reason == "stop" else reason


class _Token(NamedTuple):
    token: TopLogprob
    alternatives: tuple[TopLogprob, ...]


class _TokenTexts:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.num_characters = 0
        """Of the tokens so far."""

    def text(self, token: TopLogprob) -> str:
        """The text of the token alone; U+FFFD for a part of a character."""
        return self._tokenizer.token_bytes(token.token_id).decode("utf-8", "replace")

    def fields(self, token: TopLogprob) -> dict[str, Any]:
        """The fields of `TokenLogprob`: the bytes of all tokens joined are the answer's."""
        data = self._tokenizer.token_bytes(token.token_id)
        return {
            "token": data.decode("utf-8", "replace"),
            "logprob": _finite(token.logprob),
            "bytes": list(data),
        }

    def tokens(self, update: Update) -> list[_Token]:
        """The tokens that are text: all but EOS."""
        alternatives = update.top_logprobs or [()] * len(update.token_ids)
        return [
            _Token(TopLogprob(token_id, logprob), likely)
            for token_id, logprob, likely in zip(
                update.token_ids, update.logprobs, alternatives, strict=True
            )
            if token_id != self._tokenizer.eos_id
        ]


class _Chat:
    """The format of /v1/chat/completions. `end` holds index, finish_reason and paligemma."""

    id_prefix: ClassVar[str] = "chatcmpl"

    def choice(
        self, text: str, logprobs: Any, tool: str | None = None, **end: Any
    ) -> ResponseModel:
        message = models.ChatMessage(role="assistant", content=text, refusal=None)
        if tool is not None:
            call = models.ToolCall(**_call(tool, text))
            message = models.ChatMessage(
                role="assistant", content=None, refusal=None, tool_calls=[call]
            )
        return models.ChatChoice(message=message, logprobs=logprobs, **end)

    def whole(self, **fields: Any) -> ResponseModel:
        return models.ChatCompletion(object="chat.completion", **fields)

    def first_piece(self, index: int) -> ResponseModel | None:
        """What begins the stream of an answer."""
        delta = models.ChatDelta(role="assistant", content="", refusal=None)
        return models.ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)

    def piece(self, text: str, logprobs: Any, **end: Any) -> ResponseModel:
        """A part of an answer, "" at its end."""
        delta = models.ChatDelta(content=text) if text or logprobs else models.ChatDelta()
        return models.ChatChunkChoice(delta=delta, logprobs=logprobs, **end)

    def tool_piece(self, index: int, tool: str, arguments: str) -> ResponseModel:
        """A whole tool call."""
        call = models.ToolCallDelta(index=0, **_call(tool, arguments))
        delta = models.ChatDelta(tool_calls=[call])
        return models.ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)

    def chunk(self, **fields: Any) -> ResponseModel:
        return models.ChatCompletionChunk(object="chat.completion.chunk", **fields)

    def logprobs(self, texts: _TokenTexts, tokens: Sequence[_Token]) -> ResponseModel:
        content = [
            models.ContentLogprob(
                **texts.fields(token.token),
                top_logprobs=[models.TokenLogprob(**texts.fields(t)) for t in token.alternatives],
            )
            for token in tokens
        ]
        return models.ChatLogprobs(content=content, refusal=None)


def _call(tool: str, arguments: str) -> dict[str, Any]:
    function = models.ToolFunction(name=tool, arguments=arguments)
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class _Completions:
    """The format of /v1/completions, with the methods of `_Chat`."""

    id_prefix: ClassVar[str] = "cmpl"

    def choice(
        self, text: str, logprobs: Any, tool: str | None = None, **end: Any
    ) -> ResponseModel:
        return models.CompletionChoice(text=text, logprobs=logprobs, **end)

    def whole(self, **fields: Any) -> ResponseModel:
        return models.Completion(object="text_completion", **fields)

    def first_piece(self, index: int) -> ResponseModel | None:
        return None

    def piece(self, text: str, logprobs: Any, **end: Any) -> ResponseModel:
        return models.CompletionChunkChoice(text=text, logprobs=logprobs, **end)

    def chunk(self, **fields: Any) -> ResponseModel:
        return models.CompletionChunk(object="text_completion", **fields)

    def logprobs(self, texts: _TokenTexts, tokens: Sequence[_Token]) -> ResponseModel:
        names = [texts.text(token.token) for token in tokens]
        # Each part of a character that spans several tokens counts as one character.
        ends = list(itertools.accumulate(map(len, names), initial=texts.num_characters))
        texts.num_characters = ends[-1]
        return models.CompletionLogprobs(
            tokens=names,
            token_logprobs=[_finite(token.token.logprob) for token in tokens],
            top_logprobs=[
                {texts.text(t): _finite(t.logprob) for t in token.alternatives} for token in tokens
            ],
            text_offset=ends[:-1],
        )


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)


_Dialect = _Chat | _Completions
_CHAT = _Chat()
_COMPLETIONS = _Completions()


# Reading


async def read_fields(handler: RequestHandler, request: Request) -> object:
    body = await handler.read_request(request)
    if body.file is not None:
        raise ApiError(415, "wrong_content_type", "Send application/json.")
    return body.fields


async def ask_chat(handler: RequestHandler, reading: Reading, client: str) -> Submission:
    """Start to answer a chat. Raises ApiError, InputError and BusyError."""
    body = validate(ChatRequest, reading.document, handler.limits)
    json_format = reading.json_format
    if len(body.urls) > handler.limits.max_images:
        raise ApiError(
            400,
            "too_many_images",
            f"The message has {len(body.urls)} images; the limit is {handler.limits.max_images}.",
            param="messages",
        )
    model, adapter = handler.find_model(body.model)
    num_top = (body.top_logprobs or 0) if body.logprobs else 0
    spread = _spread(_options(body, adapter, num_top), body, handler, 1)
    images = tuple([await _image_at(handler, url) for url in body.urls])
    # Tasks are about one image; with several, only the checkpoint knows what the prompt means.
    meant: Task[Any] | str = body.prompt
    if not images:
        _check_text_alone(reading, body.prompt)
    elif len(images) == 1:
        prefix = "" if adapter is not None else _question_prefix(handler)
        meant, notes = read_prompt(body.prompt, prefix)
        reading.notes += notes
    jobs = [
        Job(
            task=None if isinstance(meant, str) else meant,
            prompt=meant if isinstance(meant, str) else None,
            images=images,
            options=options,
            client=client,
            stream=True,  # only the streamed pieces are the text as the model generated it
        )
        for options in spread
    ]
    has_logprobs = bool(body.logprobs) and json_format is None  # they are of the text's tokens
    return _submitted(handler, _CHAT, (body, reading), model, jobs, has_logprobs=has_logprobs)


def _check_text_alone(reading: Reading, prompt: str) -> None:
    """Raises ApiError for a prompt that is about an image. Others are sent unchanged."""
    if not isinstance(read_prompt(prompt, "answer en")[0], str | AnswerTask):
        raise ApiError(
            400,
            "missing_image",
            "An image is required for this prompt: add an image_url part to the message.",
            param="messages",
        )
    reading.notes.append(
        "There is no image. These models answer about images: an answer without one means little."
    )


def _question_prefix(handler: RequestHandler) -> str:
    if handler.settings.question_prefix is not None:
        return handler.settings.question_prefix
    predictor = handler.service.predictor
    is_mix = predictor is not None and (predictor.name == "mini" or "-mix-" in predictor.name)
    return "answer en" if is_mix else ""


async def _ask_completions(handler: RequestHandler, reading: Reading, client: str) -> Submission:
    body = validate(CompletionRequest, reading.document, handler.limits)
    model, adapter = handler.find_model(body.model)
    spread = _spread(_options(body, adapter, body.logprobs or 0), body, handler, len(body.prompts))
    images: tuple[bytes, ...] = ()
    if body.image is not None:
        url = body.image.url if isinstance(body.image, ImageUrl) else body.image
        images = (await _image_at(handler, url),)
    jobs = [
        Job(prompt=prompt, images=images, options=options, client=client, stream=True)
        for prompt in body.prompts
        for options in spread
    ]
    has_logprobs = body.logprobs is not None
    request = (body, reading)
    return _submitted(handler, _COMPLETIONS, request, model, jobs, has_logprobs=has_logprobs)


async def _image_at(handler: RequestHandler, url: str) -> bytes:
    if url[:8].lower().startswith(("http://", "https://")):
        return await handler.fetcher.fetch(url)
    return await run_blocking(decode_any_base64, url, handler.limits, size=len(url))


def _options(body: OpenAiRequest, adapter: str | None, num_top_logprobs: int) -> JobOptions:
    return JobOptions(
        max_new_tokens=body.num_tokens,
        temperature=body.temperature or 0.0,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=any_seed(body.seed, body.temperature),
        stop=body.stops,
        logprobs=num_top_logprobs,
        adapter=adapter,
    )


def _spread(
    options: JobOptions, body: OpenAiRequest, handler: RequestHandler, num_prompts: int
) -> list[JobOptions]:
    """The options of each of n answers to one prompt. Raises ApiError."""
    num_answers = body.n or 1
    if num_answers * num_prompts > handler.limits.max_n:
        raise ApiError(
            400,
            "invalid_field",
            f"A request may have at most {handler.limits.max_n} answers.",
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
    options.check(handler.limits)
    return [replace(options, sample_index=number) for number in range(num_answers)]


def _submitted(
    handler: RequestHandler,
    dialect: _Dialect,
    request: tuple[OpenAiRequest, Reading],
    model: str,
    jobs: Sequence[Job],
    *,
    has_logprobs: bool,
) -> Submission:
    tickets = handler.service.submit_all(jobs)
    predictor = handler.service.predictor
    assert predictor is not None  # else nothing is accepted
    return Submission(
        dialect=dialect,
        body=request[0],
        reading=request[1],
        model=model,
        tickets=tickets,
        tokenizer=predictor.processor.tokenizer,
        has_logprobs=has_logprobs,
        answer_id=f"{dialect.id_prefix}-{secrets.token_hex(12)}",
        created=int(time.time()),
    )


# Answering


async def _answer(request: Request, submitting: Awaitable[Submission]) -> Response:
    submission = await cancel_on_disconnect(request.receive, submitting)
    if submission.body.stream:
        frames = start_stream(_frames(submission))
        return EventStream(await cancel_on_disconnect(request.receive, frames), error_name=None)

    async def work() -> bytes:
        answers = await join_updates(submission.tickets)
        return await anyio.to_thread.run_sync(lambda: _whole(submission, answers).to_json())

    data = await cancel_on_disconnect(request.receive, work())
    return Response(data, media_type="application/json")


async def join_updates(tickets: Sequence[Ticket]) -> list[Update]:
    """All updates of each ticket as one. The first error ends all."""
    answers = [Update() for _ in tickets]
    try:
        async with aclosing(merge_updates(tickets)) as updates:
            async for index, update in updates:
                answers[index] = answers[index].then(update)
    finally:
        for ticket in tickets:
            ticket.cancel()
    return answers


def _whole(submission: Submission, answers: Sequence[Update]) -> ResponseModel:
    """The body of an answer. Encoding masks takes time: call it in a thread."""
    dialect, json_format = submission.dialect, submission.reading.json_format
    choices = []
    for index, (ticket, answer) in enumerate(zip(submission.tickets, answers, strict=True)):
        result = ticket.result()
        logprobs = None
        if submission.has_logprobs:
            texts = _TokenTexts(submission.tokenizer)
            logprobs = dialect.logprobs(texts, texts.tokens(answer))
        choices.append(
            dialect.choice(
                submission.text(answer, result),
                logprobs,
                None if json_format is None else json_format.tool,
                index=index,
                finish_reason=submission.finish_reason(result),
                paligemma=result_model(result),
            )
        )
    return dialect.whole(
        **submission.head, choices=choices, usage=submission.usage, paligemma=submission.notes
    )


async def _frames(submission: Submission) -> AsyncGenerator[bytes, None]:
    """The chunks of a stream, without its closing line."""
    dialect = submission.dialect
    texts = [_TokenTexts(submission.tokenizer) for _ in submission.tickets]
    started: set[int] = set()

    def frames(index: int, piece: ResponseModel, **notes: models.RequestNotes) -> bytes:
        first = None if index in started else dialect.first_piece(index)
        started.add(index)
        before = b"" if first is None else _chunk(submission, first)
        return before + _chunk(submission, piece, **notes)

    try:
        async with aclosing(merge_updates(submission.tickets)) as updates:
            async for index, update in updates:
                logprobs = None
                if submission.has_logprobs and (tokens := texts[index].tokens(update)):
                    logprobs = dialect.logprobs(texts[index], tokens)
                if (update.text or logprobs) and submission.reading.json_format is None:
                    piece = dialect.piece(update.text, logprobs, index=index, finish_reason=None)
                    yield frames(index, piece)
        for index, ticket in enumerate(submission.tickets):
            result = ticket.result()
            if (json_format := submission.reading.json_format) is not None:
                text = submission.text(Update(), result)
                if json_format.tool is not None:
                    piece = _CHAT.tool_piece(index, json_format.tool, text)
                else:
                    piece = dialect.piece(text, None, index=index, finish_reason=None)
                yield frames(index, piece)
            last = dialect.piece(
                "",
                None,
                index=index,
                finish_reason=submission.finish_reason(result),
                paligemma=await anyio.to_thread.run_sync(result_model, result),
            )
            yield frames(index, last, paligemma=submission.notes)
        if submission.body.has_usage:
            chunk = dialect.chunk(**submission.head, choices=[], usage=submission.usage)
            yield event_frame(None, chunk)
    finally:
        for ticket in submission.tickets:
            ticket.cancel()


def _chunk(submission: Submission, piece: ResponseModel, **notes: models.RequestNotes) -> bytes:
    usage = {"usage": None} if submission.body.has_usage else {}
    chunk = submission.dialect.chunk(**submission.head, choices=[piece], **usage, **notes)
    return event_frame(None, chunk)


# Models


def _models(handler: RequestHandler, created: int) -> list[models.ModelEntry]:
    """The served model, then its adapters. Raises UnavailableError until it is loaded."""
    predictor = handler.service.predictor
    if predictor is None or handler.service.state() in ("loading", "dead"):
        raise UnavailableError("The model is not loaded.")
    info = predictor.info()
    details = {name: info[name] for name in _DETAILS if info[name] is not None}
    base = handler.service.name

    def entry(name: str) -> models.ModelEntry:
        # The license and languages of an adapter are not those of its base.
        parent = {"parent": base} if name != base else {"parent": None, **_model_details(predictor)}
        return models.ModelEntry(
            id=name, object="model", created=created, owned_by="paligemma", **parent, **details
        )

    return [entry(name) for name in handler.service.models]


def _model_details(predictor: Predictor) -> dict[str, Any]:
    details: dict[str, Any] = {} if predictor.note is None else {"note": predictor.note}
    if predictor.languages is not None:
        details["languages"] = list(predictor.languages)
    if predictor.name == "mini":
        return {**details, "license": "Apache-2.0"}
    if predictor.name.startswith("google/paligemma"):
        address = "https://ai.google.dev/gemma/terms"
        return {**details, "license": "Gemma Terms of Use", "license_url": address}
    return details
