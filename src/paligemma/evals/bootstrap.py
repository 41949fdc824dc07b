"""How sure a score is: percentile intervals from resampled examples (Efron, 1979).

Resampling biases some scores: an average precision over few objects per label rises, since an image
drawn twice doubles its objects. Where the mean of the resamples differs from the score by more than
chance explains, all of them are shifted by the difference before the interval is read.

A resample draws as many examples as there are, with replacement. A statistic gets it as the number
of times that each example was drawn, so that a score over a whole set (an average precision, an F1)
does not have to be computed from its examples again. Examples must be independent of each other:
where several belong to one image, the image is the example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Statistic = Callable[[Counts], float]
"""int64[N], how often each example was drawn -> the score of that resample; NaN where it has none,
as a mean over a label that was not drawn."""

NUM_RESAMPLES = 1000
LEVEL = 0.95
_CHANCE = 4.0  # standard errors of the mean of the resamples


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The range of a score with probability `level`, both ends included."""

    low: float
    high: float
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def confidence_interval(
    statistic: Statistic, num_examples: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval | None:
    """The middle 95 % of the statistic over resamples; the same for the same seed.

    None for fewer than two examples, or where no resample has a score.

    >>> scores = np.array([0.0, 1.0] * 50)
    >>> interval = confidence_interval(mean_of(scores), len(scores))
    >>> (round(interval.low, 2), round(interval.high, 2))
    (0.4, 0.6)
    """
    values = resampled(statistic, num_examples, num_resamples, seed)
    estimate = statistic(np.ones(num_examples, dtype=np.int64)) if num_examples else math.nan
    return interval_of(values, estimate)


def resampled(
    statistic: Statistic, num_examples: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> npt.NDArray[np.float64]:
    """float64[num_resamples], the statistic of each; empty for fewer than two examples.

    With the same seed and number of examples, two statistics get the same resamples, so that the
    difference of their values is a paired comparison.
    """
    if num_examples < 2:
        return np.zeros(0)
    rng = np.random.default_rng(seed)
    even = np.full(num_examples, 1 / num_examples)
    return np.array(
        [statistic(rng.multinomial(num_examples, even)) for _ in range(num_resamples)],
        dtype=np.float64,
    )


def interval_of(values: npt.NDArray[np.float64], estimate: float) -> Interval | None:
    """The middle 95 % of the finite resamples around the estimate, or None without any."""
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    bias = float(values.mean()) - estimate
    if abs(bias) > _CHANCE * float(values.std()) / math.sqrt(values.size):
        values = values - bias
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))


def mean_of(scores: Sequence[float] | npt.NDArray[np.float64]) -> Statistic:
    """The statistic that is the plain mean over the examples."""
    per_example = np.asarray(scores, dtype=np.float64)
    return lambda counts: float(counts @ per_example / counts.sum())
