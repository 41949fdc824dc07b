"""Formulas for a box's score from its tokens' probabilities, compared by average precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from paligemma.errors import DataError
from paligemma.evals.bootstrap import Interval, interval_of, resampled
from paligemma.evals.metrics.detection import Found, match_table
from paligemma.evals.metrics.objects import FoundObject, ReferenceImage

Formula = Callable[[Sequence[float], Sequence[float]], float]
"""Log-probabilities of the coordinates and of the label -> score."""


def _mean(logprobs: Sequence[float]) -> float:
    return math.fsum(logprobs) / len(logprobs) if logprobs else 0.0


FORMULAS: Mapping[str, Formula] = {
    "geometric mean": lambda box, label: math.exp((_mean(box) + _mean(label)) / 2),
    "all tokens": lambda box, label: math.exp(_mean([*box, *label])),
    "product of tokens": lambda box, label: math.exp(math.fsum(box) + math.fsum(label)),
    "label product, box mean": lambda box, label: math.exp(_mean(box) + math.fsum(label)),
    "least token": lambda box, label: math.exp(min((*box, *label), default=0.0)),
    "label only": lambda box, label: math.exp(_mean(label)),
    "label product": lambda box, label: math.exp(math.fsum(label)),
    "label, box to the 1/4": lambda box, label: math.exp(math.fsum(label) + _mean(box) / 4),
    "box only": lambda box, label: math.exp(_mean(box)),
    "box without its first": lambda box, label: math.exp((_mean(box[1:]) + _mean(label)) / 2),
}
"""Alternative scores of a box, to compare with the one that `tasks/objects.py` computes."""


@dataclass(frozen=True, kw_only=True)
class FormulaScore:
    """The average precision with a formula's scores on a data set."""

    name: str
    box_map: float
    difference: float
    """Difference to the formula in use."""
    interval: Interval | None
    """Of the difference, over resampled images."""


def compare_formulas(
    predictions: Found,
    references: Sequence[ReferenceImage],
    formulas: Mapping[str, Formula] = FORMULAS,
    *,
    num_resamples: int = 500,
    seed: int = 0,
) -> tuple[FormulaScore, ...]:
    """mAP over IoU 0.50:0.95 with each formula's scores, best first.

    Raises DataError for an object without the log-probabilities of its tokens.
    """
    objects = (found for image in predictions for found in image)
    bare = next((found for found in objects if not found.coordinate_logprobs), None)
    if bare is not None:
        raise DataError(
            f"The object {bare.label!r} has no log-probabilities of its tokens, which formulas "
            "need. Generate the predictions with this version."
        )
    in_use = match_table(predictions, references).mean_average_precision
    base = in_use()
    size = len(references)
    base_values = resampled(in_use, size, num_resamples, seed)
    rows = []
    for name, formula in formulas.items():
        rescored = [[_rescored(found, formula) for found in image] for image in predictions]
        statistic = match_table(rescored, references).mean_average_precision
        value = statistic()
        values = resampled(statistic, size, num_resamples, seed)
        interval = interval_of(values - base_values, value - base)
        rows.append(
            FormulaScore(name=name, box_map=value, difference=value - base, interval=interval)
        )
    return tuple(sorted(rows, key=lambda row: -row.box_map))


def _rescored(found: FoundObject, formula: Formula) -> FoundObject:
    score = formula(found.coordinate_logprobs, found.label_logprobs)
    return replace(found, score=min(1.0, score))
