"""ANLS: average normalised Levenshtein similarity, of DocVQA, InfoVQA and ST-VQA.

Biten et al. 2019, arXiv 1907.00490, equation 1: 1 - d for the reference at the smallest
normalised distance d (edit distance by the longer length), and 0 where d is not below 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.evals.metrics.edit_distance import normalized_edit_distance
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair


@dataclass(frozen=True, kw_only=True)
class Anls:
    """Compared in lower case, ends stripped, runs of white space made one space.

    That is the normal form of the competitions' server; `ignore_case=False` keeps the case.
    """

    threshold: float = 0.5
    ignore_case: bool = True

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            guess = self._normal(prediction)
            scores.append(max(self._similarity(guess, self._normal(text)) for text in accepted))
        return mean_result("anls", scores)

    def _similarity(self, prediction: str, reference: str) -> float:
        distance = normalized_edit_distance(prediction, reference)
        return 1.0 - distance if distance < self.threshold else 0.0

    def _normal(self, text: str) -> str:
        text = " ".join(text.split())
        return text.lower() if self.ignore_case else text
