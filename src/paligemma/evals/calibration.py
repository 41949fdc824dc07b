"""What scores are worth: how often an object or answer of a score is right, and what follows.

    reliability   (score, right) of a set -> bins and expected calibration error
    temperature   and bias make scores into probabilities: sigmoid(logit(score) / T + bias)
    threshold     the calibrated score from which on keeping an object gives the best F1
    formulas      ways to make an object's score of its tokens' probabilities, compared by mAP

Dividing logits by a temperature is Guo et al. (arXiv 1706.04599); the bias is Platt's (1999), and
needed here: a place is one of 1024 bins, so a box that is surely right may score 0.15. Ranks stay,
and so does average precision. The expected calibration error is the mean over bins of
|accuracy - confidence|, weighted by size (Guo et al.).

Temperature and threshold are fitted on one half of the pictures and told of by what they do on the
other. Knows numbers, boxes and files; knows no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from paligemma.errors import DataError
from paligemma.evals.bootstrap import Interval, interval_of, resampled
from paligemma.evals.metrics.detection import Found, f1_of, match_table
from paligemma.evals.metrics.objects import FoundObject, ReferenceImage
from paligemma.report.charts import reliability_chart
from paligemma.results import Detection, Objects

Array = npt.NDArray[np.float64]
Subject = Literal["boxes", "answers"]

NUM_BINS = 15
_FORMAT = 1
_MIN_SCORE = 1e-12
_MIN_EXAMPLES = 20
_DECAY = 1e-6  # of the two weights, for each score
_MAX_STEPS = 100

ObjectsT = TypeVar("ObjectsT", bound=Objects[Any])


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Scores with what became of them: float64[N] each, aligned."""

    scores: Array
    right: Array
    """1 or 0; or a share, where the metric gives some."""
    groups: npt.NDArray[np.int64]
    """The picture or record that each belongs to."""
    num_true: npt.NDArray[np.int64]
    """By group: how many there are to be found."""

    def of_groups(self, chosen: npt.NDArray[np.bool_]) -> Judged:
        """Only what belongs to the groups where bool[G] is true."""
        keep = chosen[self.groups]
        return Judged(
            scores=self.scores[keep],
            right=self.right[keep],
            groups=self.groups[keep],
            num_true=np.where(chosen, self.num_true, 0),
        )


def judge_boxes(predictions: Found, references: Sequence[ReferenceImage]) -> Judged:
    """Right is a box with a true label and an IoU of at least 0.5, each true box taken once."""
    table = match_table(predictions, references)
    scores, right, groups = table.judged()
    return Judged(
        scores=scores,
        right=right,
        groups=groups.astype(np.int64),
        num_true=np.array(
            [sum(not thing.is_crowd for thing in known.objects) for known in references],
            dtype=np.int64,
        ),
    )


def judge_answers(scores: Sequence[float], right: Sequence[float]) -> Judged:
    """One answer a record; `right` is what the metric gives it, 0 to 1."""
    return Judged(
        scores=np.asarray(scores, dtype=np.float64),
        right=np.asarray(right, dtype=np.float64),
        groups=np.arange(len(scores), dtype=np.int64),
        num_true=np.ones(len(scores), dtype=np.int64),
    )


# Reliability


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bar of a reliability diagram: scores in [low, high), the last one with its end."""

    low: float
    high: float
    count: int
    confidence: float
    """The mean score."""
    accuracy: float
    """The share that is right."""


def reliability(scores: Array, right: Array, num_bins: int = NUM_BINS) -> tuple[Bin, ...]:
    """Bins of equal width that hold something."""
    place = np.minimum((scores * num_bins).astype(np.int64), num_bins - 1)
    bins = []
    for number in np.unique(place).tolist():
        here = place == number
        bins.append(
            Bin(
                low=number / num_bins,
                high=(number + 1) / num_bins,
                count=int(here.sum()),
                confidence=float(scores[here].mean()),
                accuracy=float(right[here].mean()),
            )
        )
    return tuple(bins)


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean |accuracy - confidence| over everything in the bins; NaN for none.

    >>> expected_calibration_error(reliability(np.array([0.8, 0.8]), np.array([1.0, 0.0])))
    0.30000000000000004
    """
    total = sum(one.count for one in bins)
    if not total:
        return math.nan
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / total


def negative_log_likelihood(scores: Array, right: Array) -> float:
    """The mean of -log p(what happened), natural logarithm."""
    p = np.clip(scores, _MIN_SCORE, 1 - _MIN_SCORE)
    return float(-(right * np.log(p) + (1 - right) * np.log1p(-p)).mean())


# Fitting


def calibrated(scores: Array, temperature: float, bias: float) -> Array:
    """sigmoid(logit(score) / temperature + bias).

    >>> float(calibrated(np.array([0.5]), 2.0, 0.0)[0])
    0.5
    """
    return _sigmoid(_logit(scores) / temperature + bias)


def fit_temperature(scores: Array, right: Array) -> tuple[float, float]:
    """Temperature and bias of the least negative log-likelihood, by Newton's method.

    The loss is convex; a hair of weight decay keeps scores that part right from wrong without a
    fault from giving infinite ones. Raises DataError where higher scores are not more often right.
    """
    logits = _logit(scores)
    middle, spread = float(logits.mean()), float(logits.std()) or 1.0
    inputs = np.stack([(logits - middle) / spread, np.ones_like(logits)], axis=1)
    weights = np.zeros(2)
    decay = _DECAY * len(scores) * np.eye(2)
    for _ in range(_MAX_STEPS):
        p = _sigmoid(inputs @ weights)
        slope = inputs.T @ (p - right) + decay @ weights
        curve = (inputs * (p * (1 - p))[:, None]).T @ inputs + decay
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    if weights[0] <= 0:
        raise DataError(
            f"Higher scores are not more often right here (slope {weights[0]:.3g} over "
            f"{len(scores)} scores), so that nothing can be fitted. Evaluate more records, or use "
            "a model that knows the task."
        )
    return spread / float(weights[0]), float(weights[1] - weights[0] * middle / spread)


def _logit(scores: Array) -> Array:
    p = np.clip(scores, _MIN_SCORE, 1 - _MIN_SCORE)
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))  # which does not overflow


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Keeping what scores at least `score`."""

    score: float
    precision: float
    recall: float
    f1: float


def best_threshold(judged: Judged) -> Threshold | None:
    """The lowest of the scores whose keeping gives the best F1; None where nothing is right."""
    num_true = int(judged.num_true.sum())
    order = np.argsort(-judged.scores, kind="stable")
    scores, right = judged.scores[order], np.cumsum(judged.right[order])
    if not num_true or not len(scores) or right[-1] == 0:
        return None
    # Only between unequal scores can a threshold stand.
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    f1 = 2 * right[ends] / (ends + 1 + num_true)
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return _threshold_at(float(scores[ends[best]]), judged)


def _threshold_at(score: float, judged: Judged) -> Threshold:
    kept = judged.scores >= score
    num_right, num_kept = float(judged.right[kept].sum()), int(kept.sum())
    num_true = int(judged.num_true.sum())
    return Threshold(
        score=score,
        precision=num_right / num_kept if num_kept else 0.0,
        recall=num_right / num_true if num_true else 0.0,
        f1=f1_of(num_right, num_kept, num_true),
    )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted for a model on a data set; in a file, `calibration.json`."""

    subject: Subject
    temperature: float
    bias: float
    threshold: float | None
    """Of calibrated scores; None where nothing was right."""
    num_fitted: int
    """Boxes or answers of the half that was fitted on."""
    num_held: int
    ece_before: float
    """Expected calibration error on the held half."""
    ece_after: float
    nll_before: float
    nll_after: float
    held: Threshold | None
    """What the threshold does on the held half."""
    bins_before: tuple[Bin, ...]
    bins_after: tuple[Bin, ...]
    model: str = ""
    data: str = ""

    def probability(self, score: float) -> float:
        """How probable it is that something of this score is right."""
        return float(calibrated(np.array([score]), self.temperature, self.bias)[0])

    def apply(self, found: ObjectsT) -> ObjectsT:
        """The same objects with calibrated scores; `filter(calibration.threshold)` may follow.

        >>> calibration.apply(model.detect("street.jpg", "car"))      # doctest: +SKIP
        """
        objects: tuple[Detection, ...] = tuple(
            replace(thing, score=self.probability(thing.score)) for thing in found.objects
        )
        return replace(found, objects=objects)

    def diagram(self) -> str:
        """Reliability diagrams before and after, as SVG. Raises MissingExtraError."""
        return reliability_chart(
            [
                (f"scores as they are: error {self.ece_before:.3f}", self.bins_before),
                (f"calibrated: error {self.ece_after:.3f}", self.bins_after),
            ]
        )

    def save(self, path: Path) -> None:
        """Write the file, a JSON object."""
        values = {"paligemma_calibration": _FORMAT, **_without_nan(asdict(self))}
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_calibration(path: str | Path) -> Calibration:
    """Read what `Calibration.save` wrote. Raises DataError for anything else."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if values.pop("paligemma_calibration") != _FORMAT:
            raise ValueError("another version")
        for name in ("bins_before", "bins_after"):
            values[name] = tuple(Bin(**one) for one in values[name])
        values["held"] = None if values["held"] is None else Threshold(**values["held"])
        found = Calibration(**values)
        numbers = (found.temperature, found.bias)
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ValueError("temperature and bias are no numbers")
        if found.temperature <= 0:
            raise ValueError("the temperature is not positive")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{str(path)!r} is no calibration ({type(error).__name__}: {error}). Make one with: "
            "paligemma eval DATA --model MODEL --out DIR --calibrate"
        ) from error
    return found


def calibrate(
    judged: Judged, subject: Subject, *, seed: int = 0, model: str = "", data: str = ""
) -> Calibration:
    """Fit on one half of the pictures, drawn by `seed`, and look at the other.

    Raises DataError for fewer than 20 scores in either half, or when all are right or all wrong:
    there is nothing to fit.
    """
    chosen = np.random.default_rng(seed).permutation(len(judged.num_true)) % 2 == 0
    fit, held = judged.of_groups(chosen), judged.of_groups(~chosen)
    if min(len(fit.scores), len(held.scores)) < _MIN_EXAMPLES:
        raise DataError(
            f"There are {len(judged.scores)} scored {subject}; a calibration needs at least "
            f"{_MIN_EXAMPLES} in each half of the data. Evaluate more records."
        )
    if fit.right.min() == fit.right.max():
        which = "right" if fit.right.max() == 1 else "equally wrong"
        raise DataError(
            f"All {len(fit.scores)} {subject} of the half to fit on are {which}; a temperature "
            "needs both kinds. Evaluate more records."
        )
    temperature, bias = fit_temperature(fit.scores, fit.right)
    after = calibrated(held.scores, temperature, bias)
    fitted = replace(fit, scores=calibrated(fit.scores, temperature, bias))
    chosen_threshold = best_threshold(fitted)
    bins_before = reliability(held.scores, held.right)
    bins_after = reliability(after, held.right)
    return Calibration(
        subject=subject,
        temperature=temperature,
        bias=bias,
        threshold=None if chosen_threshold is None else chosen_threshold.score,
        num_fitted=len(fit.scores),
        num_held=len(held.scores),
        ece_before=expected_calibration_error(bins_before),
        ece_after=expected_calibration_error(bins_after),
        nll_before=negative_log_likelihood(held.scores, held.right),
        nll_after=negative_log_likelihood(after, held.right),
        held=None
        if chosen_threshold is None
        else _threshold_at(chosen_threshold.score, replace(held, scores=after)),
        bins_before=bins_before,
        bins_after=bins_after,
        model=model,
        data=data,
    )


# Formulas

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
"""Ways to a score of one box; what `tasks/objects.py` does is put beside them as "in use"."""


@dataclass(frozen=True, kw_only=True)
class FormulaScore:
    """What a formula gives on a data set."""

    name: str
    box_map: float
    difference: float
    """To the formula in use."""
    interval: Interval | None
    """Of the difference, over resampled pictures."""


def compare_formulas(
    predictions: Found,
    references: Sequence[ReferenceImage],
    formulas: Mapping[str, Formula] = FORMULAS,
    *,
    num_resamples: int = 500,
    seed: int = 0,
) -> tuple[FormulaScore, ...]:
    """mAP over IoU 0.50:0.95 with each formula's scores, the best first.

    Raises DataError for an object without the log-probabilities of its tokens.
    """
    bare = next((f for found in predictions for f in found if not f.coordinate_logprobs), None)
    if bare is not None:
        raise DataError(
            f"The object {bare.label!r} has no log-probabilities of its tokens; formulas need "
            "them. Predict with this version, not from a file of boxes."
        )
    in_use = match_table(predictions, references).mean_average_precision
    base = in_use()
    size = len(references)
    base_values = resampled(in_use, size, num_resamples, seed)
    rows = []
    for name, formula in formulas.items():
        rescored = [[_rescored(thing, formula) for thing in found] for found in predictions]
        statistic = match_table(rescored, references).mean_average_precision
        value = statistic()
        values = resampled(statistic, size, num_resamples, seed)
        interval = interval_of(values - base_values, value - base)
        rows.append(
            FormulaScore(name=name, box_map=value, difference=value - base, interval=interval)
        )
    return tuple(sorted(rows, key=lambda row: -row.box_map))


def _rescored(thing: FoundObject, formula: Formula) -> FoundObject:
    score = formula(thing.coordinate_logprobs, thing.label_logprobs)
    return replace(thing, score=min(1.0, score))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
