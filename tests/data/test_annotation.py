"""Labels and boxes: what is cleaned, what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from paligemma.data.annotation import CLIPPED, box_of_mask, clean_box, clean_label, size_of
from paligemma.errors import DataError


def test_a_label_keeps_its_words_with_single_spaces() -> None:
    assert clean_label(" traffic \n light ", "x") == "traffic light"


@pytest.mark.parametrize("label", ["", "  ", None, 3, "cat; dog", "<loc0001>", "a <seg001>"])
def test_a_label_that_could_not_be_read_back_is_refused(label: object) -> None:
    with pytest.raises(DataError, match="Line 7"):
        clean_label(label, "Line 7")


def test_a_box_that_leaves_its_image_by_a_little_is_cut_and_counted() -> None:
    tally: Counter[str] = Counter()
    assert clean_box((-0.5, 0, 41, 20), (40, 20), "x", tally) == (0.0, 0.0, 40.0, 20.0)
    assert tally == {CLIPPED: 1}
    assert clean_box((1, 2, 3, 4), (40, 20), "x", tally) == (1.0, 2.0, 3.0, 4.0)
    assert tally == {CLIPPED: 1}


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 60, 20), "extends beyond its image of 40 x 20"),
        ((41, 0, 42, 20), "extends beyond"),
        ((5, 5, 5, 9), "no area"),
        ((9, 5, 5, 9), "no area"),
        ((0, 0, float("nan"), 9), "no area"),
        ((0, 0, 9), "four numbers"),
        ((0, 0, "wide", 9), "four numbers"),
    ],
)
def test_a_box_that_makes_no_sense_is_refused(box: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        clean_box(box, (40, 20), "Line 7", Counter())


def test_the_box_of_a_mask_ends_behind_its_last_pixel() -> None:
    mask = np.zeros((20, 40), np.bool_)
    mask[3:7, 10:30] = True
    assert box_of_mask(mask, "x") == (10.0, 3.0, 30.0, 7.0)
    with pytest.raises(DataError, match="empty"):
        box_of_mask(mask & False, "x")


def test_a_size_is_two_whole_numbers_or_nothing() -> None:
    assert size_of("40", 20, "x") == (40, 20)
    assert size_of(None, None, "x") is None
    assert size_of(0, "0", "x") is None
    for width, height in ((40, 0), (-1, 20), ("wide", 20), (None, 20), (10**6, 10**6)):
        with pytest.raises(DataError, match="size is given"):
            size_of(width, height, "x")
