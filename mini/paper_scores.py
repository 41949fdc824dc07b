"""How well a model reads papers: fields by question, lines, and places of values."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from PIL import Image

from mini.paper import PAPER_KINDS, Paper, make_paper
from mini.paper_examples import UNANSWERABLE, paper_questions
from mini.scene import RESOLUTION
from paligemma.data.overlap import iou_of_boxes
from paligemma.predictor import Predictor
from paligemma.processor.image import LoadedImage
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask, OcrTask

_MAX_TOKENS = 112


def scores_of_papers(
    predictor: Predictor, papers: int, seed: int, constrained: bool
) -> dict[str, float | None]:
    """Shares of what is right, over the first papers of a seed, of each kind in turn."""
    right: dict[str, list[bool]] = defaultdict(list)
    for index in range(papers):
        paper = make_paper("test", seed, index, PAPER_KINDS[index % len(PAPER_KINDS)])
        _read(predictor, paper, f"paper {index}", right, constrained)
    names = ("paper_fields", "paper_absent", "paper_lines", "paper_places")
    return {name: round(float(np.mean(right[name])), 4) if right[name] else None for name in names}


def _read(
    predictor: Predictor, paper: Paper, name: str, right: dict[str, list[bool]], constrained: bool
) -> None:
    image = LoadedImage(rgb=Image.fromarray(paper.draw(RESOLUTION)), name=name)
    questions = paper_questions(paper)
    values = [field.value for field in paper.fields]
    fields = [field for field in paper.fields if values.count(field.value) == 1]
    tasks: list[Task[Any]] = [
        AnswerTask(question=question.wordings[0], language="en") for question in questions
    ]
    tasks += [DetectTask.of([field.value]) for field in fields]
    tasks.append(OcrTask())
    answers = list(
        predictor.run(
            [(image, task) for task in tasks], max_new_tokens=_MAX_TOKENS, constrained=constrained
        )
    )
    for question, answer in zip(questions, answers, strict=False):
        is_absent = question.answer == UNANSWERABLE
        share = "paper_absent" if is_absent else "paper_fields"
        right[share].append(answer.text == question.answer)
    for field, found in zip(fields, answers[len(questions) :], strict=False):
        x0, y0, x1, y1 = (edge * RESOLUTION for edge in field.box_xyxy)
        ious = [iou_of_boxes(thing.box_xyxy, (x0, y0, x1, y1)) for thing in found]
        right["paper_places"].append(max(ious, default=0.0) >= 0.5)
    lines = answers[-1].text.split("\n")
    right["paper_lines"] += [line in lines for line in paper.text.split("\n")]
