"""How sure a score is: percentile intervals from resampled examples (Efron, 1979).

A resample draws as many examples as there are, with replacement; it is told to a statistic as how
often each example was drawn, so that a score over a whole set (an average precision, an F1) need
not be worked out from its examples anew. Examples are independent of each other: where several
stand for one picture, count the picture as the example.

Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paligemma.errors import OptionError

Counts = npt.NDArray[np.int64]
Statistic = Callable[[Counts], float]
"""int64[N], how often each example was drawn -> the score of that resample; NaN where there is
none, as for a mean over a label that was not drawn."""

NUM_RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a score lies with probability `level`, both ends included."""

    low: float
    high: float
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def confidence_interval(
    statistic: Statistic,
    num_examples: int,
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The middle `level` of the statistic over resamples; the same for the same seed.

    None where fewer than two examples, or no resample with a score, are there. Raises OptionError
    for a level outside (0, 1) or no resamples.

    >>> scores = np.array([0.0, 1.0] * 50)
    >>> interval = confidence_interval(mean_of(scores), len(scores))
    >>> (round(interval.low, 2), round(interval.high, 2))
    (0.4, 0.6)
    """
    if not 0 < level < 1 or num_resamples < 1:
        raise OptionError(
            f"An interval of level {level} from {num_resamples} resamples was asked for; the level "
            "lies between 0 and 1, and there is at least one resample."
        )
    if num_examples < 2:
        return None
    values = np.array([statistic(c) for c in _resamples(num_examples, num_resamples, seed)])
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level)


def mean_of(scores: Sequence[float] | npt.NDArray[np.float64]) -> Statistic:
    """The statistic of a plain mean over the examples."""
    per_example = np.asarray(scores, dtype=np.float64)
    return lambda counts: float(counts @ per_example / counts.sum())


def difference_of(first: Statistic, second: Statistic) -> Statistic:
    """`first` minus `second` on the same resample: the paired comparison of two systems."""
    return lambda counts: first(counts) - second(counts)


def _resamples(num_examples: int, num_resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """int64[num_resamples, num_examples]; each row sums to the number of examples."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(
        num_examples, np.full(num_examples, 1 / num_examples), size=num_resamples
    ).astype(np.int64)
