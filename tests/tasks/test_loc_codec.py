from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.errors import InputError
from paligemma.tasks.objects import decode_box, encode_box, format_box

fractions = st.floats(0, 1)
bins = st.integers(0, 1023)


@given(st.tuples(fractions, fractions, fractions, fractions))
def test_e10_a_box_comes_back_within_half_a_bin(box: tuple[float, float, float, float]) -> None:
    for before, after in zip(box, decode_box(encode_box(box)), strict=True):
        assert abs(before - after) <= 0.5 / 1023 + 1e-12


@given(st.tuples(bins, bins, bins, bins))
def test_bins_come_back_exactly(box: tuple[int, int, int, int]) -> None:
    assert encode_box(decode_box(box)) == box


def test_y_comes_first() -> None:
    assert encode_box((0.0, 1 / 3, 2 / 3, 1.0)) == (341, 0, 1023, 682)


def test_e10_edges_beyond_the_image_move_to_its_border() -> None:
    assert encode_box((-0.5, -1e9, 1.5, 1e300)) == (0, 0, 1023, 1023)


def test_decoding_differs_from_a_divisor_of_1024_by_at_most_a_thousandth() -> None:
    assert max(abs(decode_box((b, b, b, b))[0] - b / 1024) for b in range(1024)) < 0.001


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_box_of_no_number_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="finite"):
        encode_box((0.0, wrong, 1.0, 1.0))


def test_bins_are_written_with_four_digits() -> None:
    assert format_box((0.0, 0.01, 0.1, 1.0)) == "<loc0010><loc0000><loc1023><loc0102>"
