"""Confidence intervals: what theory says of a mean, and what repeats."""

from __future__ import annotations

import numpy as np
import pytest

from paligemma.evals.bootstrap import confidence_interval, interval_of, mean_of, resampled


def test_a_means_interval_is_the_one_that_theory_gives() -> None:
    scores = np.random.default_rng(1).normal(0.4, 0.2, 400)
    interval = confidence_interval(mean_of(scores), 400, num_resamples=4000)
    assert interval is not None
    half = 1.96 * scores.std() / 20
    assert interval.low == pytest.approx(scores.mean() - half, abs=0.002)
    assert interval.high == pytest.approx(scores.mean() + half, abs=0.002)


def test_the_interval_holds_the_true_mean_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(100):
        scores = (rng.random(100) < 0.7).astype(np.float64)
        interval = confidence_interval(mean_of(scores), 100, num_resamples=200, seed=trial)
        assert interval is not None
        held += 0.7 in interval
    assert 88 <= held <= 100


def test_a_score_that_resampling_moves_keeps_its_place() -> None:
    """The share of examples that were drawn at all is 1, and 1 - 1/e of them in a resample."""
    scores = np.random.default_rng(6).random(300)

    def moved(counts: np.ndarray) -> float:
        return float(counts @ scores / 300) - 0.1 * float((counts == 0).mean())

    interval = confidence_interval(moved, 300)
    assert interval is not None
    assert (interval.low + interval.high) / 2 == pytest.approx(scores.mean(), abs=0.004)
    assert interval.high - interval.low == pytest.approx(4 * scores.std() / 300**0.5, rel=0.1)


def test_a_seed_repeats_and_another_does_not() -> None:
    scores = np.random.default_rng(3).random(50)
    first, again, other = (confidence_interval(mean_of(scores), 50, seed=s) for s in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    base = np.random.default_rng(4).random(200)
    better = base + 0.01
    interval = interval_of(resampled(mean_of(better), 200) - resampled(mean_of(base), 200), 0.01)
    assert interval is not None
    assert interval.low == pytest.approx(0.01)
    assert interval.high == pytest.approx(0.01)


def test_a_single_example_or_an_undefined_score_has_no_interval() -> None:
    assert confidence_interval(mean_of([1.0]), 1) is None
    assert confidence_interval(lambda counts: float("nan"), 10) is None
