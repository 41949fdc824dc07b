"""Reply: what a contestant answered to one question, and what that took; as JSON in a journal."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, cast

from paligemma.data.record import Record
from paligemma.errors import InputError
from paligemma.evals.metrics.result import FoundObject
from paligemma.evals.options import TaskName
from paligemma.evals.predictions import OBJECT_TASKS, Prediction
from paligemma.tasks.answer_text import parse_text
from paligemma.tasks.parse_prompt import phrases_of_prompt

MAX_CHARACTERS = 20_000
_PER_THOUSAND = 1000


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer."""

    prediction: Prediction
    asked: str
    """The prompt as the model got it."""
    has_score: bool = True
    """Whether the model's own probability is known."""
    num_prompt_tokens: int | None = None
    num_bytes_sent: int | None = None
    num_attempts: int = 1

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"prediction": json.loads(self.prediction.to_line())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Reply:
        prediction = Prediction.from_line(json.dumps(values["prediction"]))
        return cls(**{**values, "prediction": prediction})


def failed_prediction(record: Record, task: TaskName, size_wh: tuple[int, int]) -> Prediction:
    """What is scored where there is no answer: an empty one, which is wrong."""
    return Prediction(
        record_id=record.record_id,
        task=task,
        prefix=record.prefix,
        text="",
        score=0.0,
        size_wh=size_wh,
        stop_reason="stop",
        is_valid=False,
    )


def prediction_of_text(
    record: Record,
    task: TaskName,
    size_wh: tuple[int, int],
    text: str,
    *,
    in_chat: bool = False,
    is_cut: bool = False,
    num_tokens: int | None = None,
) -> Prediction:
    """An answer that came as text: boxes as <loc> tokens, or, `in_chat`, as a list in JSON.

    Such boxes have no scores, and are ranked alike.
    """
    text = text.strip()
    text = text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "…"
    objects: tuple[FoundObject, ...] = ()
    problems: tuple[str, ...] = ()
    if task in OBJECT_TASKS:
        read = _boxes_of_json if in_chat else _boxes_of_tokens
        objects, problems = read(text, record.prefix, size_wh)
    return Prediction(
        record_id=record.record_id,
        task=task,
        prefix=record.prefix,
        text=text,
        score=1.0,
        size_wh=size_wh,
        stop_reason="length" if is_cut else "eos",
        objects=objects,
        problems=problems,
        is_valid=bool(objects),
        num_tokens=num_tokens,
    )


def _boxes_of_tokens(
    text: str, prefix: str, size_wh: tuple[int, int]
) -> tuple[tuple[FoundObject, ...], tuple[str, ...]]:
    try:
        found = parse_text(text, size_wh, phrases=phrases_of_prompt(prefix))
    except InputError as error:
        return (), (str(error),)
    objects = tuple(
        FoundObject(label=item.label, box_xyxy=item.box_xyxy, score=1.0) for item in found
    )
    return objects, (*(str(problem) for problem in found.problems), *found.notes)


def _boxes_of_json(
    text: str, prefix: str, size_wh: tuple[int, int]
) -> tuple[tuple[FoundObject, ...], tuple[str, ...]]:
    """[{"label": ..., "box": [x1, y1, x2, y2]}, ...] in thousandths of the image."""
    match = re.search(r"\[.*\]", text, re.DOTALL)
    if match is None:
        is_none = not text or "none" in text.lower()
        return (), () if is_none else ("The answer is not a list of boxes in JSON.",)
    try:
        items = json.loads(match[0])
    except (ValueError, RecursionError):
        return (), ("The answer is not a list of boxes in JSON.",)
    objects, problems = [], []
    width, height = size_wh
    for item in items:
        try:
            x1, y1, x2, y2 = (min(max(float(v) / _PER_THOUSAND, 0.0), 1.0) for v in item["box"])
            label = item["label"]
            if not isinstance(label, str) or not (x1 < x2 and y1 < y2):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            problems.append(f"{json.dumps(item)[:80]} is not a box with a label.")
            continue
        box = (x1 * width, y1 * height, x2 * width, y2 * height)
        objects.append(FoundObject(label=label.strip(), box_xyxy=box, score=1.0))
    return tuple(objects), tuple(problems)


def objects_of_values(items: Any) -> tuple[FoundObject, ...]:
    """Recorded objects: label, box_xyxy in pixels, score. Raises ValueError for anything else."""
    objects = []
    if not isinstance(items, list):
        raise ValueError("objects must be a list")
    for item in items:
        try:
            x1, y1, x2, y2 = (float(edge) for edge in item["box_xyxy"])
            score = 1.0 if item.get("score") is None else float(item["score"])
            label = cast("str", item["label"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError("an object needs label, box_xyxy and perhaps score") from error
        has_area = -math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf
        if not isinstance(label, str) or not has_area:
            raise ValueError("an object needs a label and a box with an area")
        if not 0 <= score <= 1:
            raise ValueError("the score of an object is a number from 0 to 1")
        objects.append(
            FoundObject(
                label=label,
                box_xyxy=(x1, y1, x2, y2),
                score=score,
                rle=item.get("rle") or item.get("mask"),
            )
        )
    return tuple(objects)
