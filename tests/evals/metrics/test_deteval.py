"""DetEval: the area shares printed by Total-Text's script, and its three kinds of match."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paligemma.evals.metrics.text_regions import DetEval, area_recall_precision, polygon_of_box

pytest.importorskip("shapely", reason="the eval extra is not installed")


def test_area_shares_are_those_that_the_protocols_script_prints(shared_data: Path) -> None:
    data = json.loads((shared_data / "metrics" / "total_text_deteval.json").read_text())
    num_rows = 0
    for image in data["images"]:
        true = [np.array([row[1][0], row[3][0]], dtype=float).T for row in image["ground_truth"]]
        found = [np.array(entry[0], dtype=float) for entry in image["prediction"]]
        recall, precision = area_recall_precision(found, true)
        # The script prints the pairs that overlap, true region by true region: precision first.
        ours = [
            (precision[g, f], recall[g, f])
            for g in range(len(true))
            for f in range(len(found))
            if recall[g, f] > 0
        ]
        expected = image["expected_rows_recall_precision"]
        assert np.abs(np.array(ours) - np.array(expected)).max() < 1e-9
        num_rows += len(expected)
    assert num_rows == 8


WORD = polygon_of_box((0, 0, 100, 20))


def test_one_to_one_counts_whole() -> None:
    result = DetEval().score([[polygon_of_box((2, 0, 100, 20))]], [[WORD]])
    assert (result.value, result.details) == (1.0, {"precision": 1.0, "recall": 1.0})


def test_a_word_found_in_two_halves_counts_eight_tenths() -> None:
    halves = [polygon_of_box((0, 0, 50, 20)), polygon_of_box((50, 0, 100, 20))]
    result = DetEval().score([halves], [[WORD]])
    assert result.details == {"precision": pytest.approx(0.8), "recall": pytest.approx(0.8)}


def test_two_words_found_as_one_count_eight_tenths() -> None:
    words = [polygon_of_box((0, 0, 48, 20)), polygon_of_box((52, 0, 100, 20))]
    result = DetEval().score([[WORD]], [words])
    assert result.value == pytest.approx(0.8)


def test_one_that_covers_a_large_and_a_small_word_is_no_match_of_the_large_one() -> None:
    """The large word alone has 65 % of what was found, enough for one to one; both were merged."""
    words = [polygon_of_box((0, 0, 65, 20)), polygon_of_box((68, 0, 98, 20))]
    result = DetEval().score([[WORD]], [words])
    assert result.details == {"precision": pytest.approx(0.8), "recall": pytest.approx(0.8)}


def test_no_region_counts_twice() -> None:
    """Of two found regions one is good enough alone, and it touches a second word as well."""
    found = [polygon_of_box((0, 0, 70, 20)), polygon_of_box((90, 0, 100, 40))]
    words = [WORD, polygon_of_box((0, 19, 100, 60))]
    result = DetEval().score([found], [words])
    assert result.details == {"precision": 0.5, "recall": 0.5}


def test_shares_count_with_two_digits() -> None:
    halves = [polygon_of_box((0, 0, 35, 20)), polygon_of_box((50, 0, 84.6, 20))]
    assert DetEval().score([halves], [[WORD]]).details["recall"] == pytest.approx(0.8)
    halves[1] = polygon_of_box((50, 0, 84.4, 20))
    assert DetEval().score([halves], [[WORD]]).details["recall"] == 0.0


def test_a_region_that_hardly_overlaps_counts_nothing() -> None:
    result = DetEval().score([[polygon_of_box((90, 0, 190, 20))], []], [[WORD], []])
    assert result.value == 0.0
