"""VQA accuracy is the official one, and so is the normal form of answers."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.evals.metrics.texts import (
    DirectAnswerAccuracy,
    VqaAccuracy,
    normalize_answer,
)

ANSWERS = st.lists(st.sampled_from(["yes", "no", "a dog", "dog", "2", "two"]), min_size=2)


def accuracy(prediction: str, *answers: str) -> float:
    return VqaAccuracy().score([prediction], [answers]).value


def test_answers_score_as_the_official_code_scores_them(shared_data: Path) -> None:
    cases = json.loads((shared_data / "metrics" / "vqa_accuracy.json").read_text())["accuracy"]
    result = VqaAccuracy().score(
        [case["prediction"] for case in cases], [case["answers"] for case in cases]
    )
    expected = [case["accuracy_percent"] for case in cases]
    assert [100 * score for score in result.per_example] == pytest.approx(expected, abs=1e-9)


def test_the_normal_form_is_the_official_one(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "metrics" / "vqa_accuracy.json").read_text())
    for case in vectors["normalise"]:
        assert normalize_answer(case["in"]) == case["out"]
    # The other processor of these vectors agrees but where it splits off "'s".
    for text, expected in vectors["mmf_evalai_processor"]["cases"]:
        if "'s" not in text:
            assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Dont", "don't"),
        ("couldn'tve been", "couldn't've been"),
        ("twas an owl", "'twas owl"),
        ("somebody'd", "somebodyd"),
        ("its", "its"),  # a word of its own
        ("1,000-2", "10002"),  # a comma in a number makes every mark vanish
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("5.", "5"),
        ("", ""),
        ("Ça, été", "ça été"),
    ],
)
def test_normal_forms_by_hand(answer: str, normal: str) -> None:
    assert normalize_answer(answer) == normal


def test_accuracies_by_hand() -> None:
    # Three of ten: leaving one of the three out gives 2/3, leaving another out gives 1.
    assert accuracy("x", *"xxx", *"yyyyyyy") == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert accuracy("x", *"x", *"yyyyyyyyy") == pytest.approx(0.9 / 3)
    assert accuracy("THE x!", *"xxxx", *"yyyyyy") == 1.0
    assert accuracy("X", *"xxxxxxxxxx") == 0.0  # all agree: taken literally
    assert accuracy(" x\n", *"xxxxxxxxxx") == 1.0
    assert accuracy("x", "x") == 1.0


@settings(deadline=None, derandomize=True)
@given(ANSWERS, st.sampled_from(["yes", "Yes.", "dog", "the dog", "2"]), st.randoms())
def test_the_order_of_annotators_is_of_no_account(
    answers: list[str], prediction: str, rng: random.Random
) -> None:
    shuffled = rng.sample(answers, len(answers))
    assert accuracy(prediction, *answers) == accuracy(prediction, *shuffled)
    assert 0.0 <= accuracy(prediction, *answers) <= 1.0


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_a_normal_form_has_plain_spaces_and_no_capital_ascii(answer: str) -> None:
    normal = normalize_answer(answer)
    assert normal == " ".join(normal.split())
    assert not any("A" <= letter <= "Z" for letter in normal)


def test_direct_answers_count_matches_without_leaving_anyone_out() -> None:
    result = DirectAnswerAccuracy().score(
        ["a", "a", "A", "a"], [["a", "b", "a"], ["a"], ["a"], ["b", "c"]]
    )
    assert result.per_example == pytest.approx((2 / 3, 1.0, 0.0, 0.0))
    assert result.value == pytest.approx(5 / 12)
    assert result.details == {"any_match": 0.5}
    assert DirectAnswerAccuracy(ignore_case=True).score(["A"], [["a"]]).value == 1.0
