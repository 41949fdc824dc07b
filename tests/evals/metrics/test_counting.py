"""Counts and points, by hand."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.evals.metrics.counting import Box, CountAccuracy, Point, PointingAccuracy

POINTS = st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=5)
LEFT: Box = (0.0, 0.0, 4.0, 9.0)
RIGHT: Box = (5.0, 0.0, 9.0, 9.0)
ALL: Box = (0.0, 0.0, 9.0, 9.0)


def test_number_words_are_digits() -> None:
    words = ["none", "zero", "one", "Two", "TEN", "nineteen", "twenty"]
    digits = ["0", "0", "1", "2", "10", "19", "20"]
    assert CountAccuracy().score(words, digits).value == 1.0
    assert CountAccuracy().score(digits, words).value == 1.0


def test_counts_by_hand() -> None:
    result = CountAccuracy().score(
        ["2", "3", "a lot", "2 ", "17", "２"], ["two", "2", "2", "2", "16", "2"]
    )
    assert result.per_example == (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert result.details["count_2"] == pytest.approx(1 / 5)
    assert "count_16" not in result.details  # only 0 to 15 are listed
    assert result.details["not_a_number"] == 0.5
    assert result.details["mean_absolute_error"] == pytest.approx(2 / 3)


def test_without_any_number_there_is_no_mean_error() -> None:
    assert math.isnan(CountAccuracy().score(["many"], ["3"]).details["mean_absolute_error"])


def test_one_point_on_one_object_is_a_hit() -> None:
    result = PointingAccuracy().score([[(2, 2)], [(4.5, 2)], [(4, 9)]], [[LEFT], [LEFT], [LEFT]])
    assert result.per_example == (1.0, 0.0, 1.0)


def test_points_and_objects_are_matched_one_to_one() -> None:
    # The first point lies on both; it must leave LEFT to the second.
    result = PointingAccuracy().score([[(2, 2), (3, 3)]], [[LEFT, ALL]])
    assert result.value == 1.0
    twice = PointingAccuracy().score([[(2, 2), (3, 3)]], [[LEFT, RIGHT]])
    assert twice.value == 0.5
    assert twice.details == {"precision": 0.5, "recall": 0.5, "all_right": 0.0}


def test_a_mask_is_hit_at_its_pixels_only() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 5] = True
    hits = PointingAccuracy().score(
        [[(5.9, 1.0)], [(1, 5)], [(6, 1)], [(-1, 1)]], [[mask], [mask], [mask], [mask]]
    )
    assert hits.per_example == (1.0, 0.0, 0.0, 0.0)


def test_where_nothing_is_to_be_found_no_point_is_right() -> None:
    result = PointingAccuracy().score([[], [(1, 1)], []], [[], [], [ALL]])
    assert result.per_example == (1.0, 0.0, 0.0)
    with pytest.raises(DataError, match="nothing to score"):
        PointingAccuracy().score([], [])


@settings(deadline=None, derandomize=True)
@given(POINTS, st.lists(st.sampled_from([LEFT, RIGHT, ALL]), max_size=4), st.randoms())
def test_the_order_of_points_and_objects_is_of_no_account(
    points: list[Point], objects: list[Box], rng: random.Random
) -> None:
    one = PointingAccuracy().score([points], [objects])
    other = PointingAccuracy().score(
        [rng.sample(points, len(points))], [rng.sample(objects, len(objects))]
    )
    assert one == other
    assert 0.0 <= one.value <= 1.0
