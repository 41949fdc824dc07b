from __future__ import annotations

import pytest

from paligemma.answering import ANSWER_LENGTHS, kind_of_task
from paligemma.predictor import MAX_NEW_TOKENS
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.parse_prompt import kind_of_prompt
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask, CaptionTask, OcrTask


@pytest.mark.parametrize(
    "task",
    [
        CaptionTask(language="en"),
        CaptionTask(language="en", style="describe"),
        AnswerTask(question="how many", language="en"),
        OcrTask(),
        DetectTask.of("cat ; dog"),
        SegmentTask.of("cat"),
    ],
)
def test_a_prompt_is_of_its_tasks_kind(task: Task[object]) -> None:
    assert kind_of_prompt(task.prompt()) == kind_of_task(task)


def test_other_texts_keep_their_own_limits() -> None:
    assert ANSWER_LENGTHS["generate"] == 256
    assert ANSWER_LENGTHS["prompt"] == MAX_NEW_TOKENS == 128
