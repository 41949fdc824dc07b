"""How many new tokens an answer may take when the caller does not say.

One table for the predictor, the server, evaluation and validation, so that a score measured by
`paligemma eval` is the score of what `Predictor.detect` and its siblings do.
"""

from __future__ import annotations

from typing import Any, Literal

from paligemma.tasks.answer import AnswerTask, QuestionTask
from paligemma.tasks.caption import BoxCaptionTask, CaptionTask
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.ocr import OcrTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task

AnswerKind = Literal[
    "caption", "describe", "answer", "ocr", "detect", "segment", "read_text", "generate", "prompt"
]
"""generate: any other text that evaluation asks for. prompt: a prompt of the caller's own."""

# What an answer usually needs, and some more: a trained model ends earlier by itself. An object
# takes about 9 tokens in a list of boxes and 25 in a list of masks.
ANSWER_LENGTHS: dict[AnswerKind, int] = {
    "caption": 64,
    "describe": 192,
    "answer": 48,
    "ocr": 256,
    "detect": 512,
    "segment": 512,
    "read_text": 1024,
    "generate": 256,
    "prompt": 128,
}

_KINDS: dict[type, AnswerKind] = {
    CaptionTask: "caption",
    BoxCaptionTask: "caption",
    AnswerTask: "answer",
    QuestionTask: "answer",
    OcrTask: "ocr",
    DetectTask: "detect",
    SegmentTask: "segment",
}


def answer_length(kind: AnswerKind, text_length: int | None = None) -> int:
    """The default limit, at most the text length the model was trained with, where it is known.

    >>> answer_length("describe"), answer_length("describe", text_length=128)
    (192, 128)
    """
    limit = ANSWER_LENGTHS[kind]
    return limit if text_length is None else min(limit, text_length)


def kind_of_task(task: Task[Any]) -> AnswerKind:
    """Which row of the table a task takes."""
    if isinstance(task, CaptionTask) and task.style == "describe":
        return "describe"
    return _KINDS.get(type(task), "prompt")
