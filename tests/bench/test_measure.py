"""Samples become a report, and a report becomes lines."""

from __future__ import annotations

import pytest

from paligemma.bench import measure as benchmark
from paligemma.bench.limits import Limits
from paligemma.config import release_config
from paligemma.errors import OptionError

LIMITS = Limits(read_bandwidth=31e9, matrix_peak=6.2e12)


def test_memory_follows_the_weights():
    needs = [
        benchmark.bench_memory("paligemma2-3b-224", weights)
        for weights in ("float32", "bfloat16", "int8", "int4")
    ]
    assert needs == sorted(needs, reverse=True)
    assert 7e9 < needs[1] < 9e9


def test_a_decode_step_is_bound_by_memory_and_a_prefill_by_arithmetic():
    work = benchmark.stage_work(release_config("paligemma2", "3b", 224), "bfloat16")
    assert work["decode step"].seconds(LIMITS) == pytest.approx(5.26e9 / 31e9, rel=0.01)
    assert work["prefill"].seconds(LIMITS) == pytest.approx(1.078e12 / 6.2e12, rel=0.01)
    one, eight = work["decode step"], work["decode step, 8 rows"]
    assert one.seconds(LIMITS) < eight.seconds(LIMITS) < 1.2 * one.seconds(LIMITS)


def test_at_least_one_sample_is_needed():
    with pytest.raises(OptionError, match="repeat is 0"):
        benchmark.measure("mini", "float32", repeat=0, progress=print)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2071, "207 ms"), (8.512, "8.51 s"), (75.13, "75.1 s"), (0.00412, "4.1 ms")],
)
def test_times_have_three_digits_at_most(seconds, text):
    assert benchmark.format_seconds(seconds) == text
