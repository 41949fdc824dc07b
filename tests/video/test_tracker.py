"""Boxes of the same object get the same number, whatever the rate and the scores."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from paligemma import Detection, OptionError
from paligemma.video.tracker import TrackerOptions, TrackerState, advance

Box = tuple[float, float, float, float]


def found(box: Box, label: str = "dog", score: float = 0.9) -> Detection:
    return Detection(
        label=label,
        box_xyxy=box,
        box_normalized_xyxy=(0, 0, 1, 1),
        score=score,
        existence_score=score,
        label_score=1.0,
        coordinate_score=1.0,
    )


def at(x: float, y: float = 100.0, side: float = 40.0) -> Box:
    return x, y, x + side, y + side


def numbers(
    frames: Sequence[Sequence[Detection]], fps: float = 5, **options: float
) -> list[tuple[int | None, ...]]:
    state = TrackerState()
    found_numbers = []
    for index, boxes in enumerate(frames):
        state, ids = advance(state, index / fps, boxes, TrackerOptions(**options))
        found_numbers.append(ids)
    return found_numbers


@pytest.mark.parametrize("fps", [25, 5, 2, 1])
@pytest.mark.parametrize("score", [0.9, 0.2])
def test_two_that_cross_and_one_that_stands_still_keep_their_numbers(
    fps: float, score: float
) -> None:
    """Eight seconds, 2 px of noise, one box in ten missed."""
    rng = random.Random(fps)
    ids: dict[str, set[int | None]] = {"right": set(), "left": set(), "still": set()}
    state = TrackerState()
    for index in range(round(8 * fps)):
        time_s = index / fps
        places = {
            "right": at(20 + 40 * time_s),
            "left": at(340 - 40 * time_s, 110),
            "still": at(180, 300),
        }
        seen = [name for name in places if rng.random() > 0.1]
        rng.shuffle(seen)
        boxes = []
        for name in seen:
            x1, y1, x2, y2 = (edge + rng.gauss(0, 2) for edge in places[name])
            boxes.append(found((x1, y1, x2, y2), score=score))
        state, numbered = advance(state, time_s, boxes)
        for name, number in zip(seen, numbered, strict=True):
            ids[name].add(number)
    assert sorted(map(len, ids.values())) == [1, 1, 1]
    assert set.union(*ids.values()) == {1, 2, 3}


def test_an_object_is_found_again_within_the_time_and_not_after() -> None:
    here = [found(at(100))]
    assert numbers([here, *[[]] * 10, here], fps=5, max_lost_s=3) == [(1,), *[()] * 10, (1,)]
    assert numbers([here, *[[]] * 20, here], fps=5, max_lost_s=3)[-1] == (2,)
    assert numbers([here, *[[]] * 4, here], fps=5, max_lost_s=0.5)[-1] == (2,)


def test_the_time_without_an_object_counts_in_seconds_not_frames() -> None:
    """A frame later it is still the same object, however far apart frames are."""
    here = [found(at(100))]
    assert numbers([here, here, here], fps=0.1) == [(1,), (1,), (1,)]
    assert numbers([here, [], here], fps=0.1) == [(1,), (), (2,)]


def test_an_object_that_moves_on_while_it_is_hidden_is_expected_further_on() -> None:
    frames = [[found(at(20 + 10 * k))] if k < 10 or k > 16 else [] for k in range(24)]
    frames = [[*boxes, found(at(100, 200))] for boxes in frames]
    assert {ids[0] for ids in numbers(frames) if len(ids) == 2} == {1}


def test_low_scores_begin_tracks_where_all_are_low() -> None:
    low = [[found(at(100), score=0.05)]] * 3
    assert numbers(low) == [(1,)] * 3
    assert numbers(low, start_score=0.5) == [(None,)] * 3


def test_what_the_model_takes_for_wrong_begins_no_track_even_alone() -> None:
    assert numbers([[found(at(10), score=0.001)]] * 3) == [(None,)] * 3
    assert numbers([[found(at(10), score=0.06)]] * 2) == [(1,)] * 2


def test_an_unsure_box_goes_on_with_a_track_but_begins_none() -> None:
    frames = [
        [found(at(100), score=0.8)],
        [found(at(100), score=0.1), found(at(250), score=0.1)],
        [found(at(100), score=0.8)],
    ]
    for options in ({}, {"start_score": 0.5}):
        assert numbers(frames, **options) == [(1,), (1, None), (1,)]


def test_an_unsure_box_does_not_take_the_track_of_a_sure_one() -> None:
    frames = [
        [found(at(100), score=0.8)],
        [found(at(100), score=0.2), found(at(108), score=0.8)],
    ]
    assert numbers(frames) == [(1,), (None, 1)]


def test_labels_keep_apart_what_crosses() -> None:
    frames = []
    for k in range(11):
        dog, cat = found(at(100 + 10 * k)), found(at(200 - 10 * k), "cat")
        frames.append([dog, cat] if k % 2 else [cat, dog])
    ids = numbers(frames, fps=1)
    assert {pair if k % 2 else pair[::-1] for k, pair in enumerate(ids)} == {(2, 1)}


def test_a_label_that_changes_for_one_frame_is_the_same_object() -> None:
    frames = [[found(at(100))], [found(at(100), "cat", 0.5)], [found(at(100))]]
    assert numbers(frames) == [(1,), (1,), (1,)]


def test_something_far_away_is_another_object() -> None:
    frames = [[found(at(10))], [found(at(10))], [found(at(10)), found(at(600))], [found(at(600))]]
    assert numbers(frames) == [(1,), (1,), (1, 2), (2,)]


def test_a_box_that_the_edge_of_the_image_cuts_is_followed() -> None:
    frames = [[found((max(0.0, 90 - 20 * k), 50, 150 - 20 * k, 110))] for k in range(7)]
    assert set(numbers(frames)) == {(1,)}


def test_boxes_without_a_score_or_an_area_are_tracked() -> None:
    frames = [[found(at(100), score=math.nan), found((5, 5, 5, 5))]] * 3
    assert numbers(frames) == [(1, 2)] * 3


def test_the_state_is_a_value() -> None:
    first, _ = advance(TrackerState(), 0.0, [found(at(100))])
    assert advance(first, 1.0, [found(at(100))])[1] == (1,)
    assert advance(first, 1.0, [found(at(100)), found(at(300))])[1] == (1, 2)
    assert first.next_id == 2


def test_what_cannot_be_right_is_refused() -> None:
    state, _ = advance(TrackerState(), 1.0, [])
    with pytest.raises(OptionError, match=r"The frame at 1.0 s follows one at 1.0 s"):
        advance(state, 1.0, [])
    with pytest.raises(OptionError, match=r"start_score is 2; it must be from 0 to 1"):
        TrackerOptions(start_score=2)
    with pytest.raises(OptionError, match="max_lost_s is nan"):
        TrackerOptions(max_lost_s=math.nan)
