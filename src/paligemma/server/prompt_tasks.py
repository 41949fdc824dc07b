"""A prompt in words -> the task that it belongs to, for dialects in which all there is is a text.

Knows the prompts of tasks; knows no pictures and no HTTP.
"""

from __future__ import annotations

from typing import Any

from paligemma.errors import InputError
from paligemma.tasks.answer import AnswerTask, QuestionTask
from paligemma.tasks.caption import CaptionTask
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.ocr import OcrTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task

_PLACES = ("<loc", "<seg")


def task_of(prompt: str) -> Task[Any] | None:
    """The task whose prompt this is; None where the text is no known task's.

    The task's own prompt is the text to the letter. Only lists of things to find are tidied, as
    `DetectTask.of` does it: white space and names given twice. Raises PromptError where nothing
    to find is named.

    >>> task_of("answer en how many cats?")
    AnswerTask(question='how many cats?', language='en')
    >>> task_of("detect cat;dog").prompt()
    'detect cat ; dog'
    >>> task_of("Write me a poem.") is None
    True
    """
    word, _, rest = prompt.partition(" ")
    if word in ("detect", "segment") and rest:
        # With places in it, it is the prompt of another task, of a model tuned for that.
        if any(place in rest for place in _PLACES):
            return None
        return DetectTask.of(rest) if word == "detect" else SegmentTask.of(rest)
    try:
        task = _text_task(word, rest)
    except InputError:
        return None
    return task if task is not None and task.prompt() == prompt else None


def _text_task(word: str, rest: str) -> Task[Any] | None:
    """Raises InputError for what is no language, or no question."""
    language, _, text = rest.partition(" ")
    match word:
        case "caption" | "cap" | "describe":
            return CaptionTask(language=rest, style=word)
        case "answer":
            return AnswerTask(question=text, language=language)
        case "question":
            return QuestionTask(answer=text, language=language)
        case "ocr":
            return OcrTask()
    return None
