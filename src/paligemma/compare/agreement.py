"""How far contestants agree, which needs no true answers.

Similarity of two answers, 0 to 1: of texts 1 - normalized edit distance after `loose_answer`, which
is 1 for "Three." and "3"; of lists of objects the IoU of boxes of one label, matched one to one
as well as possible, in sum, divided by the longer list's length.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paligemma.compare.contest import Answers
from paligemma.data.overlap import box_iou
from paligemma.evals.metrics.result import FoundObject
from paligemma.evals.metrics.texts import loose_answer, normalized_edit_distance
from paligemma.evals.options import TaskName
from paligemma.evals.predictions import OBJECT_TASKS, Prediction


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of all pairs of contestants, on the questions of one task that both answered."""

    task: TaskName
    names: tuple[str, ...]
    similarity: tuple[tuple[float | None, ...], ...]
    """Mean similarity of each pair; None where they have no question in common, and of each with
    itself."""
    same: tuple[tuple[float | None, ...], ...]
    """Share of equal answers."""


@dataclass(frozen=True, kw_only=True)
class Majority:
    """The answer that most contestants gave to a question, if one has most."""

    text: str | None
    """As the first of them wrote it; None where two answers are equally frequent."""
    count: int
    of: int


def similarity(first: Prediction, second: Prediction) -> float:
    """0..1; 1 for the same answer."""
    if first.task in OBJECT_TASKS:
        return box_similarity(first.objects, second.objects)
    return 1.0 - normalized_edit_distance(loose_answer(first.text), loose_answer(second.text))


def box_similarity(first: Sequence[FoundObject], second: Sequence[FoundObject]) -> float:
    """The mean IoU of matched boxes, where what has no partner counts 0; 1 for two empty lists."""
    longer = max(len(first), len(second))
    if not longer:
        return 1.0
    total = 0.0
    for label in {found.label.casefold() for found in first}:
        boxes = [
            np.array(
                [f.box_xyxy for f in found if f.label.casefold() == label], dtype=np.float64
            ).reshape(-1, 4)
            for found in (first, second)
        ]
        overlaps = box_iou(*boxes)
        while overlaps.size and overlaps.max() > 0:  # the largest overlap first
            row, column = np.unravel_index(int(overlaps.argmax()), overlaps.shape)
            total += float(overlaps[row, column])
            overlaps = np.delete(np.delete(overlaps, row, axis=0), column, axis=1)
    return total / longer


def agreements(answers: Sequence[Answers], tasks: Sequence[TaskName]) -> tuple[Agreement, ...]:
    """One for each task."""
    found = []
    for task in tasks:
        values = {
            (a, b): _pairwise(answers[a], answers[b], task)
            for a, b in itertools.combinations(range(len(answers)), 2)
        }
        found.append(
            Agreement(
                task=task,
                names=tuple(each.contestant.name for each in answers),
                similarity=_matrix(len(answers), {k: _mean(v) for k, v in values.items()}),
                same=_matrix(
                    len(answers),
                    {k: _mean([float(x > 1 - 1e-9) for x in v]) for k, v in values.items()},
                ),
            )
        )
    return tuple(found)


def disagreement(replies: Sequence[Prediction | None]) -> float:
    """The mean of 1 - similarity over pairs of contestants; a missing answer is unlike all."""
    pairs = list(itertools.combinations(replies, 2))
    if not pairs:
        return 0.0
    distances = [
        float(a is not b) if a is None or b is None else 1.0 - similarity(a, b) for a, b in pairs
    ]
    return sum(distances) / len(distances)


def majority_of(predictions: Sequence[Prediction]) -> Majority | None:
    """Of texts; None for objects, and where nobody answered."""
    texts = [each.text for each in predictions if each.task not in OBJECT_TASKS]
    if not texts:
        return None
    counts = Counter(loose_answer(text) for text in texts)
    [(most, count), *others] = counts.most_common(2)
    is_tie = bool(others) and others[0][1] == count
    shown = next(text for text in texts if loose_answer(text) == most)
    return Majority(text=None if is_tie else shown, count=count, of=len(texts))


def _pairwise(first: Answers, second: Answers, task: TaskName) -> list[float]:
    values = []
    for record_id, reply in first.replies.items():
        other = second.replies.get(record_id)
        if other is not None and reply.prediction.task == other.prediction.task == task:
            values.append(similarity(reply.prediction, other.prediction))
    return values


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _matrix(
    size: int, values: Mapping[tuple[int, int], float | None]
) -> tuple[tuple[float | None, ...], ...]:
    return tuple(
        tuple(None if a == b else values[min(a, b), max(a, b)] for b in range(size))
        for a in range(size)
    )
