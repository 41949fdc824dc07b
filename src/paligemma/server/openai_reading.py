"""Bodies of OpenAI's dialect as unmodified clients send them -> what these models can answer.

What changes nothing, or what these models cannot follow, is left out and listed as ignored. What a
client would miss in the answer, such as audio, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paligemma.answering import CONTROL_WORDS
from paligemma.errors import InputError, PromptError
from paligemma.server.errors import ApiError
from paligemma.server.openai_json import JsonFormat, read_format, schema_in, without_json
from paligemma.server.openai_models import ChatRequest, CompletionRequest, OpenAiRequest
from paligemma.server.settings import Limits
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.objects import read_phrases
from paligemma.tasks.parse_prompt import parse_prompt
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task
from paligemma.tasks.text import CaptionTask, OcrTask

_NO_AUDIO = "These models read images and generate text."
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "audio": ((), _NO_AUDIO),
    "echo": ((False,), "Answers do not repeat the prompt."),
    "modalities": ((["text"],), _NO_AUDIO),
    "suffix": (("",), "These models cannot fill in text before a suffix."),
}
"""Parameter -> the values that have no effect, and why others are refused."""

_UNSAID = (("response_format", {"type": "text"}), ("tool_choice", "none"))
_MAX_NAME = 64
_LOCATION = re.compile(r"<(?:loc|seg)[0-9]+>")
_ASKED = r"(?:(?:please|can you|could you)\s+)*"
_IMAGE = r"(?:this|the) (?:image|picture|photo)"
_DESCRIBE = re.compile(
    _ASKED + r"(?:describe|caption|tell me (?:about|what (?:is|you see) in) " + _IMAGE + r")\b"
    r"|"
    + _ASKED
    + r"(?:write|give|generate|provide)(?: me)? an? (?:\w+ )?(?:caption|description)\b"
    r"|what(?:['\u2019]s| is| do you see| can you see)(?: in " + _IMAGE + r")\W*$"
    r"|what (?:do|can) you see\W*$",
    re.IGNORECASE,
)
_READ = re.compile(
    _ASKED + r"(?:read|extract|transcribe|ocr)(?: out)?(?: all)?(?: of)?(?: the)? (?:text|words)\b",
    re.IGNORECASE,
)
_FIND = re.compile(
    _ASKED + r"(detect|segment|locate|localize|find) (?!out\b)(?:all )?(?:the )?(?P<names>.+?)"
    r"(?: in " + _IMAGE + r")?$",
    re.IGNORECASE,
)
_AND = re.compile(r",?\s+and\s+(?:all\s+)?(?:the\s+)?", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n+")
_JSON_WORDS = re.compile(r"json|schema", re.IGNORECASE)


@dataclass(kw_only=True)
class Reading:
    """A body without what was left out."""

    document: object
    ignored: list[str] = field(default_factory=list)
    """Names of the parameters that were left out."""
    notes: list[str] = field(default_factory=list)
    """What else was changed to answer the request."""
    json_format: JsonFormat | None = None
    """The form of the answer if it is JSON."""


def read_chat(document: object, limits: Limits) -> Reading:
    """Read the body of a chat. Raises ApiError for what cannot be left out."""
    reading = _read_parameters(document, ChatRequest, limits)
    if not isinstance(document, dict) or not isinstance(reading.document, dict):
        return reading
    reading.json_format = read_format(document)
    _find_schema(reading, document.get("messages"))
    if reading.json_format is not None:
        used = ("response_format", "tools", "tool_choice")
        reading.ignored = [name for name in reading.ignored if name not in used]
    _read_messages(reading, document.get("messages"))
    return reading


def read_completion(document: object, limits: Limits) -> Reading:
    """Read the body of a completion. Raises ApiError for what cannot be left out."""
    reading = _read_parameters(document, CompletionRequest, limits)
    prompt = document.get("prompt") if isinstance(document, dict) else None
    if isinstance(prompt, list) and prompt and all(_is_token_ids(item) for item in prompt):
        raise ApiError(
            400, "unsupported_parameter", "Prompts must be text, not token ids.", param="prompt"
        )
    return reading


def _is_token_ids(item: object) -> bool:
    return isinstance(item, int | list) and not isinstance(item, bool)


def _read_parameters(document: object, model: type[OpenAiRequest], limits: Limits) -> Reading:
    if not isinstance(document, dict):
        return Reading(document=document)
    reading = Reading(document={})
    kept: dict[str, Any] = {}
    for name, value in document.items():
        if value is None:
            continue
        if name in model.model_fields:
            is_whole = isinstance(value, float) and value.is_integer()
            kept[name] = int(value) if is_whole else value  # as some languages write integers
            continue
        if name in _REFUSED:
            neutral, reason = _REFUSED[name]
            if not any(type(value) is type(same) and value == same for same in neutral):
                raise ApiError(400, "unsupported_parameter", reason, param=name)
        if (name, value) not in _UNSAID:
            reading.ignored.append(name[:_MAX_NAME])
    _read_numbers(reading, kept, limits)
    if isinstance(kept.get("stream_options"), dict) and not kept.get("stream"):
        del kept["stream_options"]
        reading.ignored.append("stream_options")
    reading.document = kept
    return reading


def _read_numbers(reading: Reading, kept: dict[str, Any], limits: Limits) -> None:
    """Bring values that mean "no limit" or more than there is into the range of these models."""
    if "max_completion_tokens" in kept and kept.pop("max_tokens", None) is not None:
        reading.ignored.append("max_tokens")
    for name in ("max_tokens", "max_completion_tokens"):
        value: Any = kept.get(name)
        if not _is_int(value):
            continue
        if value == -1:
            del kept[name]
        elif value > limits.max_tokens:
            kept[name] = limits.max_tokens
            reading.notes.append(f"{name} was cut to {limits.max_tokens}, the limit here.")
    if _is_int(kept.get("top_k")) and kept["top_k"] in (0, -1):
        del kept["top_k"]
    if _is_int(kept.get("seed")) and kept["seed"] < 0:
        kept["seed"] %= 2**31


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Messages


def _read_messages(reading: Reading, messages: object) -> None:
    """Replace the messages by the last user message, with the image that it is about."""
    assert isinstance(reading.document, dict)
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        return
    by_user = [message for message in messages if message.get("role") == "user"]
    if not by_user:
        raise ApiError(
            400,
            "unsupported_message",
            "There is no message with the role user. Send one with a text and an image.",
            param="messages",
        )
    roles = {message.get("role") for message in messages}
    if roles & {"system", "developer"}:
        reading.notes.append(
            "System and developer messages were ignored: these models were trained without them."
        )
    if len(by_user) > 1 or roles & {"assistant", "tool", "function"}:
        reading.notes.append(
            "Only the last user message was answered: these models do not take conversations."
        )
    last = _content(by_user[-1].get("content"))
    if last is None:
        reading.document["messages"] = [{"role": "user", "content": by_user[-1].get("content")}]
        return
    texts, urls = last
    for message in reversed(messages):
        if urls:
            break
        if message is not by_user[-1]:
            urls = (_content(message.get("content")) or ([], []))[1]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    parts.append({"type": "text", "text": _prompt(texts, reading, has_image=bool(urls))})
    reading.document["messages"] = [{"role": "user", "content": parts}]


def _find_schema(reading: Reading, messages: object) -> None:
    """Look for a JSON schema in the messages: some clients write it there, with instructions."""
    asked = reading.json_format
    if not isinstance(messages, list) or (asked is not None and asked.schema is not None):
        return
    for message in messages:
        content = _content(message.get("content")) if isinstance(message, dict) else None
        for text in content[0] if content else ():
            if (schema := schema_in(text)) is not None:
                reading.json_format = JsonFormat(schema=schema)
    if reading.json_format is not asked:
        reading.notes.append("The answer is JSON that follows the schema in the messages.")


def _content(content: object) -> tuple[list[str], list[str]] | None:
    """The texts and the images' URLs; None for content that cannot be read. Raises ApiError."""
    if isinstance(content, str):
        return [content], []
    if not isinstance(content, list):
        return None
    texts: list[str] = []
    urls: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text"):
            if part.get("text") != "":
                texts.append(part.get("text"))
        elif kind in ("image_url", "input_image"):
            image = part.get("image_url")
            urls.append(image.get("url", "") if isinstance(image, dict) else image)
        elif kind in ("input_audio", "file", "input_file", "video_url"):
            raise ApiError(400, "unsupported_message", _NO_AUDIO, param="messages")
        else:
            return None
    is_read = all(isinstance(item, str) and item for item in (*texts, *urls))
    return (texts, urls) if is_read else None


def _prompt(texts: Sequence[str], reading: Reading, *, has_image: bool) -> str:
    texts = [text.strip() for text in texts if text.strip()]
    if reading.json_format is not None:
        texts = _without_instructions(texts) or texts
    if len(texts) > 1 and len(tasks := [text for text in texts if _parse(text) is not None]) == 1:
        texts = tasks
        reading.notes.append(f"Only the prompt {tasks[0]!r} was answered, not the other texts.")
    if not texts and has_image:
        texts = ["caption en"]
        reading.notes.append("There is no text with the image. It was read as 'caption en'.")
    prompt = " ".join(texts)
    for word in CONTROL_WORDS:
        if word in prompt:
            prompt = " ".join(part for text in prompt.split(word) if (part := text.strip()))
            reading.notes.append(f"{word} in the prompt was left out: it is added by itself.")
    return prompt


def _without_instructions(texts: Sequence[str]) -> list[str]:
    """The texts without JSON, and without the sentences about it."""
    sentences = [part for text in texts for part in _SENTENCE.split(without_json(text))]
    return [
        part for text in sentences if (part := text.strip("` ")) and not _JSON_WORDS.search(part)
    ]


# Prompts


def read_prompt(prompt: str, prefix: str) -> tuple[Task[Any] | str, tuple[str, ...]]:
    """The task that a prompt asks for, or the prompt to send; and notes on how it was understood.

    `prefix` is what a plain question begins with, such as "answer en"; "" sends it unchanged.

    >>> read_prompt("Detect cat, dog", "")[0].prompt()
    'detect cat ; dog'
    >>> read_prompt("How many cats are there?", "answer en")[0].prompt()
    'answer en How many cats are there?'
    """
    word, _, rest = " ".join(prompt.split()).partition(" ")
    word = word.lower()
    if word in ("detect", "segment") and rest and not _LOCATION.search(rest):
        phrases, notes = read_phrases(prompt.strip()[len(word) :].strip())
        kind = DetectTask if word == "detect" else SegmentTask
        return kind(phrases=phrases), notes
    if (task := _parse(prompt)) is not None:
        return task, ()
    short = f"{word} {rest.lower()}".strip()
    for plain in (f"{word} {rest}", short, f"{word} en"):
        if word in ("caption", "cap", "describe", "ocr", "answer", "question"):
            task = _parse(plain.strip()) if plain != f"{word} en" or not rest.strip() else None
            if task is not None:
                return task, (f"The prompt was read as {plain.strip()!r}.",)
    if not prefix or _LOCATION.search(prompt):
        return prompt, ()
    if (task := _plain_task(prompt)) is not None:
        return task, (f"The prompt was sent as {task.prompt()!r}, as the model was trained.",)
    asked = f"{prefix} {prompt}"
    note = f"The question was sent as {asked!r}, as the model was trained."
    return _parse(asked) or asked, (note,)


def _plain_task(prompt: str) -> Task[Any] | None:
    """The task that a plain request means; None for a question."""
    if _DESCRIBE.match(prompt):
        return CaptionTask()
    if _READ.match(prompt):
        return OcrTask()
    if (request := _FIND.match(" ".join(prompt.split()).rstrip(" .!?"))) is None:
        return None
    kind = SegmentTask if request[1].lower() == "segment" else DetectTask
    return kind(phrases=read_phrases(_AND.sub(" ; ", request["names"]))[0])


def _parse(prompt: str) -> Task[Any] | None:
    try:
        return parse_prompt(prompt)
    except (InputError, PromptError):
        return None
