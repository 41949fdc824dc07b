"""What needs a model or people refuses without, and does the arithmetic with them."""

import pytest

from paligemma.errors import OptionError
from paligemma.evals.metrics.hooks import NonEntailmentSentences, RadGraphF1, Verdict


def test_radgraph_says_what_it_needs() -> None:
    with pytest.raises(OptionError, match=r"RadGraph model.*PhysioNet"):
        RadGraphF1().score(["no effusion"], ["no effusion"])


def test_radgraph_f1_is_over_the_facts_that_are_extracted() -> None:
    metric = RadGraphF1(extract=lambda report: report.split())
    result = metric.score(["a b c", "", "x"], ["b c d e", "", "y"])
    assert result.per_example == pytest.approx((4 / 7, 1.0, 0.0))
    assert result.value == pytest.approx((4 / 7 + 1.0) / 3)


def test_nes_says_what_it_needs() -> None:
    with pytest.raises(OptionError, match="verdict of people"):
        NonEntailmentSentences().score(["A cat."])


def test_nes_is_the_share_of_sentences_not_borne_out() -> None:
    verdicts: list[list[Verdict]] = [["entailment", "neutral", "contradiction"], ["entailment"]]
    metric = NonEntailmentSentences(judge=lambda index, text: verdicts[index])
    result = metric.score(["three sentences", "one"])
    assert result.value == 0.5
    assert result.per_example == pytest.approx((2 / 3, 0.0))
    assert not result.higher_is_better
    with pytest.raises(OptionError, match="no verdict"):
        NonEntailmentSentences(judge=lambda index, text: []).score(["A cat."])
