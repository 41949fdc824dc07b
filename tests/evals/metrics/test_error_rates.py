"""Error rates, against outside vectors and by hand."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.evals.metrics.texts import ErrorRate, NormalizedEditDistance, Unit

pytest.importorskip("rapidfuzz", reason="the eval extra is not installed")

PAIRS = st.lists(st.tuples(st.text("ab \n", max_size=6), st.text("ab \n", max_size=6)), min_size=1)


def rate(unit: Unit, prediction: str, reference: str) -> float:
    return ErrorRate(unit=unit).score([prediction], [reference]).value


def test_handwriting_lines_of_another_evaluation(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "metrics" / "cer_wer_handwriting.json").read_text())
    lines = vectors["samples"]
    predictions = [line["prediction"] for line in lines]
    references = [line["ground_truth"] for line in lines]
    units: dict[str, Unit] = {"cer": "character", "wer": "word"}
    for key, unit in units.items():
        result = ErrorRate(unit=unit, average="examples").score(predictions, references)
        expected = [line[key] / 100 for line in lines]
        assert result.per_example == pytest.approx(expected, abs=1e-12)
        assert result.value == pytest.approx(vectors[f"subset_mean_{key}"] / 100, abs=1e-12)


def test_pooled_rates_of_another_evaluation(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "metrics" / "text_misc.json").read_text())["torchmetrics"]
    units: dict[str, Unit] = {"CharErrorRate": "character", "WordErrorRate": "word"}
    cases = [case for case in vectors if case["metric"] in units]
    assert len(cases) == 2
    for case in cases:
        result = ErrorRate(unit=units[case["metric"]]).score(case["preds"], case["target"])
        assert result.value == pytest.approx(case["value"], abs=5e-5)  # printed with four digits


def test_distances_of_document_parsing(shared_data: Path) -> None:
    path = shared_data / "metrics" / "donut_normed_edit_distance.json"
    cases = json.loads(path.read_text())["cases"]
    result = NormalizedEditDistance().score(
        [case["prediction"] for case in cases], [case["answer"] for case in cases]
    )
    expected = [case["normed_edit_distance"] for case in cases]
    assert result.per_example == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("unit", "prediction", "reference", "expected"),
    [
        ("character", "abcd", "abxd", 1 / 4),
        ("character", "naïve", "naive", 1 / 5),
        ("character", "日本", "日本語", 1 / 3),
        ("character", "abc", "", 3.0),
        ("character", "", "abc", 1.0),
        ("character", "", "", 0.0),
        ("word", "the  cat\nsat", "the cat sat", 0.0),
        ("word", "cat", "the cat sat", 2 / 3),
        ("line", "a b\nc", "a x\nc", 1 / 2),
        ("line", "a\nb\nc", "a\nc", 1 / 2),
        ("symbol", "4c\t4e\n4d", "4c\t4e\n4f", 1 / 5),  # tab and line break are symbols
        ("symbol", "4c 4e", "4c\t4e", 1 / 3),
        ("line", "", "a\nb", 1.0),
    ],
)
def test_rates_by_hand(unit: Unit, prediction: str, reference: str, expected: float) -> None:
    assert rate(unit, prediction, reference) == pytest.approx(expected)


def test_pooled_and_mean_rates_differ_as_defined() -> None:
    result = ErrorRate().score(["ab", "abcd"], ["xb", "abcd"])
    assert result.per_example == (0.5, 0.0)
    assert result.value == pytest.approx(1 / 6)
    assert result.details == pytest.approx({"pooled": 1 / 6, "examples": 1 / 4})
    assert not result.higher_is_better
    assert ErrorRate(average="examples").score(["ab", "abcd"], ["xb", "abcd"]).value == 0.25


def test_an_error_rate_takes_one_reference() -> None:
    with pytest.raises(DataError, match="defined for one"):
        ErrorRate().score(["a"], [["a", "b"]])


@settings(deadline=None, derandomize=True)
@given(PAIRS, st.sampled_from(["character", "word", "symbol", "line"]), st.randoms())
def test_the_order_of_examples_is_of_no_account(
    pairs: list[tuple[str, str]], unit: Unit, rng: random.Random
) -> None:
    shuffled = rng.sample(pairs, len(pairs))
    scores = [
        ErrorRate(unit=unit).score([p for p, _ in some], [r for _, r in some])
        for some in (pairs, shuffled)
    ]
    assert scores[0].value == scores[1].value
    assert sorted(scores[0].per_example) == sorted(scores[1].per_example)
    perfect = ErrorRate(unit=unit).score([r for _, r in pairs], [r for _, r in pairs])
    assert perfect.value == 0.0
