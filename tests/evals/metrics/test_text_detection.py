"""F1 of words, with don't-care regions and with what the words say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma.evals.metrics.text_regions import DetEval, TextDetection, Word, polygon_of_box

pytest.importorskip("shapely", reason="the eval extra is not installed")


def word(box: tuple[float, ...], text: str = "", is_ignored: bool = False) -> Word:
    return Word(polygon=polygon_of_box(box), text=text, is_ignored=is_ignored)  # type: ignore[arg-type]


def test_a_reference_example_gives_its_published_figures() -> None:
    """mmocr's example of the ICDAR measure: 3 of 5 found and 3 of 4 true words are right.

    In the first picture two words match, one is missed, one guess is wrong, and one lies half in
    a don't-care region (which there is enough to leave it out; here it takes a hair more). In the
    second a word is found twice.
    """
    true = [
        [
            word((0, 0, 1, 1)),
            word((2, 0, 3, 1)),
            word((10, 0, 11, 1)),
            word((1, 0, 2, 1), is_ignored=True),
        ],
        [word((0, 0, 1, 1))],
    ]
    found = [
        [
            word((0, 0, 1, 1)),
            word((2, 0.1, 3, 1.1)),
            word((1, 1, 2, 2)),
            word((1, -0.49, 2, 0.51)),
        ],
        [word((0, 0, 1, 1)), word((0, 0, 1, 1))],
    ]
    result = TextDetection().score(found, true)
    assert result.details["precision"] == pytest.approx(3 / 5)
    assert result.details["recall"] == pytest.approx(3 / 4)
    assert result.value == pytest.approx(2 / 3)
    assert result.per_example == pytest.approx((2 * 2 / (3 + 3), 2 / 3))


def icdar_words(image: dict[str, Any]) -> list[Word]:
    return [
        Word(
            polygon=np.array(item["polygon"], dtype=float).reshape(-1, 2),
            text=f"word {place}",
            is_ignored=item["ignore"],
        )
        for place, item in enumerate(image["instances"])
    ]


def test_the_truth_found_again_is_perfect_and_dont_care_regions_do_not_matter(
    shared_data: Path,
) -> None:
    path = shared_data / "metrics" / "text_detection" / "icdar2015_toy.json"
    true = [icdar_words(image) for image in json.loads(path.read_text())["images"]]
    assert sum(word.is_ignored for words in true for word in words) > 10
    everything = [[Word(polygon=w.polygon, text=w.text) for w in words] for words in true]
    wanted = [
        [Word(polygon=w.polygon, text=w.text) for w in words if not w.is_ignored] for words in true
    ]
    for found in (everything, wanted):
        for metric in (TextDetection(), TextDetection(with_text=True)):
            result = metric.score(found, true)
            assert result.value == 1.0
            assert result.details["num_found"] == result.details["num_true"]
    moved = [[Word(polygon=w.polygon + 2000.0) for w in words] for words in wanted]
    assert TextDetection().score(moved, true).details["recall"] == 0.0


def test_end_to_end_a_word_must_be_read_letter_by_letter() -> None:
    true = [[word((0, 0, 10, 4), "Hotel"), word((0, 10, 10, 14), "12")]]
    found = [[word((0, 0, 10, 4), "HOTEL"), word((0, 10, 10, 14), "12")]]
    assert TextDetection().score(found, true).value == 1.0
    assert TextDetection(with_text=True).score(found, true).value == 0.5
    assert TextDetection(with_text=True, case_sensitive=False).score(found, true).value == 1.0


def test_a_word_takes_a_guess_that_reads_right_over_one_that_does_not() -> None:
    true = [[word((0, 0, 10, 4), "Hotel")]]
    found = [[word((0, 0, 10, 4), "Motel"), word((0, 0, 10, 4.5), "Hotel")]]
    assert TextDetection(with_text=True).score(found, true).details["recall"] == 1.0


def test_a_resample_counts_words_as_often_as_their_image() -> None:
    true = [[word((0, 0, 10, 4))], [word((0, 0, 10, 4)), word((0, 9, 10, 12))]]
    found = [[word((0, 0, 10, 4))], [word((50, 0, 60, 4))]]
    statistic = TextDetection().statistic(found, true)
    assert statistic(np.array([1, 1])) == TextDetection().score(found, true).value
    assert statistic(np.array([2, 0])) == 1.0
    assert statistic(np.array([0, 2])) == 0.0


def test_without_a_word_that_counts_there_is_no_score() -> None:
    only_ignored = [[word((0, 0, 9, 9), "###", is_ignored=True)]]
    assert math.isnan(TextDetection().score([[]], only_ignored).value)
    assert math.isnan(DetEval().score([[]], [[]]).value)
