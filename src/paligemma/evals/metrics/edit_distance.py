"""Metrics on the Levenshtein distance of texts: ANLS, error rates, normalized edit distance.

The distance is computed by rapidfuzz (extra "eval").
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from paligemma.errors import MissingExtraError
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair

Unit = Literal["character", "word", "symbol", "line"]
_NAMES: dict[Unit, str] = {"character": "cer", "word": "wer", "symbol": "ser", "line": "ler"}


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The smallest number of insertions, deletions and replacements (1 each) between two sequences.

    Texts are compared by code point: a letter with a combining accent counts as two.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise MissingExtraError("rapidfuzz", "eval", "An edit distance") from error
    return int(Levenshtein.distance(first, second))


def normalized_edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Edit distance divided by the longer length, 0..1; 0 for two empty sequences."""
    longer = max(len(first), len(second))
    return edit_distance(first, second) / longer if longer else 0.0


@dataclass(frozen=True, kw_only=True)
class Anls:
    """Average normalized Levenshtein similarity, of DocVQA, InfoVQA and ST-VQA.

    Biten et al. 2019, arXiv 1907.00490, equation 1: 1 - d for the reference at the smallest
    normalized distance d (edit distance divided by the longer length), and 0 where d is not below
    0.5. Texts are compared in lower case, with white space stripped and runs of it collapsed, as
    the competitions' server does; `ignore_case=False` keeps the case.
    """

    threshold: float = 0.5
    ignore_case: bool = True

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            prediction = self._normal(prediction)
            scores.append(
                max(self._similarity(prediction, self._normal(text)) for text in accepted)
            )
        return mean_result("anls", scores)

    def _similarity(self, prediction: str, reference: str) -> float:
        distance = normalized_edit_distance(prediction, reference)
        return 1.0 - distance if distance < self.threshold else 0.0

    def _normal(self, text: str) -> str:
        text = " ".join(text.split())
        return text.lower() if self.ignore_case else text


@dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """Number of edits divided by the length of the references; 0 is best, with no upper end.

    Units: characters (CER), words (WER), symbols (SER) and lines (LER). The last two are for music
    in **kern and split it as the evaluation of the Sheet Music Transformer does (Rios-Vila et al.
    2024, arXiv 2402.07596): symbols are separated by spaces, and each tab and line break is a
    symbol too.

    Nothing is normalized: case, punctuation, accents and, except for words, white space count.
    Words are separated by white space. `average="pooled"` divides the sum of edits by the sum of
    lengths (the usual corpus rate); `"examples"` is the mean of the examples' rates. `details`
    holds both. An empty reference has rate 0 if the prediction is empty too, and otherwise one
    error per unit of the prediction.
    """

    unit: Unit = "character"
    average: Literal["pooled", "examples"] = "pooled"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """References: exactly one per example."""
        rates, edits, lengths = [], 0, 0
        for prediction, (reference,) in pair(predictions, references, single=True):
            true_units = self._units(reference)
            distance = edit_distance(self._units(prediction), true_units)
            rates.append(distance / max(1, len(true_units)))
            edits += distance
            lengths += len(true_units)
        both = {
            "pooled": edits / max(1, lengths),
            "examples": math.fsum(rates) / len(rates),
        }
        return MetricResult(
            name=_NAMES[self.unit],
            value=both[self.average],
            per_example=tuple(rates),
            details=both,
            higher_is_better=False,
        )

    def _units(self, text: str) -> Sequence[Hashable]:
        if self.unit == "character":
            return text
        if self.unit == "word":
            return text.split()
        if not text:
            return ()
        if self.unit == "line":
            return text.split("\n")
        return text.replace("\n", " \n ").replace("\t", " \t ").split(" ")


@dataclass(frozen=True, kw_only=True)
class NormalizedEditDistance:
    """Edit distance of characters divided by the longer length, 0..1; 0 is best.

    Donut's validation figure (Kim et al. 2022, arXiv 2111.15664). No text is normalized; with
    several references the nearest counts.
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        distances = [
            min(normalized_edit_distance(prediction, reference) for reference in accepted)
            for prediction, accepted in pair(predictions, references)
        ]
        return mean_result("normalized_edit_distance", distances, higher_is_better=False)
