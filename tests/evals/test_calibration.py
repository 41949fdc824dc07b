"""Calibration: what is put in comes out; errors by hand; files; formulas by average precision."""

from __future__ import annotations

import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.evals.calibration import (
    FORMULAS,
    Calibration,
    calibrate,
    compare_formulas,
    load_calibration,
)
from paligemma.evals.metrics.result import FoundObject, ReferenceImage, ReferenceObject
from paligemma.evals.reliability import (
    ScoredOutcomes,
    answer_outcomes,
    best_threshold,
    box_outcomes,
    calibrated,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from paligemma.results import Detection, Detections

TEMPERATURE, BIAS = 0.25, 3.0
BOX = (0.0, 0.0, 10.0, 10.0)


def drawn(count: int = 8000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and whether right, with the probability of a known temperature and bias."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.1, 0.6, count)
    p = calibrated(scores, TEMPERATURE, BIAS)
    return scores, (rng.random(count) < p).astype(np.float64)


def test_the_temperature_that_made_the_data_is_found() -> None:
    temperature, bias = fit_temperature(*drawn(40000))
    assert temperature == pytest.approx(TEMPERATURE, rel=0.05)
    assert bias == pytest.approx(BIAS, rel=0.05)


def test_no_other_temperature_is_likelier() -> None:
    scores, right = drawn(1000)
    temperature, bias = fit_temperature(scores, right)
    least = negative_log_likelihood(calibrated(scores, temperature, bias), right)
    for t, b in ((1.01, 0), (0.99, 0), (1, 0.02), (1, -0.02)):
        other = calibrated(scores, temperature * t, bias + b)
        assert negative_log_likelihood(other, right) > least


def test_scores_that_part_right_from_wrong_without_a_fault_stay_finite() -> None:
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    temperature, bias = fit_temperature(scores, np.array([0.0, 0, 1, 1]))
    p = calibrated(scores, temperature, bias)
    assert np.isfinite([temperature, bias]).all()
    assert p[1] < 0.02
    assert p[2] > 0.98


def test_scores_that_lie_are_refused() -> None:
    with pytest.raises(DataError, match="do not correlate with correctness"):
        fit_temperature(
            np.linspace(0.1, 0.9, 50), (np.linspace(0.1, 0.9, 50) < 0.5).astype(np.float64)
        )


def test_the_calibration_error_is_the_weighted_gap() -> None:
    scores = np.array([0.05, 0.05, 0.55, 0.55, 0.55, 1.0])
    right = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    bins = reliability(scores, right, num_bins=10)
    assert [(b.count, b.accuracy) for b in bins] == [(2, 0.5), (3, pytest.approx(2 / 3)), (1, 1.0)]
    expected = (2 * 0.45 + 3 * abs(2 / 3 - 0.55)) / 6
    assert expected_calibration_error(bins) == pytest.approx(expected)
    assert math.isnan(expected_calibration_error(()))


def test_the_threshold_of_the_best_f1_is_found_by_trying_all() -> None:
    scores, right = drawn(300)
    outcomes = answer_outcomes(np.round(scores, 2).tolist(), right.tolist())
    outcomes = dataclasses.replace(outcomes, num_true=np.full(300, 1))

    def f1(threshold: float) -> float:
        kept = outcomes.scores >= threshold
        return float(2 * right[kept].sum() / (kept.sum() + 300))

    found = best_threshold(outcomes)
    assert found is not None
    assert found.f1 == pytest.approx(max(f1(t) for t in np.unique(outcomes.scores)))
    assert found.f1 == pytest.approx(f1(found.score))


def test_no_threshold_where_nothing_is_right() -> None:
    assert best_threshold(answer_outcomes([0.5, 0.6], [0.0, 0.0])) is None


def test_the_fit_is_outcomes_on_images_that_it_has_not_seen() -> None:
    scores, right = drawn(3000)
    groups = np.arange(3000) // 3
    outcomes = ScoredOutcomes(
        scores=scores, correct=right, groups=groups, num_true=np.full(1000, 3, dtype=np.int64)
    )
    found = calibrate(outcomes, "boxes", model="m", data="d")
    assert found.num_fitted == found.num_held == 1500
    assert found.ece_before > 0.1
    assert found.ece_after < 0.05
    assert found.nll_after < found.nll_before
    assert found.held is not None
    assert 0 < found.held.f1 <= 1
    # What the held half holds does not move the fit.
    chosen = np.random.default_rng(0).permutation(1000) % 2 == 0
    changed = dataclasses.replace(outcomes, correct=np.where(chosen[groups], right, 0.0))
    assert calibrate(changed, "boxes").temperature == found.temperature


def test_too_little_or_one_sided_data_are_refused() -> None:
    with pytest.raises(DataError, match="at least 20"):
        calibrate(answer_outcomes([0.5] * 30, [1.0, 0.0] * 15), "answers")
    with pytest.raises(DataError, match="are correct"):
        calibrate(answer_outcomes([0.5] * 60, [1.0] * 60), "answers")


def one_calibration() -> Calibration:
    return calibrate(answer_outcomes(*(part.tolist() for part in drawn(400))), "answers")


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    found, path = one_calibration(), tmp_path / "calibration.json"
    found.save(path)
    assert load_calibration(path) == found


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"bias": "much"},
        {"paligemma_calibration": 99},
        {"surprise": 1},
    ],
)
def test_a_calibration_that_was_tampered_with_is_refused(
    change: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "calibration.json"
    one_calibration().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="is not a calibration file"):
        load_calibration(path)
    with pytest.raises(DataError, match="is not a calibration file"):
        load_calibration(tmp_path / "nowhere.json")


def detection(score: float) -> Detection:
    return Detection(
        label="cat",
        box_xyxy=(0, 0, 5, 5),
        box_normalized_xyxy=(0, 0, 0.5, 0.5),
        score=score,
        existence_score=1.0,
        coordinate_score=score,
        label_score=score,
    )


def test_a_calibration_makes_scores_of_detections_probabilities() -> None:
    found = Detections(
        objects=(detection(0.1), detection(0.5)),
        prompt="detect cat",
        phrases=("cat",),
        problems=(),
        size_wh=(10, 10),
        stop_reason="eos",
        text="",
    )
    calibration = one_calibration()
    after = calibration.apply(found)
    assert [d.score for d in after] == [calibration.probability(0.1), calibration.probability(0.5)]
    assert after[0].coordinate_score == 0.1
    assert after[0].score < after[1].score
    assert calibration.threshold is not None
    kept = after.filter(calibration.threshold)
    assert [d.score for d in kept] == [s for s in after.scores if s >= calibration.threshold]


def box_pictures(count: int = 60) -> tuple[list[list[FoundObject]], list[ReferenceImage]]:
    """One true box a picture and two guesses; only the label's probability knows the right one."""
    rng = np.random.default_rng(0)
    found, known = [], []
    for _ in range(count):
        known.append(
            ReferenceImage(
                size_wh=(100, 100),
                objects=(ReferenceObject(label="cat", box_xyxy=(10, 10, 30, 30)),),
            )
        )
        guesses = []
        for box, label in (((10, 10, 30, 30), 0.6), ((60, 60, 90, 90), 0.5)):
            place = np.log(rng.uniform(0.1, 0.9, 4)).tolist()
            factors = (1.0, label, float(rng.uniform(0.1, 0.9)))
            guesses.append(
                FoundObject(
                    label="cat",
                    box_xyxy=box,
                    score=math.prod(factors),
                    coordinate_logprobs=tuple(place),
                    label_logprobs=(math.log(label),),
                    factors=factors,
                )
            )
        found.append(guesses)
    return found, known


def test_the_formula_that_knows_wins_and_the_one_in_use_differs_by_nothing() -> None:
    pytest.importorskip("faster_coco_eval")
    found, known = box_pictures()
    rows = {row.name: row for row in compare_formulas(found, known, num_resamples=50)}
    assert rows.keys() == FORMULAS.keys()
    assert rows["label"].box_map == pytest.approx(1.0)
    assert rows["label"].interval is not None
    assert rows["label"].interval.low > 0
    assert rows["coordinates"].difference < 0
    same = rows["existence * label * coordinates"]
    assert same.difference == pytest.approx(0.0, abs=1e-12)
    assert same.interval is not None
    assert max(abs(same.interval.low), abs(same.interval.high)) < 1e-12


def test_formulas_need_the_tokens_probabilities() -> None:
    bare = FoundObject(label="cat", box_xyxy=(0, 0, 1, 1), score=0.5)
    with pytest.raises(DataError, match="no factors"):
        compare_formulas([[bare]], [ReferenceImage(size_wh=(9, 9), objects=())])


def test_boxes_are_outcomes_one_truth_one_box() -> None:
    pytest.importorskip("faster_coco_eval")
    found, known = box_pictures(3)
    found[0].append(dataclasses.replace(found[0][0], score=0.01))
    outcomes = box_outcomes(found, known)
    assert outcomes.correct.sum() == 3
    assert len(outcomes.scores) == 7
    assert outcomes.num_true.tolist() == [1, 1, 1]
    assert outcomes.correct[outcomes.scores == 0.01].tolist() == [0.0]


def test_the_diagram_is_one_svg_with_a_bar_for_each_bin() -> None:
    pytest.importorskip("matplotlib")
    calibration = one_calibration()
    svg = calibration.diagram()
    num_bins = len(calibration.bins_before) + len(calibration.bins_after)
    assert svg.count("fill: #8ab6d6") == num_bins
    assert f"{calibration.ece_after:.3f}" in "".join(ElementTree.fromstring(svg).itertext())


def test_a_box_under_a_label_that_is_nowhere_true_is_wrong() -> None:
    pytest.importorskip("faster_coco_eval")
    known = [
        ReferenceImage(size_wh=(40, 40), objects=(ReferenceObject(label="cat", box_xyxy=BOX),))
    ]
    found = [[FoundObject(label=name, box_xyxy=BOX, score=0.5) for name in ("cat", "unicorn")]]
    outcomes = box_outcomes(found, known)
    assert sorted(outcomes.correct.tolist()) == [0.0, 1.0]
    assert outcomes.num_true.tolist() == [1]
