"""The body of a request about a video and of its answer, as models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from paligemma.server.requests import Language, MaxNewTokens, ModelName, RequestModel, Text
from paligemma.server.responses import ResponseModel, TaskResponse, UsageResponse

EXAMPLE_VIDEO = "data:video/mp4;base64,AAAAIGZ0eXBpc29t..."
MAX_FRAMES = 64
"""Frames by which one window is judged."""

Seconds = Annotated[float, Field(ge=0, le=1e6)]


class VideoRequest(RequestModel):
    """Caption a video or answer a question about it, with the times at which it holds."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"video": EXAMPLE_VIDEO, "every": 5}]}
    )

    video: Annotated[
        str | None,
        Field(
            description="The file as base64 or as a data URL. In a form: the file field `video`.",
            examples=[EXAMPLE_VIDEO],
        ),
    ] = None
    model: ModelName | None = None
    question: Annotated[Text | None, Field(description="Left out: captions.")] = None
    language: Annotated[
        Language | Literal[""], Field(description='"" leaves it out of the prompt of a question.')
    ] = "en"
    every: Annotated[
        float | None,
        Field(gt=0, le=1e6, description="A result for every so many seconds. Default: one result."),
    ] = None
    start_s: Seconds = 0.0
    end_s: Annotated[float | None, Field(gt=0, le=1e6, description="Default: the end.")] = None
    frames: Annotated[
        int | None,
        Field(ge=1, le=MAX_FRAMES, description="Per result. Default: 16, or 1 with `every`."),
    ] = None
    pick: Annotated[
        Literal["middle", "sharpest"],
        Field(description="Which frame to take of each part of a window."),
    ] = "middle"
    max_new_tokens: Annotated[MaxNewTokens | None, Field(description="Of one frame.")] = None
    stream: Annotated[
        bool, Field(description="Send events: `segment` for each, then `result`.")
    ] = False


class FrameTimeResult(ResponseModel):
    """A frame that the model was shown."""

    index: int
    time_s: float


class SegmentResult(ResponseModel):
    """A caption of, or an answer about, a part of the video."""

    start_s: float
    end_s: float
    text: str
    score: float
    frames: list[FrameTimeResult]
    question: str | None = None
    notes: list[str] | None = None


class VideoResult(ResponseModel):
    """What was found, in order of time; neighbors that say the same are joined."""

    width: int
    height: int
    """Of the upright frames, in pixels."""
    duration_s: float
    stream: str
    """Which of the file's video streams was read."""
    segments: list[SegmentResult]
    problems: list[str]
    """What was wrong with the file, such as that it ends early."""


class VideoResponse(TaskResponse):
    """The answer of /v1/video."""

    result: VideoResult
    usage: UsageResponse
