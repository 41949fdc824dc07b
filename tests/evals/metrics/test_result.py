"""Predictions and references are paired or refused; results become JSON."""

import json
import math

import pytest

from paligemma.errors import DataError
from paligemma.evals.metrics.captions import Bleu, Cider, RougeL
from paligemma.evals.metrics.counting import CountAccuracy
from paligemma.evals.metrics.molecules import SmilesExactMatch, TanimotoSimilarity
from paligemma.evals.metrics.result import MetricResult, mean_result, pair
from paligemma.evals.metrics.tables import Grits, Teds
from paligemma.evals.metrics.texts import (
    Anls,
    DirectAnswerAccuracy,
    ErrorRate,
    ExactMatch,
    NormalizedEditDistance,
    RelaxedAccuracy,
    VqaAccuracy,
)
from paligemma.evals.named_metrics import Metric

METRICS: list[Metric] = [
    VqaAccuracy(),
    DirectAnswerAccuracy(),
    ExactMatch(),
    RelaxedAccuracy(),
    Anls(),
    Cider(),
    Bleu(),
    RougeL(),
    ErrorRate(),
    NormalizedEditDistance(),
    Teds(),
    Grits(),
    SmilesExactMatch(),
    TanimotoSimilarity(),
    CountAccuracy(),
]


def test_a_single_reference_may_stand_alone() -> None:
    assert pair(["a", "b"], ["x", ("y", "z")]) == [("a", ("x",)), ("b", ("y", "z"))]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_every_metric_refuses_what_it_cannot_score(metric: Metric) -> None:
    for extra in ("rapidfuzz", "rdkit"):
        pytest.importorskip(extra)
    with pytest.raises(DataError, match="nothing to score"):
        metric.score([], [])
    with pytest.raises(DataError, match="2 predictions and 1 references"):
        metric.score(["C", "C"], ["C"])
    with pytest.raises(DataError, match="no reference"):
        metric.score(["C"], [[]])
    with pytest.raises(DataError, match="one of them is a string"):
        metric.score("C", "C")


def test_two_references_are_refused_where_one_is_meant() -> None:
    with pytest.raises(DataError, match="Example 1 has 2 references"):
        pair(["a", "b"], ["a", ["a", "b"]], single=True)


def test_the_mean_is_over_all_examples() -> None:
    result = mean_result("m", [0.0, 0.5, 1.0])
    assert result.value == 0.5
    assert result.per_example == (0.0, 0.5, 1.0)
    assert result.higher_is_better


def test_a_result_becomes_json_without_nan() -> None:
    result = MetricResult(name="m", value=0.25, per_example=(0.0, 0.5), details={"x": math.nan})
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text) == {
        "name": "m",
        "value": 0.25,
        "per_example": [0.0, 0.5],
        "details": {"x": None},
        "higher_is_better": True,
    }
