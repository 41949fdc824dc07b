"""Exact match, and the relaxed accuracy of ChartQA.

Relaxed: Masry et al. 2022, arXiv 2203.10244, section 5.1 (after Methani et al. 2020), in the form
that PaliGemma was evaluated with: big_vision's evaluators/proj/paligemma/transfers/chartqa.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """1 where the prediction equals one of the references.

    Nothing is normalised, but for what is asked: the case of letters, white space (ends stripped,
    runs made one space).
    """

    ignore_case: bool = False
    collapse_space: bool = False

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            wanted = {self._normal(reference) for reference in accepted}
            scores.append(float(self._normal(prediction) in wanted))
        return mean_result("exact_match", scores)

    def _normal(self, text: str) -> str:
        if self.collapse_space:
            text = " ".join(text.split())
        return text.lower() if self.ignore_case else text


@dataclass(frozen=True, kw_only=True)
class RelaxedAccuracy:
    """1 where a number is within 5 % of the reference, and a text equals it.

    "12%" is 0.12, so it does not equal "12". A reference of 0, or one that is no number, must be
    met exactly, as texts. Thousands commas and units make a text, not a number. `ignore_case` (on,
    as PaliGemma's ChartQA evaluation has it) compares texts in lower case. `details` has the share
    of exact matches.
    """

    tolerance: float = 0.05
    ignore_case: bool = True

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores, exact = [], 0
        for prediction, accepted in pair(predictions, references):
            if self.ignore_case:
                prediction, accepted = prediction.lower(), tuple(a.lower() for a in accepted)
            scores.append(float(any(self._matches(prediction, a) for a in accepted)))
            exact += prediction in accepted
        return mean_result("relaxed_accuracy", scores, {"exact_match": exact / len(scores)})

    def _matches(self, prediction: str, reference: str) -> bool:
        guess, truth = _number(prediction), _number(reference)
        if guess is None or not truth:
            return prediction == reference
        return abs(guess - truth) / abs(truth) <= self.tolerance


def _number(text: str) -> float | None:
    """The number that a text says, or None; "nan" and "inf" are texts, not numbers."""
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
