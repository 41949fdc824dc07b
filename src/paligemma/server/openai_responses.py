"""The JSON bodies of answers in OpenAI's dialect, as models."""

from __future__ import annotations

from typing import Any, Literal

from paligemma.server.responses import AnyResult, ResponseModel

FinishReason = Literal["stop", "length"]


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


class ChatMessage(ResponseModel):
    """The generated message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatDelta(ResponseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


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


class OpenAiResponse(ResponseModel):
    """What all answers and chunks have in common."""

    id: str
    created: int
    model: str


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
