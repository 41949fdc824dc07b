"""ROUGE-L of captions and reports, as pycocoevalcap computes it.

Lin 2004 (Text Summarization Branches Out): F-measure of the longest common subsequence of words,
with recall weighted by beta 1.2. Of several references the best precision and the best recall
count, which may come from different ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.evals.metrics.ptb import TextForm, words_of
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair

_BETA_SQUARED = 1.2**2


@dataclass(frozen=True, kw_only=True)
class RougeL:
    """ROUGE-L of each text, 0..1; the value is the mean. `text`: see Cider."""

    text: TextForm = "ptb"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            # An empty text is one empty word to the official code: like another, unlike all else.
            words = words_of(prediction, self.text) or [""]
            precision = recall = 0.0
            for truth in (words_of(reference, self.text) or [""] for reference in accepted):
                common = _longest_common_subsequence(words, truth)
                if common:
                    precision = max(precision, common / len(words))
                    recall = max(recall, common / len(truth))
            weighted = recall + _BETA_SQUARED * precision
            scores.append((1 + _BETA_SQUARED) * precision * recall / weighted if weighted else 0.0)
        return mean_result("rouge_l", scores)


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    best = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for index, other in enumerate(second, 1):
            before, best[index] = (
                best[index],
                before + 1 if word == other else max(best[index], best[index - 1]),
            )
    return best[-1]
