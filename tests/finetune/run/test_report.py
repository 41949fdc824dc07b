"""The report of a run."""

from __future__ import annotations

import math

from paligemma.finetune.run.report import smoothed


def test_smoothing_leaves_out_what_is_not_finite() -> None:
    assert smoothed([2.0, math.nan, 4.0], 3) == [2.0, 2.0, 3.0]
