"""ANLS and edit distances, against outside vectors and by hand."""

import json
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import MissingExtraError
from paligemma.evals.metrics.texts import Anls, edit_distance, normalized_edit_distance

pytest.importorskip("rapidfuzz", reason="the eval extra is not installed")

TEXTS = st.text(st.sampled_from("ab é日"), max_size=8)


def anls(prediction: str, *references: str) -> float:
    return Anls().score([prediction], [references]).value


def test_outside_vectors(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "metrics" / "anls.json").read_text())
    for case in vectors["cases"]:
        # Printed with two digits.
        assert anls(case["prediction"], *case["gold"]) == pytest.approx(case["anls"], abs=0.005)
    for case in vectors["similarity_1_minus_NL"]:
        distance = normalized_edit_distance(case["prediction"].lower(), case["to"].lower())
        assert 1 - distance == pytest.approx(case["value"], abs=0.005)


def test_values_by_hand() -> None:
    assert anls("abcd", "abcx") == 0.75
    assert anls("ab", "xb") == 0.0  # a distance of exactly one half is too far
    assert anls("abc", "xbc") == pytest.approx(2 / 3)
    assert anls(" Straße  7\n", "STRASSE 7", "straße 7") == 1.0
    assert anls("", "") == 1.0
    assert anls("", "a") == anls("a", "") == 0.0
    assert Anls(ignore_case=False).score(["Ab"], ["ab"]).value == 0.0
    assert Anls(threshold=0.9).score(["ab"], ["xb"]).value == 0.5


@settings(deadline=None, derandomize=True)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), st.randoms())
def test_the_order_of_references_is_of_no_account(
    prediction: str, references: list[str], rng: random.Random
) -> None:
    shuffled = rng.sample(references, len(references))
    assert anls(prediction, *references) == anls(prediction, *shuffled)
    assert anls(prediction, *references, prediction) == 1.0


@settings(deadline=None, derandomize=True)
@given(TEXTS, TEXTS, TEXTS)
def test_the_edit_distance_is_a_distance(first: str, second: str, third: str) -> None:
    assert edit_distance(first, second) == edit_distance(second, first)
    assert (edit_distance(first, second) == 0) == (first == second)
    way_round = edit_distance(first, third) + edit_distance(third, second)
    assert edit_distance(first, second) <= way_round
    assert 0.0 <= normalized_edit_distance(first, second) <= 1.0


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paligemma\[eval\]'"):
        anls("a", "b")
