"""Calibration: scores as probabilities, and the threshold with the best F1.

Temperature, bias and threshold are fitted on one half of the images, and measured on the other.
Other formulas for a box's score, from the probabilities of its tokens, are compared by average
precision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from paligemma.errors import DataError
from paligemma.evals.bootstrap import Interval, interval_of, resampled
from paligemma.evals.metrics.detection import Found, match_table
from paligemma.evals.metrics.result import FoundObject, ReferenceImage
from paligemma.evals.reliability import (
    ScoredOutcomes,
    Threshold,
    best_threshold,
    calibrated,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    threshold_at,
)
from paligemma.report.charts import Bin, reliability_chart
from paligemma.results import Detection, Objects
from paligemma.writing import write_whole

Subject = Literal["boxes", "answers"]

_FORMAT = 2
"""1 was for scores that were no probabilities."""
_MIN_EXAMPLES = 20

ObjectsT = TypeVar("ObjectsT", bound=Objects[Any])


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperature, bias and threshold for a model, fitted on a data set; saved as JSON."""

    subject: Subject
    temperature: float
    bias: float
    threshold: float | None
    """For calibrated scores; None where nothing was correct."""
    num_fitted: int
    """Number of boxes or answers in the half that was fitted on."""
    num_held: int
    """Number in the held-out half."""
    ece_before: float
    """Expected calibration error on the held-out half."""
    ece_after: float
    nll_before: float
    nll_after: float
    held: Threshold | None
    """Precision, recall and F1 of the threshold on the held-out half."""
    bins_before: tuple[Bin, ...]
    bins_after: tuple[Bin, ...]
    model: str = ""
    data: str = ""

    def probability(self, score: float) -> float:
        """The probability that something with this score is correct."""
        return float(calibrated(np.array([score]), self.temperature, self.bias)[0])

    def apply(self, objects: ObjectsT) -> ObjectsT:
        """The same objects with calibrated scores, for `filter(calibration.threshold)`.

        >>> calibration.apply(model.detect("street.jpg", "car"))      # doctest: +SKIP
        """
        calibrated_objects: tuple[Detection, ...] = tuple(
            replace(item, score=self.probability(item.score)) for item in objects.objects
        )
        return replace(objects, objects=calibrated_objects)

    def diagram(self) -> str:
        """Reliability diagrams before and after, as SVG. Raises MissingExtraError."""
        return reliability_chart(
            [
                (f"original scores: error {self.ece_before:.3f}", self.bins_before),
                (f"calibrated scores: error {self.ece_after:.3f}", self.bins_after),
            ]
        )

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        values = {"paligemma_calibration": _FORMAT, **_without_nan(asdict(self))}
        write_whole(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def load_calibration(path: str | Path) -> Calibration:
    """Read what `Calibration.save` wrote. Raises DataError for anything else."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if values.pop("paligemma_calibration") != _FORMAT:
            raise ValueError("made for the scores of another version")
        for name in ("bins_before", "bins_after"):
            values[name] = tuple(Bin(**bin) for bin in values[name])
        values["held"] = None if values["held"] is None else Threshold(**values["held"])
        calibration = Calibration(**values)
        numbers = (calibration.temperature, calibration.bias)
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ValueError("temperature or bias is not a number")
        if calibration.temperature <= 0:
            raise ValueError("the temperature is not positive")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{str(path)!r} is not a calibration file ({type(error).__name__}: {error}). Create "
            "one with: paligemma eval DATA --model MODEL --out FOLDER --calibrate"
        ) from error
    return calibration


def calibrate(
    outcomes: ScoredOutcomes, subject: Subject, *, seed: int = 0, model: str = "", data: str = ""
) -> Calibration:
    """Fit on a random half of the images, and measure on the other.

    Raises DataError for fewer than 20 scores in either half, when all are correct or all wrong, and
    when scores do not correlate with correctness.
    """
    chosen = np.random.default_rng(seed).permutation(len(outcomes.num_true)) % 2 == 0
    fit, held = outcomes.select_groups(chosen), outcomes.select_groups(~chosen)
    if min(len(fit.scores), len(held.scores)) < _MIN_EXAMPLES:
        raise DataError(
            f"There are {len(outcomes.scores)} {subject}; a calibration needs at least "
            f"{_MIN_EXAMPLES} in each half of the data. Evaluate more records."
        )
    if fit.correct.min() == fit.correct.max():
        which = "correct" if fit.correct.max() == 1 else "equally wrong"
        raise DataError(
            f"All {len(fit.scores)} {subject} in the half to fit on are {which}; a calibration "
            "needs both. Evaluate more records."
        )
    temperature, bias = fit_temperature(fit.scores, fit.correct)
    after = calibrated(held.scores, temperature, bias)
    fitted = replace(fit, scores=calibrated(fit.scores, temperature, bias))
    chosen_threshold = best_threshold(fitted)
    bins_before = reliability(held.scores, held.correct)
    bins_after = reliability(after, held.correct)
    return Calibration(
        subject=subject,
        temperature=temperature,
        bias=bias,
        threshold=None if chosen_threshold is None else chosen_threshold.score,
        num_fitted=len(fit.scores),
        num_held=len(held.scores),
        ece_before=expected_calibration_error(bins_before),
        ece_after=expected_calibration_error(bins_after),
        nll_before=negative_log_likelihood(held.scores, held.correct),
        nll_after=negative_log_likelihood(after, held.correct),
        held=None
        if chosen_threshold is None
        else threshold_at(chosen_threshold.score, replace(held, scores=after)),
        bins_before=bins_before,
        bins_after=bins_after,
        model=model,
        data=data,
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


Formula = Callable[[FoundObject], float]
"""The score of an object from its factors, or from the log-probabilities of its tokens."""


def _mean(logprobs: Sequence[float]) -> float:
    return math.fsum(logprobs) / len(logprobs) if logprobs else 0.0


def _tokens(found: FoundObject) -> tuple[float, ...]:
    return (*found.coordinate_logprobs, *found.label_logprobs)


FORMULAS: Mapping[str, Formula] = {
    "existence * label * coordinates": lambda found: math.prod(found.factors),
    "label * coordinates": lambda found: math.prod(found.factors[1:]),
    "existence * coordinates": lambda found: found.factors[0] * found.factors[2],
    "existence * label": lambda found: math.prod(found.factors[:2]),
    "existence": lambda found: found.factors[0],
    "label": lambda found: found.factors[1],
    "coordinates": lambda found: found.factors[2],
    "geometric mean of tokens": lambda found: math.exp(_mean(_tokens(found))),
    "product of tokens": lambda found: math.exp(math.fsum(_tokens(found))),
    "likelihood of box, then label": lambda found: math.exp(
        (_mean(found.coordinate_logprobs) + _mean(found.label_logprobs)) / 2
    ),
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

    Raises DataError for an object without factors and log-probabilities.
    """
    objects = (found for image in predictions for found in image)
    bare = next((found for found in objects if not found.factors), None)
    if bare is not None:
        raise DataError(
            f"The object {bare.label!r} has no factors, which formulas need."
            " Generate the predictions with this version."
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
    return replace(found, score=min(1.0, formula(found)))
