"""The JSON bodies of answers, as models: what is sent, and what /openapi.json says about it.

A body is built from one of these models and written with `to_json`, which leaves out the fields
that were not given. Models of results have the fields of the classes in `paligemma.results`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.responses import Response

from paligemma.results import (
    Answer,
    Caption,
    Detection,
    Detections,
    Generation,
    Result,
    Score,
    Segment,
    Segments,
    StopReason,
    Text,
)
from paligemma.server.settings import Limits
from paligemma.server.strict_json import write_json


class ResponseModel(BaseModel):
    """A JSON object in an answer. Clients should ignore fields that they do not expect."""

    model_config = ConfigDict(frozen=True)

    def to_json(self) -> bytes:
        """UTF-8 JSON on one line, without the fields that were not given."""
        return write_json(self.model_dump(exclude_unset=True, by_alias=True))


# Errors


class ErrorDetail(ResponseModel):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None  # the field of the request that caused it


class ErrorResponse(ResponseModel):
    """The body of every failed request."""

    error: ErrorDetail


# Results

Logprob = float | None
"""Natural logarithm; None where it is not finite."""
Box = Annotated[list[float], Field(min_length=4, max_length=4, description="[x1, y1, x2, y2]")]
Size = Annotated[list[int], Field(min_length=2, max_length=2)]


class DetectionResult(ResponseModel):
    """A labeled box."""

    label: str
    box_xyxy: Box  # in pixels of the image
    box_normalized_xyxy: Box  # as fractions of the image's width and height
    score: float
    """The probability that the object is right: the product of the next three."""
    existence_score: float
    label_score: float
    coordinate_score: float
    unsure: bool
    """Whether the object is more likely wrong than right: a score below 0.5."""


class GenerationResult(ResponseModel):
    """The text that the model generated for a prompt."""

    text: str
    token_ids: list[int]
    logprobs: list[Logprob]
    stop_reason: StopReason
    notes: list[str]
    """What to know about the prompt, such as that it is not quite the one of a task."""
    objects: list[DetectionResult] = []
    """The boxes in the text; left out where it has none."""


class TextResult(GenerationResult):
    """Text for a task, such as the text in an image, with its score."""

    score: float


class CaptionResult(TextResult):
    """A description of the image."""

    language: str | None


class AnswerResult(TextResult):
    """The answer to a question about the image."""

    question: str


class ScoreResult(ResponseModel):
    """The log-probability of a given text, in total and per token."""

    token_ids: list[int]
    logprobs: list[Logprob]
    total: Logprob


class ProblemResult(ResponseModel):
    """A part of the generated text that is not a usable object and was left out."""

    kind: Literal["malformed", "cut", "repeated"]
    detail: str
    token_span: Size


class Mask(ResponseModel):
    """A mask in COCO's compressed run-length encoding."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="[height, width]")]
    counts: str


class SegmentResult(DetectionResult):
    """A labeled box with the mask of the object in it."""

    mask: Mask
    mask_score: float


class ObjectsResult(ResponseModel):
    """What is common to lists of boxes and lists of masks."""

    prompt: str
    phrases: list[str]
    problems: list[ProblemResult]
    size_wh: Size
    stop_reason: StopReason
    text: str
    missing: list[str]
    """The phrases for which no object was found."""
    not_reached: list[str]
    """The phrases without an object in a list that ended at a limit."""
    filtered: list[str]
    """The phrases whose objects all have a lower score than the minimum."""
    notes: list[str]
    """How the question was understood, where it was not taken word by word."""


class DetectionsResult(ObjectsResult):
    """The boxes found in an image."""

    objects: list[DetectionResult]


class SegmentsResult(ObjectsResult):
    """The masks found in an image."""

    objects: list[SegmentResult]


AnyResult = (
    SegmentsResult
    | DetectionsResult
    | CaptionResult
    | AnswerResult
    | TextResult
    | GenerationResult
    | ScoreResult
)
"""The most specific first, because some clients use the first match."""

_MODELS: dict[type[Result], type[ResponseModel]] = {
    Generation: GenerationResult,
    Text: TextResult,
    Caption: CaptionResult,
    Answer: AnswerResult,
    Score: ScoreResult,
    Detection: DetectionResult,
    Segment: SegmentResult,
    Detections: DetectionsResult,
    Segments: SegmentsResult,
}


def result_model(result: Result) -> Any:
    """The model of a result. Encoding masks takes time: call it in a thread."""
    return _MODELS[type(result)].model_validate(result.to_dict())


# Task routes


class UsageResponse(ResponseModel):
    """The tokens that were read and generated."""

    prompt_tokens: int  # image tokens included
    completion_tokens: int
    image_tokens: int


class TaskResponse(ResponseModel):
    """What the answers of all task routes begin with. Each ends with its `usage`."""

    id: str
    model: str


class CaptionResponse(TaskResponse):
    """The answer of /v1/caption."""

    result: CaptionResult
    usage: UsageResponse


class AskResponse(TaskResponse):
    """The answer of /v1/ask: `result` for `question`, `results` for `questions`."""

    result: AnswerResult | None = None
    results: list[AnswerResult] | None = None
    usage: UsageResponse


class OcrResponse(TaskResponse):
    """The answer of /v1/ocr."""

    result: TextResult
    usage: UsageResponse


class DetectResponse(TaskResponse):
    """The answer of /v1/detect."""

    result: DetectionsResult
    usage: UsageResponse


class SegmentResponse(TaskResponse):
    """The answer of /v1/segment."""

    result: SegmentsResult
    usage: UsageResponse


class GenerateResponse(TaskResponse):
    """The answer of /v1/generate."""

    result: GenerationResult
    usage: UsageResponse


class ScoreResponse(TaskResponse):
    """The answer of /v1/score: `result` for `suffix`, `results` for `suffixes`."""

    result: ScoreResult | None = None
    results: list[ScoreResult] | None = None
    usage: UsageResponse


class BatchLine(ResponseModel):
    """One line of the answer of /v1/batch: the fields of a task's answer, or `error`."""

    id: str | None  # None where the line has no usable id
    status: int
    line: int | None = None
    """The number of a line that could not be read, or whose id is that of an earlier line."""
    model: str | None = None
    result: AnyResult | None = None
    results: list[AnyResult] | None = None
    usage: UsageResponse | None = None
    error: ErrorDetail | None = None


# Events of a stream


class TokenEvent(ResponseModel):
    """The event `token`: text that was added to the answer."""

    text: str
    index: int | None = None  # the number of the question from 0, if there are several


class ObjectEvent(DetectionResult):
    """The event `object` of /v1/detect: a box that is complete."""

    index: int | None = None


class SegmentEvent(SegmentResult):
    """The event `object` of /v1/segment: a mask that is complete."""

    index: int | None = None


def object_event(detection: Detection, index: Mapping[str, int]) -> ObjectEvent | SegmentEvent:
    """The event for one object. Encoding a mask takes time: call it in a thread."""
    model = SegmentEvent if isinstance(detection, Segment) else ObjectEvent
    return model.model_validate({**detection.to_dict(), **index})


# Server state


class LiveResponse(ResponseModel):
    """Whether the process should be kept."""

    status: Literal["live", "dead"]


class ReadyResponse(ResponseModel):
    """Whether the server takes requests."""

    status: Literal["loading", "ready", "draining", "dead"]


LimitsResponse: type[ResponseModel] = create_model(
    "LimitsResponse",
    __base__=ResponseModel,
    __doc__="What the server accepts; see docs/server.md.",
    **{
        name: (int if isinstance(value, int) else float, ...)
        for name, value in Limits().to_dict().items()
    },  # type: ignore[call-overload]
    image_formats=(list[str], ...),
    fetches_images=(bool, ...),
    reads_videos=(bool, ...),
)


_ERROR_DESCRIPTIONS = {
    400: "Invalid request.",
    401: "Missing or invalid API key.",
    403: "Request from a page of another site.",
    404: "Unknown model.",
    408: "The body arrived too slowly.",
    413: "The body is too large.",
    415: "Unsupported content type or encoding.",
    421: "Unknown Host header.",
    429: "Too many requests.",
    431: "The headers are too large.",
    500: "Internal error.",
    503: "Temporarily unavailable.",
    504: "Timed out.",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of these error statuses; of all of them without any."""
    return {
        status: {"description": _ERROR_DESCRIPTIONS[status], "model": ErrorResponse}
        for status in statuses or _ERROR_DESCRIPTIONS
    }


def json_response(
    body: ResponseModel, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An HTTP response with this body."""
    return Response(
        body.to_json(), status_code=status, media_type="application/json", headers=headers
    )
