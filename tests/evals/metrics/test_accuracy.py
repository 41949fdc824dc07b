"""Exact match and relaxed accuracy, by hand-computed cases of their definitions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.evals.metrics.texts import ExactMatch, RelaxedAccuracy

NUMBERS = st.integers(-10_000, 10_000).filter(bool)


def test_exact_match_takes_any_reference_and_normalises_nothing() -> None:
    result = ExactMatch().score(["a", "A", " a", "é"], [["b", "a"], "a", "a", "e\u0301"])
    assert result.per_example == (1.0, 0.0, 0.0, 0.0)
    assert result.value == 0.25


def test_exact_match_normalises_what_is_asked() -> None:
    metric = ExactMatch(ignore_case=True, collapse_space=True)
    assert metric.score(["  TWO\ndogs ", ""], ["two  dogs", " "]).per_example == (1.0, 1.0)


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("94.9", "100", False),
        ("-105", "-100", True),
        ("105", "-100", False),
        ("12%", "0.12", True),
        ("12%", "12", False),
        ("12.5%", "12%", True),
        ("0", "0", True),
        ("0.0", "0", False),  # a true 0 must be met as it is written
        ("0.01", "0", False),
        ("1e2", "100", True),
        ("1,000", "1000", False),  # a comma makes it a text
        ("$5", "5", False),
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("nan", "nan", True),  # a text
        ("inf", "inf", True),
        ("inf", "5", False),
        ("5", "inf", False),
        ("", "", True),
        ("", "5", False),
        ("%", "5", False),
        ("Größe", "größe", True),
    ],
)
def test_relaxed_matches_by_hand(prediction: str, reference: str, right: bool) -> None:
    assert RelaxedAccuracy().score([prediction], [reference]).value == right


@settings(deadline=None, derandomize=True)
@given(NUMBERS, st.floats(-0.2, 0.2))
def test_a_number_is_right_within_the_tolerance_of_the_truth(truth: int, error: float) -> None:
    if abs(abs(error) - 0.05) < 1e-6:
        return
    guess = repr(truth * (1 + error))
    assert RelaxedAccuracy().score([guess], [str(truth)]).value == (abs(error) < 0.05)


def test_the_share_of_exact_matches_stands_beside() -> None:
    result = RelaxedAccuracy().score(["101", "100", "7"], ["100", "100", "100"])
    assert result.value == pytest.approx(2 / 3)
    assert result.details["exact_match"] == pytest.approx(1 / 3)
