"""How well scores predict correctness, and how to correct them: numbers only.

    reliability   (score, correct) of a set -> bins and expected calibration error
    temperature   and bias turn scores into probabilities: sigmoid(logit(score) / T + bias)
    threshold     the score at which keeping what scores higher gives the best F1

Dividing logits by a temperature is Guo et al. (arXiv 1706.04599); the bias is Platt's (1999). It is
needed here because a coordinate is one of 1024 bins, so a box that is certainly correct may score
0.15. Ranks stay the same, and so does average precision. The expected calibration error is the mean
over bins of |accuracy - confidence|, weighted by size (Guo et al.).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paligemma.errors import DataError
from paligemma.evals.metrics.detection import Found, f1_of, match_table
from paligemma.evals.metrics.result import ReferenceImage
from paligemma.report.charts import Bin

Array = npt.NDArray[np.float64]

NUM_BINS = 15
_MIN_SCORE = 1e-12
_DECAY = 1e-6  # of the two weights, per score
_MAX_STEPS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredOutcomes:
    """Scores, and whether what they belong to was correct: float64[N] each, aligned."""

    scores: Array
    correct: Array
    """1 or 0; or a fraction, where the metric gives partial credit."""
    groups: npt.NDArray[np.int64]
    """The image or record that each belongs to."""
    num_true: npt.NDArray[np.int64]
    """By group: how many there are to find."""

    def select_groups(self, chosen: npt.NDArray[np.bool_]) -> ScoredOutcomes:
        """Only the groups where `chosen`, bool[G], is true."""
        keep = chosen[self.groups]
        return ScoredOutcomes(
            scores=self.scores[keep],
            correct=self.correct[keep],
            groups=self.groups[keep],
            num_true=np.where(chosen, self.num_true, 0),
        )


def box_outcomes(predictions: Found, references: Sequence[ReferenceImage]) -> ScoredOutcomes:
    """A box is correct with the true label and an IoU of at least 0.5; true boxes count once."""
    table = match_table(predictions, references)
    scores, correct, groups = table.outcomes()
    return ScoredOutcomes(
        scores=scores,
        correct=correct,
        groups=groups.astype(np.int64),
        num_true=np.array(
            [sum(not thing.is_crowd for thing in image.objects) for image in references],
            dtype=np.int64,
        ),
    )


def answer_outcomes(scores: Sequence[float], correct: Sequence[float]) -> ScoredOutcomes:
    """One answer per record; `correct` is its metric, 0 to 1."""
    return ScoredOutcomes(
        scores=np.asarray(scores, dtype=np.float64),
        correct=np.asarray(correct, dtype=np.float64),
        groups=np.arange(len(scores), dtype=np.int64),
        num_true=np.ones(len(scores), dtype=np.int64),
    )


def reliability(scores: Array, correct: Array, num_bins: int = NUM_BINS) -> tuple[Bin, ...]:
    """Bins of equal width, without the empty ones."""
    bin_of = np.minimum((scores * num_bins).astype(np.int64), num_bins - 1)
    bins = []
    for number in np.unique(bin_of).tolist():
        here = bin_of == number
        bins.append(
            Bin(
                low=number / num_bins,
                high=(number + 1) / num_bins,
                count=int(here.sum()),
                confidence=float(scores[here].mean()),
                accuracy=float(correct[here].mean()),
            )
        )
    return tuple(bins)


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean |accuracy - confidence|, weighted by the sizes of the bins; NaN for no bins.

    >>> expected_calibration_error(reliability(np.array([0.8, 0.8]), np.array([1.0, 0.0])))
    0.30000000000000004
    """
    total = sum(bin.count for bin in bins)
    if not total:
        return math.nan
    return sum(bin.count * abs(bin.accuracy - bin.confidence) for bin in bins) / total


def negative_log_likelihood(scores: Array, correct: Array) -> float:
    """The mean of -log p(what happened), natural logarithm."""
    p = np.clip(scores, _MIN_SCORE, 1 - _MIN_SCORE)
    return float(-(correct * np.log(p) + (1 - correct) * np.log1p(-p)).mean())


def calibrated(scores: Array, temperature: float, bias: float) -> Array:
    """sigmoid(logit(score) / temperature + bias).

    >>> float(calibrated(np.array([0.5]), 2.0, 0.0)[0])
    0.5
    """
    return _sigmoid(_logit(scores) / temperature + bias)


def fit_temperature(scores: Array, correct: Array) -> tuple[float, float]:
    """Temperature and bias with the smallest negative log-likelihood, by Newton's method.

    The loss is convex; a very small weight decay keeps the result finite where scores separate
    correct from wrong perfectly. Raises DataError where scores do not rise with correctness.
    """
    logits = _logit(scores)
    middle, spread = float(logits.mean()), float(logits.std()) or 1.0
    inputs = np.stack([(logits - middle) / spread, np.ones_like(logits)], axis=1)
    weights = np.zeros(2)
    decay = _DECAY * len(scores) * np.eye(2)
    for _ in range(_MAX_STEPS):
        p = _sigmoid(inputs @ weights)
        slope = inputs.T @ (p - correct) + decay @ weights
        curve = (inputs * (p * (1 - p))[:, None]).T @ inputs + decay
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    if weights[0] <= 0:
        raise DataError(
            f"Scores do not correlate with correctness (slope {weights[0]:.3g} over {len(scores)} "
            "scores); cannot calibrate. Evaluate more records, or use a model trained for the task."
        )
    return spread / float(weights[0]), float(weights[1] - weights[0] * middle / spread)


def _logit(scores: Array) -> Array:
    p = np.clip(scores, _MIN_SCORE, 1 - _MIN_SCORE)
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))  # which does not overflow


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What keeping everything with at least this score gives."""

    score: float
    precision: float
    recall: float
    f1: float


def best_threshold(outcomes: ScoredOutcomes) -> Threshold | None:
    """The lowest threshold with the best F1; None where nothing is correct."""
    num_true = int(outcomes.num_true.sum())
    order = np.argsort(-outcomes.scores, kind="stable")
    scores, correct = outcomes.scores[order], np.cumsum(outcomes.correct[order])
    if not num_true or not len(scores) or correct[-1] == 0:
        return None
    # A threshold can only be between different scores.
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    f1 = 2 * correct[ends] / (ends + 1 + num_true)
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return threshold_at(float(scores[ends[best]]), outcomes)


def threshold_at(score: float, outcomes: ScoredOutcomes) -> Threshold:
    """Precision, recall and F1 of what scores at least `score`."""
    kept = outcomes.scores >= score
    num_correct, num_kept = float(outcomes.correct[kept].sum()), int(kept.sum())
    num_true = int(outcomes.num_true.sum())
    return Threshold(
        score=score,
        precision=num_correct / num_kept if num_kept else 0.0,
        recall=num_correct / num_true if num_true else 0.0,
        f1=f1_of(num_correct, num_kept, num_true),
    )
