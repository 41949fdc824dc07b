"""The bodies of OpenAI's dialect: what of it this family of models can do.

Known parameters that ask for something else are refused by name with a reason, unless their value
is the one that changes nothing; parameters that are about accounts are dropped. Everything else
unknown is refused as in the native dialect. Knows no model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from paligemma.server.errors import ApiError
from paligemma.server.schemas import (
    Body,
    ImageField,
    MaxTokens,
    ModelName,
    Seed,
    Stops,
    Temperature,
    Text,
    TopK,
    TopP,
)

_EXAMPLE_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGNgGAWj"
    "YBSMglEAAAKYAAGZ0CmAAAAAAElFTkSuQmCC"
)

_DROPPED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "user",
}

_NO_TOOLS = "These models call no tools and no functions."
_NO_SOUND = "These models read pictures and write text."
_NO_THOUGHT = "These models answer at once, without a text of thoughts."
_NO_BIAS = "Tokens cannot be favored. Set temperature, top_k or top_p."
_UNSUPPORTED: dict[str, tuple[tuple[object, ...], str]] = {
    "audio": ((), _NO_SOUND),
    "best_of": ((1,), "Answers are not searched for by sampling many. Set n."),
    "echo": ((False,), "Answers do not repeat the prompt."),
    "frequency_penalty": ((0, 0.0), _NO_BIAS),
    "function_call": (("none", "auto"), _NO_TOOLS),
    "functions": (([],), _NO_TOOLS),
    "logit_bias": (({},), _NO_BIAS),
    "modalities": ((["text"],), _NO_SOUND),
    "prediction": ((), "Answers cannot be given beforehand."),
    "presence_penalty": ((0, 0.0), _NO_BIAS),
    "reasoning_effort": (("none",), _NO_THOUGHT),
    "response_format": (
        ({"type": "text"},),
        "Answers are text. Typed results are in the field paligemma of each choice, and in the "
        "routes /v1/detect, /v1/segment and so on.",
    ),
    "store": ((False,), "This server keeps nothing."),
    "suffix": (("",), "These models write no text between two others."),
    "tool_choice": (("none", "auto"), _NO_TOOLS),
    "tools": (([],), _NO_TOOLS),
    "verbosity": ((), _NO_THOUGHT),
    "web_search_options": ((), "These models see the picture and nothing else."),
}
"""Parameter -> the values that change nothing, and why others are refused."""

_ONE_TURN = (
    "These models answer one prompt about one picture and know no conversation. Send one message "
    "of the role user, and in it one text and one picture."
)


def _refuse(message: str) -> PydanticCustomError:
    return PydanticCustomError("limit", "{message}", {"message": message})


class StreamOptions(Body):
    """What a stream holds beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    """Taken and dropped."""


class TextPart(Body):
    """A text of a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(Body):
    """A data URL; a web address where the server fetches pictures."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Taken and dropped: the checkpoint has one resolution."""


class ImagePart(Body):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class UserMessage(Body):
    """A picture and a prompt about it."""

    role: Literal["user"]
    content: Annotated[list[Part], Field(max_length=64)] | Text
    name: str | None = None


class OpenAiBody(Body):
    """What both routes take. None is as if a field were not there."""

    model: ModelName
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    """None is 0, the likeliest token: the way these models were meant to be used."""
    top_p: TopP | None = None
    top_k: TopK | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Stops | None = None
    seed: Seed | None = None
    """None is another one for each request."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _refuse("stream_options need stream: true.")
        return self

    @property
    def num_tokens(self) -> int | None:
        """The most tokens to write."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def has_usage(self) -> bool:
        """True when a stream is to end with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(OpenAiBody):
    """One prompt about one picture, as a message."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "mini",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": _EXAMPLE_PICTURE}},
                                {"type": "text", "text": "caption en"},
                            ],
                        }
                    ],
                }
            ]
        }
    )

    messages: Annotated[list[UserMessage], Field(min_length=1, max_length=1)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _check_message(self) -> Self:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise _refuse("max_tokens and max_completion_tokens differ: give one of them.")
        if self.top_logprobs is not None and not self.logprobs:
            raise _refuse("top_logprobs need logprobs: true.")
        content = self.messages[0].content
        if not isinstance(content, str):
            num_texts = sum(isinstance(part, TextPart) for part in content)
            if num_texts != 1:
                raise _refuse(f"The message has {num_texts} texts, and one is the prompt.")
        return self

    @property
    def num_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def prompt(self) -> str:
        """The message's text."""
        content = self.messages[0].content
        if isinstance(content, str):
            return content
        return next(part.text for part in content if isinstance(part, TextPart))

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the message's pictures are, in order."""
        content = self.messages[0].content
        if isinstance(content, str):
            return ()
        return tuple(part.image_url.url for part in content if isinstance(part, ImagePart))


class CompletionBody(OpenAiBody):
    """Prompts sent to the letter, all about one picture or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "mini", "prompt": "caption en", "image": _EXAMPLE_PICTURE}]
        }
    )

    prompt: Text | Annotated[list[Text], Field(min_length=1)]
    image: ImageField = None
    logprobs: Annotated[int, Field(ge=0)] | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Each of them."""
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)


def without_unsupported(document: object) -> object:
    """The body without what changes nothing here.

    Raises ApiError for what cannot be done, in words about the model and none of the request's.
    """
    if not isinstance(document, dict):
        return document
    kept: dict[str, Any] = {}
    for name, value in document.items():
        if name in _DROPPED:
            continue
        if name in _UNSUPPORTED:
            neutral, reason = _UNSUPPORTED[name]
            if value is not None and not any(_is_same(value, one) for one in neutral):
                raise ApiError(400, "unsupported_parameter", reason, param=name)
            continue
        kept[name] = value
    _check_turns(kept.get("messages"))
    if isinstance(prompt := kept.get("prompt"), list) and prompt and _holds_ids(prompt):
        raise ApiError(
            400, "unsupported_parameter", "Prompts are text here, not token ids.", param="prompt"
        )
    return kept


def _is_same(value: object, neutral: object) -> bool:
    # False is no 0 here, though Python says they are equal.
    return type(value) is type(neutral) and value == neutral


def _check_turns(messages: object) -> None:
    if not isinstance(messages, list):
        return
    roles = [message.get("role") for message in messages if isinstance(message, dict)]
    if "system" in roles or "developer" in roles:
        raise ApiError(
            400,
            "unsupported_message",
            "These models were trained without system messages and cannot follow them. Leave the "
            "message out.",
            param="messages",
        )
    if len(messages) > 1 or any(role in ("assistant", "tool", "function") for role in roles):
        raise ApiError(400, "unsupported_message", _ONE_TURN, param="messages")


def _holds_ids(prompt: list[object]) -> bool:
    return all(isinstance(item, int | list) and not isinstance(item, bool) for item in prompt)
