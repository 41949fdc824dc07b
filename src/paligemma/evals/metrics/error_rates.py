"""Error rates of transcriptions: edit distance by the length of the truth.

Units: characters (CER), words (WER), symbols (SER) and lines (LER). The last two are for music in
**kern and cut it as the evaluation of the Sheet Music Transformer does (Rios-Vila et al. 2024,
arXiv 2402.07596): symbols are what spaces separate, and each tab and each line break is a symbol
too. 0 is best and there is no upper end.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from paligemma.evals.metrics.edit_distance import edit_distance, normalized_edit_distance
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair

Unit = Literal["character", "word", "symbol", "line"]
_NAMES: dict[Unit, str] = {"character": "cer", "word": "wer", "symbol": "ser", "line": "ler"}


@dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """Edits needed by the length of the references, over the whole set.

    Nothing is normalised: case, punctuation, accents and, but for words, white space count. A word
    is what white space separates. `average="pooled"` divides the sum of edits by
    the sum of lengths (the usual corpus rate); `"examples"` is the mean of the rates of the
    examples. `details` holds both. An empty reference has rate 0 if the prediction is empty too,
    and otherwise one error for each unit that was written.
    """

    unit: Unit = "character"
    average: Literal["pooled", "examples"] = "pooled"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """References: exactly one an example."""
        rates, edits, lengths = [], 0, 0
        for prediction, (reference,) in pair(predictions, references, single=True):
            wanted = self._units(reference)
            distance = edit_distance(self._units(prediction), wanted)
            rates.append(distance / max(1, len(wanted)))
            edits += distance
            lengths += len(wanted)
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
    """Edit distance of characters by the longer of prediction and truth, 0..1; 0 is best.

    Donut's validation figure (Kim et al. 2022, arXiv 2111.15664). Nothing is normalised; with
    several references the nearest counts.
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        distances = [
            min(normalized_edit_distance(prediction, reference) for reference in accepted)
            for prediction, accepted in pair(predictions, references)
        ]
        return mean_result("normalized_edit_distance", distances, higher_is_better=False)
