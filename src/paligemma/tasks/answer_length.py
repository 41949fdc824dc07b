"""How many new tokens an answer may take when the caller does not say.

One table for the predictor, the server, evaluation and validation, so that a score measured by
`paligemma eval` is the score of what `Predictor.detect` and its siblings do.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from paligemma.tasks.answer import AnswerTask, QuestionTask
from paligemma.tasks.caption import BoxCaptionTask, CaptionTask
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.object_grammar import ObjectList
from paligemma.tasks.ocr import OcrTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task

AnswerKind = Literal[
    "caption", "describe", "answer", "ocr", "detect", "segment", "read_text", "generate", "prompt"
]
"""generate: any other text that evaluation asks for. prompt: a prompt of the caller's own."""

# What an answer usually needs, and some more: a trained model ends earlier by itself. An object
# takes about 9 tokens in a list of boxes and 25 in a list of masks, and a list may have 100.
ANSWER_LENGTHS: dict[AnswerKind, int] = {
    "caption": 64,
    "describe": 192,
    "answer": 48,
    "ocr": 256,
    "detect": 900,
    "segment": 2500,
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


def answer_length(
    task: Task[Any], text_length: int | None = None, grammar: ObjectList | None = None
) -> int:
    """The default limit on new tokens.

    A list that is held to a grammar has room for `max_objects`. No answer is longer than the text
    length that the model was trained with, where that is known.

    >>> task = CaptionTask(style="describe")
    >>> answer_length(task), answer_length(task, text_length=128)
    (192, 128)
    """
    limit = ANSWER_LENGTHS[kind_of_task(task)] if grammar is None else grammar.usual_length
    return limit if text_length is None else min(limit, text_length)


@runtime_checkable
class KindTask(Protocol):
    """A task that says itself which row of the table it takes."""

    @property
    def answer_kind(self) -> AnswerKind: ...


def kind_of_task(task: Task[Any]) -> AnswerKind:
    """Which row of the table a task takes."""
    if isinstance(task, KindTask):
        return task.answer_kind
    if isinstance(task, CaptionTask) and task.style == "describe":
        return "describe"
    return _KINDS.get(type(task), "prompt")
