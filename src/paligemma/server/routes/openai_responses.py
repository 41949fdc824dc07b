"""OpenAI's `/v1/responses`, thinly: each request is answered as a chat of one message."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from paligemma.answering import Update
from paligemma.server.errors import ApiError
from paligemma.server.handler import RequestHandler, cancel_on_disconnect
from paligemma.server.jobs import merge_updates
from paligemma.server.openai_reading import read_chat
from paligemma.server.responses import error_responses
from paligemma.server.routes.openai import Submission, ask_chat, join_updates, read_fields
from paligemma.server.sse import EventStream, start_stream
from paligemma.server.strict_json import write_json

_CHAT_NAMES: dict[str, str] = {"max_output_tokens": "max_tokens"}
_UNUSED = ("logprobs", "n", "top_logprobs")
"""Parameters of chats that responses do not have, or not here."""
_BODY = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "input": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "object"}, "minItems": 1},
            ],
            "description": "A prompt, or messages and their parts as in OpenAI's API.",
        },
    },
    "required": ["model", "input"],
    "additionalProperties": True,
}
_OBJECT = {"type": "object", "additionalProperties": True}


def openai_responses_routes(handler: RequestHandler) -> APIRouter:
    """`/v1/responses`."""
    router = APIRouter(tags=["openai"])

    @router.post(
        "/v1/responses",
        name="responses",
        response_class=Response,
        responses={
            200: {
                "description": "A response in OpenAI's format; with `stream`, its events.",
                "content": {
                    "application/json": {"schema": _OBJECT},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **error_responses(),
        },
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}
        },
    )
    async def responses(request: Request) -> Any:
        """Answer a prompt about an image, both in one input."""
        document = await read_fields(handler, request)
        reading = read_chat(_as_chat(document), handler.limits)
        if isinstance(document, dict):
            reading.ignored += [name for name in _UNUSED if document.get(name) is not None]
        submitting = ask_chat(handler, reading, request.state.client)
        submission = await cancel_on_disconnect(request.receive, submitting)
        if submission.body.stream:
            frames = start_stream(_frames(submission))
            return EventStream(await cancel_on_disconnect(request.receive, frames))

        async def work() -> bytes:
            answers = await join_updates(submission.tickets)
            result = submission.tickets[0].result()
            return write_json(_response(submission, submission.text(answers[0], result)))

        data = await cancel_on_disconnect(request.receive, work())
        return Response(data, media_type="application/json")

    return router


def _as_chat(document: object) -> dict[str, Any]:
    """The body of the chat that asks the same. Raises ApiError."""
    if not isinstance(document, dict) or "input" not in document:
        raise ApiError(400, "invalid_field", "The field input is missing.", param="input")
    chat: dict[str, Any] = {
        _CHAT_NAMES.get(str(name), str(name)): value for name, value in document.items()
    }
    given = chat.pop("input")
    if chat.pop("instructions", None):
        given = [{"role": "system", "content": "..."}, *_items(given)]
    text = chat.pop("text", None)
    form = text.get("format") if isinstance(text, dict) else None
    if isinstance(form, dict):
        inner = {"json_schema": {"schema": form.get("schema")}} if "schema" in form else {}
        chat["response_format"] = {"type": form.get("type"), **inner}
    if isinstance(tools := chat.get("tools"), list):
        chat["tools"] = [_as_chat_tool(tool) for tool in tools]
    chat["tool_choice"] = _as_chat_tool(chat.get("tool_choice"))
    return {**chat, "messages": _items(given), **dict.fromkeys(_UNUSED)}


def _as_chat_tool(tool: object) -> object:
    """A function, or the choice of one, as chats have it."""
    if isinstance(tool, dict) and tool.get("type") == "function" and "function" not in tool:
        return {"type": "function", "function": tool}
    return tool


def _items(given: object) -> list[Any]:
    """The messages. Parts without one are a message of the user; calls of tools are not."""
    items = given if isinstance(given, list) else [given]
    messages: list[Any] = []
    parts: list[Any] | None = None  # of the message that the last item belongs to
    for item in items:
        is_part = isinstance(item, dict) and str(item.get("type")).startswith(("input_", "image"))
        if is_part and parts is not None:
            parts.append(item)
            continue
        parts = [item] if is_part else None
        if isinstance(item, str):
            messages.append({"role": "user", "content": item})
        elif parts is not None:
            messages.append({"role": "user", "content": parts})
        elif isinstance(item, dict) and "role" not in item:
            messages.append({"role": "tool"})
        else:
            messages.append(item)
    return messages


def _item(submission: Submission, text: str, status: str) -> dict[str, Any]:
    """The output: a message, or the call of a tool."""
    json_format = submission.reading.json_format
    if json_format is not None and json_format.tool is not None:
        number = submission.answer_id.rpartition("-")[2]
        return {
            "id": f"fc_{number}",
            "type": "function_call",
            "call_id": f"call_{number}",
            "name": json_format.tool,
            "arguments": text,
            "status": status,
        }
    part = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": f"msg_{submission.answer_id.rpartition('-')[2]}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part] if status == "completed" else [],
    }


def _response(submission: Submission, text: str | None) -> dict[str, Any]:
    """The response; without a text it is in progress."""
    body = submission.body
    is_cut = text is not None and submission.tickets[0].result().stop_reason == "length"
    finished = "incomplete" if is_cut else "completed"
    response: dict[str, Any] = {
        "id": f"resp_{submission.answer_id.rpartition('-')[2]}",
        "object": "response",
        "created_at": submission.created,
        "status": "in_progress" if text is None else finished,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "instructions": None,
        "metadata": {},
        "model": submission.model,
        "output": [] if text is None else [_item(submission, text, "completed")],
        "parallel_tool_calls": False,
        "temperature": body.temperature,
        "tool_choice": "none",
        "tools": [],
        "top_p": body.top_p,
        "usage": None,
        "paligemma": submission.notes.model_dump(),
    }
    if text is not None:
        usage = submission.usage
        response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
        }
        result = submission.tickets[0].result().to_dict()
        response["paligemma"] = {**response["paligemma"], "result": result}
    return response


async def _frames(submission: Submission) -> AsyncGenerator[bytes, None]:
    """The events of a stream, numbered."""
    item = _item(submission, "", "in_progress")
    is_call = item["type"] == "function_call"
    place = {"item_id": item["id"], "output_index": 0} | ({} if is_call else {"content_index": 0})
    number = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        data = {"type": f"response.{kind}", "sequence_number": number - 1, **fields}
        return f"event: response.{kind}\ndata: ".encode() + write_json(data) + b"\n\n"

    part = {"type": "output_text", "text": "", "annotations": []}
    is_json = submission.reading.json_format is not None
    answer = Update()
    try:
        yield event("created", response=_response(submission, None))
        yield event("output_item.added", output_index=0, item=item)
        if not is_call:
            yield event("content_part.added", **place, part=part)
        async with aclosing(merge_updates(submission.tickets)) as updates:
            async for _, update in updates:
                answer = answer.then(update)
                if update.text and not is_json:
                    yield event("output_text.delta", **place, delta=update.text, logprobs=[])
        text = submission.text(answer, submission.tickets[0].result())
        if is_call:
            yield event("function_call_arguments.delta", **place, delta=text)
            yield event("function_call_arguments.done", **place, arguments=text, name=item["name"])
        else:
            if is_json:
                yield event("output_text.delta", **place, delta=text, logprobs=[])
            yield event("output_text.done", **place, text=text, logprobs=[])
            yield event("content_part.done", **place, part={**part, "text": text})
        done = _item(submission, text, "completed")
        yield event("output_item.done", output_index=0, item=done)
        response = await anyio.to_thread.run_sync(_response, submission, text)
        yield event(
            "incomplete" if response["status"] == "incomplete" else "completed", response=response
        )
    finally:
        for ticket in submission.tickets:
            ticket.cancel()
