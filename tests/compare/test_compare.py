"""Whole comparisons: the figures are those of `eval`, and answers are kept and resumed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paligemma
from paligemma.batch.journal import Journal
from paligemma.compare import CompareOptions, McNemar, compare_models
from paligemma.compare.comparison import Comparison
from paligemma.compare.quality import compare_right, right_of
from paligemma.data import open_data
from paligemma.errors import DataError, ImageError, OptionError
from paligemma.evals import evaluate
from paligemma.evals.metrics.result import mean_result


@pytest.fixture(scope="module")
def compared(labeled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """mini and int8 of it on labeled data, through processes of their own."""
    out = tmp_path_factory.mktemp("compared")
    return compare_models(labeled, ["mini", "mini@int8"], out), out


def test_scores_and_intervals_are_those_of_eval(
    compared: tuple[Comparison, Path], labeled: Path, tmp_path: Path
) -> None:
    comparison, _ = compared
    evaluation = evaluate(
        paligemma.load("mini"), open_data(labeled, purpose="test"), tmp_path / "scores"
    )
    ours = {
        (quality.task, quality.result.name): quality
        for quality in comparison.qualities
        if quality.contestant == "mini"
    }
    assert len(evaluation.scores) == 4
    for score in evaluation.scores:
        quality = ours[score.task, score.result.name]
        assert quality.result.to_dict() == score.result.to_dict()
        assert quality.interval == score.interval
        assert quality.num_records == score.num_records


def test_each_contestant_has_time_memory_and_tokens(compared: tuple[Comparison, Path]) -> None:
    comparison, out = compared
    assert comparison.is_complete
    for row in comparison.rows:
        assert (row.num_answered, row.num_failed, row.failure) == (12, 0, None)
        assert row.seconds is not None
        assert row.peak_bytes is not None
        assert row.load_seconds is not None
        assert row.mean_tokens is not None
        assert 0 < row.seconds.median <= row.seconds.p95 < row.seconds.total
        assert 2**27 < row.peak_bytes < 2**32
        assert row.load_seconds > 0
        assert row.mean_tokens > 1
    assert comparison.rows[1].info["quantization"] == "int8"
    report = json.loads((out / "report.json").read_text())
    assert report["num_records"] == 12
    assert {score["contestant"] for score in report["scores"]} == {"mini", "mini@int8"}
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert lines[0]["answers"]["mini"]["asked"].startswith("answer en how many")


def test_a_second_run_asks_nobody(
    compared: tuple[Comparison, Path], labeled: Path, in_process: list[str]
) -> None:
    comparison, out = compared
    before = (out / "answers.jsonl").read_bytes()
    again = compare_models(labeled, ["mini", "mini@int8"], out)
    assert in_process == []
    assert (out / "answers.jsonl").read_bytes() == before
    assert again.differences == comparison.differences
    compare_models(labeled, ["mini"], out, CompareOptions(metrics=("cer",)))
    assert in_process == []


def test_other_settings_are_never_mixed_into_old_answers(
    compared: tuple[Comparison, Path], labeled: Path, in_process: list[str]
) -> None:
    _, out = compared
    with pytest.raises(OptionError, match="before a change of max_new_tokens"):
        compare_models(labeled, ["mini"], out, CompareOptions(max_new_tokens=3))
    assert in_process == []


def test_a_changed_image_is_asked_about_again(
    scenes: Path, tmp_path: Path, in_process: list[str]
) -> None:
    picture = tmp_path / "0.png"
    picture.write_bytes((scenes / "0.png").read_bytes())
    options = CompareOptions(caption=True)
    first = compare_models(picture, ["mini"], tmp_path / "out", options)
    picture.write_bytes((scenes / "1.png").read_bytes())
    second = compare_models(picture, ["mini"], tmp_path / "out", options)
    assert in_process == ["mini", "mini"]
    texts = [c.answers[0].replies[str(picture)].prediction.text for c in (first, second)]
    assert texts[0] != texts[1]


def test_without_truth_there_is_agreement_and_a_majority(
    scenes: Path, tmp_path: Path, in_process: list[str]
) -> None:
    images = [str(path) for path in sorted(scenes.glob("*.png"))[:2]]
    recorded = tmp_path / "said.jsonl"
    lines = [
        {"image": "0.png", "question": "how many objects are there?", "text": "Seven."},
        {"image": "1.png", "question": "how many objects are there?", "text": "seven"},
    ]
    recorded.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = tmp_path / "other.jsonl"
    other.write_text(recorded.read_text().replace("even", "EVEN"))
    comparison = compare_models(
        images,
        ["mini", str(recorded), str(other)],
        tmp_path / "out",
        CompareOptions(ask=("how many objects are there?",)),
    )
    assert comparison.qualities == ()
    [agreement] = comparison.agreements
    assert agreement.same[1][2] == agreement.similarity[1][2] == 1.0
    assert agreement.same[0][1] == 0.0
    majority = comparison.majorities[images[0]]
    assert (majority.text, majority.count, majority.of) == ("Seven.", 2, 3)
    assert comparison.disagreements[images[0]] == pytest.approx(2 / 3)


def test_a_contestant_who_fails_costs_nobody_else_an_answer(
    scenes: Path, tmp_path: Path, in_process: list[str]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "mini"}))
    comparison = compare_models(
        scenes / "0.png", [str(adapter), "mini"], tmp_path / "out", CompareOptions(caption=True)
    )
    failed, mini = comparison.rows
    assert failed.failure is not None
    assert str(adapter) in failed.failure
    assert (failed.num_answered, mini.num_answered) == (0, 1)
    assert not comparison.is_complete


def test_an_image_that_cannot_be_read_is_told_and_left_out(
    scenes: Path, tmp_path: Path, in_process: list[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes((scenes / "0.png").read_bytes()[:90])
    comparison = compare_models(
        [bad, scenes / "0.png"], ["mini"], tmp_path / "out", CompareOptions(caption=True)
    )
    assert [record.record_id for record in comparison.bad] == [str(bad)]
    assert comparison.rows[0].num_answered == 1
    with pytest.raises(DataError, match="None of the images can be read"):
        compare_models(bad, ["mini"], tmp_path / "out", CompareOptions(caption=True))


def test_what_is_wrong_is_told_before_anybody_is_asked(
    scenes: Path, labeled: Path, tmp_path: Path, in_process: list[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(OptionError, match="no question"):
        compare_models([labeled, labeled], ["mini"], out)
    with pytest.raises(ImageError, match="does not exist"):
        compare_models("nowhere.png", ["mini"], out, CompareOptions(caption=True))
    with pytest.raises(OptionError, match="There is no metric"):
        compare_models(labeled, ["mini"], out, CompareOptions(metrics=("accuracy",)))
    twice = [scenes / "0.png", scenes / "0.png"]
    with pytest.raises(OptionError, match="named twice"):
        compare_models(twice, ["mini"], out, CompareOptions(caption=True))
    assert in_process == []


def test_errors_are_kept_until_they_are_asked_again(
    scenes: Path, tmp_path: Path, in_process: list[str]
) -> None:
    name = "openai:gpt@http://127.0.0.1:9/v1"
    options: dict[str, Any] = {"segment": "frog"}  # which chat models are not asked
    out = tmp_path / "out"
    comparison = compare_models(scenes / "0.png", [name], out, CompareOptions(**options))
    assert "not asked to segment" in str(comparison.rows[0].first_error)
    compare_models(scenes / "0.png", [name], out, CompareOptions(**options))
    assert in_process == [name]
    compare_models(scenes / "0.png", [name], out, CompareOptions(**options, retry_failed=True))
    assert in_process == [name, name]
    [folder] = (out / "answers").iterdir()
    assert len(list(Journal.read(folder).entries())) == 2


def test_paired_intervals_are_those_of_differences_on_the_same_resamples() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    first, second = (hard < 0.6).astype(float), (hard < 0.5).astype(float)
    from paligemma.evals.bootstrap import interval_of, mean_of, resampled

    differences = resampled(mean_of(first), 200) - resampled(mean_of(second), 200)
    direct = resampled(mean_of(first - second), 200)
    assert np.allclose(differences, direct)
    interval = interval_of(differences, float((first - second).mean()))
    assert interval is not None
    # sqrt(p (1 - p) / n) of the share of records that only the first has right
    share = float((first - second).mean())
    half = 1.96 * math.sqrt(share * (1 - share) / 200)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.15)


def test_mcnemar_is_the_binomial_test_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for first, second in ((0, 0), (1, 0), (3, 9), (10, 10), (40, 90), (1500, 1400)):
        ours = McNemar(first_only=first, second_only=second, both=3, neither=2).p_value
        theirs = stats.binomtest(first, first + second).pvalue if first + second else 1.0
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_right_answers_are_counted_where_a_metric_says_what_is_right() -> None:
    exact = right_of(mean_result("exact_match", [1.0, 0.0, 1.0]))
    errors = right_of(mean_result("cer", [0.0, 0.5, 0.0], higher_is_better=False))
    assert exact == errors == (True, False, True)
    assert right_of(mean_result("cider", [1.0, 0.5, 0.0])) is None
    assert right_of(mean_result("box_map", [1.0, 0.9, math.nan])) == (True, False, None)
    assert asdict(compare_right([True, True, False, None], [True, False, False, True])) == {
        "first_only": 1,
        "second_only": 0,
        "both": 1,
        "neither": 1,
    }
