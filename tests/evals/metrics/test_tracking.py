"""IDF1, MOTA and HOTA, by hand."""

import math

import pytest

from paligemma.errors import DataError
from paligemma.evals.metrics.tracking import Hota, Idf1, Mota, TrackedBox, TrackedFilm

# One object stands still for ten frames.
HERE = (0.0, 0.0, 10.0, 10.0)
THERE = (50.0, 50.0, 60.0, 60.0)


def film(*numbers: int | None, box: tuple[float, float, float, float] = HERE) -> TrackedFilm:
    """A frame for each number, with a box of that number, or without one."""
    return [[] if n is None else [TrackedBox(track_id=n, box_xyxy=box)] for n in numbers]


ONE = film(*[1] * 10)


def both(first: TrackedFilm, second: TrackedFilm) -> TrackedFilm:
    return [[*a, *b] for a, b in zip(first, second, strict=True)]


def test_the_truth_itself_is_perfect() -> None:
    for metric in (Idf1(), Mota(), Hota()):
        result = metric.score([ONE], [ONE])
        assert result.value == pytest.approx(1.0)
        assert result.per_example == pytest.approx((1.0,))


def test_a_track_that_changes_its_number_halfway() -> None:
    halves = film(*[7] * 4, *[8] * 6)
    # Number 8 is the object's: 6 of 10 boxes, on both sides.
    assert Idf1().score([halves], [ONE]).value == pytest.approx(0.6)
    mota = Mota().score([halves], [ONE])
    assert mota.value == pytest.approx(1 - 1 / 10)
    assert mota.details["switches"] == 1
    # AssA: 4 boxes with 4 / 10, 6 boxes with 6 / 10; DetA is 1 at every IoU.
    hota = Hota().score([halves], [ONE])
    assert hota.details["association"] == pytest.approx((4 * 0.4 + 6 * 0.6) / 10)
    assert hota.details["detection"] == pytest.approx(1.0)
    assert hota.value == pytest.approx(math.sqrt(0.52))


def test_missed_and_false_boxes() -> None:
    found = both(film(*[1] * 7, None, None, None), film(*[None] * 8, 2, 2, box=THERE))
    mota = Mota().score([found], [ONE])
    assert mota.value == pytest.approx(1 - (3 + 2) / 10)
    assert (mota.details["missed"], mota.details["false"]) == (3, 2)
    assert mota.details["switches"] == 0
    idf1 = Idf1().score([found], [ONE])
    assert idf1.value == pytest.approx(2 * 7 / (9 + 10))
    assert idf1.details == {"id_precision": pytest.approx(7 / 9), "id_recall": 0.7}
    # DetA: 7 / (7 + 3 + 2); AssA: all 7 boxes with 7 / (7 + 3).
    assert Hota().score([found], [ONE]).value == pytest.approx(math.sqrt(7 / 12 * 0.7))


def test_a_number_that_comes_back_after_a_gap_is_no_switch() -> None:
    assert Mota().score([film(1, None, None, 1)], [film(*[5] * 4)]).details["switches"] == 0
    assert Mota().score([film(1, None, None, 2)], [film(*[5] * 4)]).details["switches"] == 1


def test_a_match_goes_on_even_where_another_box_overlaps_more() -> None:
    true = film(1, 1)
    shifted = (2.0, 0.0, 12.0, 10.0)  # IoU 8 / 12
    found = [
        [TrackedBox(track_id=3, box_xyxy=HERE)],
        [TrackedBox(track_id=3, box_xyxy=shifted), TrackedBox(track_id=4, box_xyxy=HERE)],
    ]
    result = Mota().score([found], [true])
    assert result.details["switches"] == 0
    assert result.details["motp"] == pytest.approx((1 + 8 / 12) / 2)


def test_two_objects_that_swap_their_numbers() -> None:
    true = both(film(*[1] * 10), film(*[2] * 10, box=THERE))
    found = both(film(*[1] * 5, *[2] * 5), film(*[2] * 5, *[1] * 5, box=THERE))
    assert Idf1().score([found], [true]).value == pytest.approx(0.5)
    assert Mota().score([found], [true]).value == pytest.approx(1 - 2 / 20)
    assert Hota().score([found], [true]).details["association"] == pytest.approx(5 / 15)


def test_an_overlap_of_half_matches_and_less_does_not() -> None:
    half, less = (0.0, 0.0, 10.0, 5.0), (0.0, 0.0, 10.0, 4.9)
    assert Mota().score([film(1, box=half)], [film(1)]).value == 1.0
    assert Idf1().score([film(1, box=half)], [film(1)]).value == 1.0
    assert Mota().score([film(1, box=less)], [film(1)]).value == -1.0
    assert Idf1().score([film(1, box=less)], [film(1)]).value == 0.0
    # HOTA counts IoUs up to the one that there is: 0.05 to 0.45 of 0.05 to 0.95.
    assert Hota().score([film(1, box=less)], [film(1)]).value == pytest.approx(9 / 19)


def test_another_label_does_not_match() -> None:
    cat = [[TrackedBox(track_id=1, box_xyxy=HERE, label="cat")]]
    dog = [[TrackedBox(track_id=1, box_xyxy=HERE, label="dog")]]
    assert Mota().score([dog], [cat]).value == -1.0
    assert Idf1().score([dog], [cat]).value == 0.0
    assert Hota().score([dog], [cat]).value == 0.0


def test_films_are_added_up_before_dividing() -> None:
    missed = film(*[None] * 2)
    result = Mota().score([ONE, missed], [ONE, film(1, 1)])
    assert result.per_example == (1.0, 0.0)
    assert result.value == pytest.approx(1 - 2 / 12)
    result = Idf1().score([ONE, missed], [ONE, film(1, 1)])
    assert result.value == pytest.approx(20 / 22)
    result = Hota().score([ONE, missed], [ONE, film(1, 1)])
    assert result.value == pytest.approx(math.sqrt(10 / 12))


def test_where_nothing_is_nothing_can_be_scored() -> None:
    empty: TrackedFilm = [[], []]
    for metric in (Idf1(), Mota(), Hota()):
        assert math.isnan(metric.score([empty], [empty]).value)
        assert metric.score([empty, ONE], [empty, ONE]).value == pytest.approx(1.0)


def test_films_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(DataError, match="Film 0 has 2 frames with found boxes and 10"):
        Idf1().score([film(1, 1)], [ONE])
    twice = both(film(1), film(1, box=THERE))
    with pytest.raises(DataError, match="Frame 0 of film 0 has 2 boxes with the number 1"):
        Mota().score([twice], [film(1)])
    with pytest.raises(DataError, match="nothing to score"):
        Hota().score([], [])
