from __future__ import annotations

from pathlib import Path

import pytest

from paligemma.data.record import Record
from paligemma.evals.predictions import PredictOptions, _answer_limit, task_of
from paligemma.loading import load
from paligemma.predictor import MAX_NEW_TOKENS
from paligemma.tasks.answer import AnswerTask
from paligemma.tasks.answer_length import answer_length
from paligemma.tasks.caption import CaptionTask
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.ocr import OcrTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task


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
def test_evaluation_allows_what_the_predictor_allows(task: Task[object]) -> None:
    predictor = load("mini")
    record = Record(record_id="1", image=Path("a.png"), prefix=task.prompt())
    options = PredictOptions()
    limit = _answer_limit(predictor, record, task_of(record, options), options)
    assert limit == predictor.answer_limit(task)


def test_other_texts_keep_their_own_limits() -> None:
    assert answer_length("generate") == 256
    assert answer_length("prompt") == MAX_NEW_TOKENS == 128
