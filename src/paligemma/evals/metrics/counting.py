"""Counts in words or digits, and points that should be on objects.

Counting: TallyQA (arXiv 1810.12440) and CountBench as PaliGemma was evaluated on them: equality
after number words have become digits. Pointing: a point inside an object is a hit (the pointing
game, Zhang et al. 2016, arXiv 1608.00507), with several points and objects matched one to one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from paligemma.evals.metrics.result import (
    MetricResult,
    Reads,
    References,
    check_lengths,
    mean_result,
    pair,
)

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Mask = npt.NDArray[np.bool_]

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS.split())} | {"none": "0"}
_LARGEST_TRACKED = 15  # as the published evaluations list them


@dataclass(frozen=True, kw_only=True)
class CountAccuracy:
    """1 where the count is right; "none" and the words zero to twenty count as digits.

    The whole answer must be the count: nothing else is normalized, not even spaces. `details`:
    `count_N` is the accuracy where the truth is N (0 to 15); `mean_absolute_error` is over the
    answers that are whole numbers, `not_a_number` the fraction of those that are not.
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """References: exactly one per example."""
        scores: list[float] = []
        by_count: dict[int, list[float]] = defaultdict(list)
        errors, unread = [], 0
        for prediction, (reference,) in pair(predictions, references, single=True):
            answer, true_answer = _digits(prediction), _digits(reference)
            scores.append(float(answer == true_answer))
            count, true = _whole_number(answer), _whole_number(true_answer)
            if true is not None and true <= _LARGEST_TRACKED:
                by_count[true].append(scores[-1])
            unread += count is None
            if count is not None and true is not None:
                errors.append(abs(count - true))
        details = {
            f"count_{n}": math.fsum(hits) / len(hits) for n, hits in sorted(by_count.items())
        }
        details["not_a_number"] = unread / len(scores)
        details["mean_absolute_error"] = sum(errors) / len(errors) if errors else math.nan
        return mean_result("count_accuracy", scores, details)


@dataclass(frozen=True, kw_only=True)
class PointingAccuracy:
    """F1 of the points of each image: a point and an object that it is on, matched one to one.

    With one point and one object that is 1 for a hit and 0 for a miss. Objects are boxes
    (x1, y1, x2, y2 in pixels, edges included) or masks bool[H, W], points (x, y) in pixels; a
    image without objects scores 1 if there is no point. `details`: precision and recall over all
    points and objects, and `all_right`, the fraction of images without an error.
    """

    reads: ClassVar[Reads] = "points"

    def score(
        self, points: Sequence[Sequence[Point]], objects: Sequence[Sequence[Box | Mask]]
    ) -> MetricResult:
        check_lengths(len(points), len(objects))
        scores, hits, num_points, num_objects = [], 0, 0, 0
        for found, true in zip(points, objects, strict=True):
            matched = _largest_matching(
                [[i for i, thing in enumerate(true) if _is_on(point, thing)] for point in found]
            )
            total = len(found) + len(true)
            scores.append(2 * matched / total if total else 1.0)
            hits += matched
            num_points += len(found)
            num_objects += len(true)
        details = {
            "precision": hits / num_points if num_points else 1.0,
            "recall": hits / num_objects if num_objects else 1.0,
            "all_right": sum(score == 1.0 for score in scores) / len(scores),
        }
        return mean_result("pointing_f1", scores, details)


def _digits(answer: str) -> str:
    return _NUMBERS.get(answer.lower(), answer)


def _whole_number(text: str) -> int | None:
    # Short enough for a count; int() would also take "1_000" and digits of other scripts.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _is_on(point: Point, thing: Box | Mask) -> bool:
    x, y = point
    if isinstance(thing, np.ndarray):
        row, column = math.floor(y), math.floor(x)
        inside = 0 <= row < thing.shape[0] and 0 <= column < thing.shape[1]
        return inside and bool(thing[row, column])
    x1, y1, x2, y2 = thing
    return x1 <= x <= x2 and y1 <= y <= y2


def _largest_matching(candidates: list[list[int]]) -> int:
    """The size of a maximum matching of points and objects (augmenting paths, Kuhn 1955)."""
    owner: dict[int, int] = {}

    def match(point: int, seen: set[int]) -> bool:
        for thing in candidates[point]:
            if thing not in seen:
                seen.add(thing)
                if thing not in owner or match(owner[thing], seen):
                    owner[thing] = point
                    return True
        return False

    return sum(match(point, set()) for point in range(len(candidates)))
