"""What a service counts: numbers of this moment, totals, and one line for each job that ended.

Nothing here is made of what a client wrote, so that all of it may be a metric's label or stand in
a log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paligemma.answering import Usage
from paligemma.server.jobs import Job, ScoreJob
from paligemma.tasks.answer import AnswerTask, QuestionTask
from paligemma.tasks.caption import BoxCaptionTask, CaptionTask
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.ocr import OcrTask
from paligemma.tasks.segment import SegmentTask

State = Literal["loading", "ready", "draining", "dead"]
HowEnded = Literal["answered", "failed", "cancelled", "expired"]

TOTALS = (
    "accepted", "rejected", "answered", "failed", "cancelled", "expired",
    "prompt_tokens", "image_tokens", "completion_tokens",
)  # fmt: skip
"""The fields of `Stats` that only grow and that the service adds up itself."""

_KINDS: dict[type, str] = {
    CaptionTask: "caption",
    BoxCaptionTask: "box_caption",
    AnswerTask: "ask",
    QuestionTask: "question",
    OcrTask: "ocr",
    DetectTask: "detect",
    SegmentTask: "segment",
}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one job went, in seconds since it was accepted."""

    kind: str
    """"caption", "detect", "prompt", "score", ...: never anything that a client wrote."""
    outcome: HowEnded
    first_token_seconds: float | None
    seconds: float
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Numbers of this moment, and totals since the start."""

    state: State
    waiting: int
    """Accepted, without a token yet."""
    running: int
    max_running: int
    accepted: int
    rejected: int
    answered: int
    failed: int
    cancelled: int
    expired: int
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    steps: int
    image_cache_bytes: int
    image_cache_hits: int
    image_cache_misses: int
    prefix_cache_bytes: int
    prefix_cache_hits: int
    prefix_cache_misses: int
    heartbeat_age: float
    """Seconds since the engine's thread was last seen between two steps, if it has work."""


def kind_of(job: Job | ScoreJob) -> str:
    """A name of few, for counting: "caption", "detect", "prompt", "score"."""
    if isinstance(job, ScoreJob):
        return "score"
    if job.task is None:
        return "prompt"
    return "box_caption" if callable(job.task) else _KINDS.get(type(job.task), "task")
