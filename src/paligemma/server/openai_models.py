"""The bodies of requests and answers in OpenAI's dialect, as far as these models support it.

`openai_reading.py` first leaves out what else clients send.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from paligemma.server.requests import (
    EXAMPLE_IMAGE,
    ImageField,
    MaxNewTokens,
    ModelName,
    RequestModel,
    Seed,
    Stops,
    Temperature,
    Text,
    TopK,
    TopP,
    limit_error,
)
from paligemma.server.responses import AnyResult, ResponseModel


class StreamOptions(RequestModel):
    """What a stream contains in addition to the answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None  # accepted and ignored


class TextPart(RequestModel):
    """A text in a message."""

    type: Literal["text"]
    text: Text


class ImageUrlPart(RequestModel):
    """A data URL, or a web address if the server fetches images."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Accepted and ignored: the checkpoint has one resolution."""


class ImagePart(RequestModel):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrlPart


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class UserMessage(RequestModel):
    """An image and a prompt about it."""

    role: Literal["user"]
    content: Annotated[list[Part], Field(max_length=64)] | Text
    name: str | None = None


class OpenAiRequest(RequestModel):
    """What both routes accept. None is the same as leaving the field out."""

    model: ModelName
    max_tokens: MaxNewTokens | None = None
    temperature: Temperature | None = None
    """None is 0: always the most likely token, as these models are meant to be used."""
    top_p: TopP | None = None
    top_k: TopK | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Stops | None = None
    seed: Seed | None = None  # None is a random seed for each request
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise limit_error("stream_options needs stream: true.")
        return self

    @property
    def num_tokens(self) -> int | None:
        """The maximum number of new tokens."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def has_usage(self) -> bool:
        """True when a stream should end with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


def _describe_chat(schema: dict[str, Any]) -> None:
    """OpenAPI describes what clients may send, of which `openai_reading.py` leaves this model."""
    user = {"$ref": "#/components/schemas/UserMessage"}
    other = {"type": "object", "properties": {"role": {"type": "string"}}, "required": ["role"]}
    schema["additionalProperties"] = True
    schema["properties"]["messages"] = {
        "type": "array",
        "items": {"anyOf": [user, other]},
        "contains": user,
        "minItems": 1,
        "description": "The last message of the user is answered.",
    }
    content = [
        {"type": "image_url", "image_url": {"url": EXAMPLE_IMAGE}},
        {"type": "text", "text": "caption en"},
    ]
    schema["examples"] = [{"model": "mini", "messages": [{"role": "user", "content": content}]}]


class ChatRequest(OpenAiRequest):
    """One prompt about one image, as a message."""

    model_config = ConfigDict(json_schema_extra=_describe_chat)

    messages: Annotated[list[UserMessage], Field(min_length=1, max_length=1)]
    max_completion_tokens: MaxNewTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _check_message(self) -> Self:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise limit_error("max_tokens and max_completion_tokens differ: give only one of them.")
        if self.top_logprobs is not None and not self.logprobs:
            raise limit_error("top_logprobs needs logprobs: true.")
        content = self.messages[0].content
        if not isinstance(content, str):
            num_texts = sum(isinstance(part, TextPart) for part in content)
            if num_texts != 1:
                raise limit_error(f"The message has {num_texts} texts instead of one, the prompt.")
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
        """The URLs of the message's images, in order."""
        content = self.messages[0].content
        if isinstance(content, str):
            return ()
        return tuple(part.image_url.url for part in content if isinstance(part, ImagePart))


class CompletionRequest(OpenAiRequest):
    """Prompts used verbatim, all about one image or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "mini", "prompt": "caption en", "image": EXAMPLE_IMAGE}]
        }
    )

    prompt: Text | Annotated[list[Text], Field(min_length=1)]
    image: ImageField = None
    logprobs: Annotated[int, Field(ge=0)] | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts as a tuple."""
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)


# Answers

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(ResponseModel):
    """Which of the prompt's tokens are image tokens."""

    image_tokens: int


class CompletionUsage(ResponseModel):
    """The tokens that were read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenLogprob(ResponseModel):
    """A token's text, log-probability and bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TokenLogprob):
    """A generated token with its most likely alternatives."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(ResponseModel):
    """The log-probabilities of a message or of a part of it."""

    content: list[ContentLogprob]
    refusal: None


class ToolFunction(ResponseModel):
    """The function of a tool call."""

    name: str
    arguments: str


class ToolCall(ResponseModel):
    """The arguments of a tool that had to be called."""

    id: str
    type: Literal["function"]
    function: ToolFunction


class ToolCallDelta(ToolCall):
    """A tool call in a stream, in one piece."""

    index: int


class ChatMessage(ResponseModel):
    """The generated message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatDelta(ResponseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChoice(ResponseModel):
    """One generated message, with the typed result in `paligemma`."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    paligemma: AnyResult


class ChatChunkChoice(ResponseModel):
    """What a chunk adds to one message. The last chunk has `finish_reason` and `paligemma`."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    paligemma: AnyResult | None = None


class CompletionLogprobs(ResponseModel):
    """The log-probabilities of a text or of a part of it: one entry per token in each list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One generated text, with the typed result in `paligemma`."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    paligemma: AnyResult


class CompletionChunkChoice(ResponseModel):
    """What a chunk adds to one text. The last chunk has `finish_reason` and `paligemma`."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    paligemma: AnyResult | None = None


class RequestNotes(ResponseModel):
    """How the request was understood."""

    ignored: list[str]
    """Parameters that were left out, because these models do not have them."""
    notes: list[str]
    """What else was changed."""


class OpenAiResponse(ResponseModel):
    """What all answers and chunks have in common."""

    id: str
    created: int
    model: str
    paligemma: RequestNotes | None = None  # in a stream, with the last chunk of each answer


class ChatCompletion(OpenAiResponse):
    """The answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatCompletionChunk(OpenAiResponse):
    """An event of a streamed /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: CompletionUsage | None = None


class Completion(OpenAiResponse):
    """The answer of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: CompletionUsage


class CompletionChunk(OpenAiResponse):
    """An event of a streamed /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: CompletionUsage | None = None


class ModelEntry(ResponseModel):
    """The served model, or an adapter of it, whose `parent` is the model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    note: str | None = None
    license: str | None = None
    license_url: str | None = None
    languages: list[str] | None = None
    family: str | None = None
    parameters: Any = None
    resolution: int | None = None
    image_tokens: int | None = None
    dtype: str | None = None
    quantization: str | None = None


class ModelList(ResponseModel):
    """All served models."""

    object: Literal["list"]
    data: list[ModelEntry]
