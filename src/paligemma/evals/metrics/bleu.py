"""BLEU-1 to BLEU-4 over a whole set, as pycocoevalcap computes them.

Papineni et al. 2002: geometric mean of the clipped n-gram precisions of the whole set, times a
penalty where the set is shorter than its references (each caption's closest in length). The tiny
terms that keep a precision of zero from failing are those of the official code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.evals.metrics.ptb import TextForm, words_of
from paligemma.evals.metrics.result import MetricResult, References, pair

_SMALL = 1e-9
_TINY = 1e-15


@dataclass(frozen=True, kw_only=True)
class Bleu:
    """BLEU up to `max_order`; the value is that of `max_order`, `details` has `bleu_1` and so on.

    `per_example` is the BLEU of each caption on its own, so its mean is not the value. `text`: see
    Cider.
    """

    max_order: int = 4
    text: TextForm = "ptb"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        pairs = pair(predictions, references)
        parts = []
        for guess, accepted in pairs:
            truths = [words_of(reference, self.text) for reference in accepted]
            parts.append(self._counts(words_of(guess, self.text), truths))
        whole = _Counts(
            matched=[sum(part.matched[n] for part in parts) for n in range(self.max_order)],
            written=[sum(part.written[n] for part in parts) for n in range(self.max_order)],
            length=sum(part.length for part in parts),
            wanted_length=sum(part.wanted_length for part in parts),
        )
        scores = whole.bleu()
        return MetricResult(
            name=f"bleu_{self.max_order}",
            value=scores[-1],
            per_example=tuple(part.bleu()[-1] for part in parts),
            details={f"bleu_{n}": score for n, score in enumerate(scores, 1)},
        )

    def _counts(self, guess: Sequence[str], truths: Sequence[Sequence[str]]) -> _Counts:
        matched, written = [], []
        for n in range(1, self.max_order + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for truth in truths:
                most |= _ngrams(truth, n)
            own = _ngrams(guess, n)
            matched.append((own & most).total())
            written.append(own.total())
        lengths = [len(truth) for truth in truths]
        return _Counts(
            matched=matched,
            written=written,
            length=len(guess),
            wanted_length=min(lengths, key=lambda length: (abs(length - len(guess)), length)),
        )


@dataclass(frozen=True, kw_only=True)
class _Counts:
    matched: list[int]
    written: list[int]
    length: int
    wanted_length: int

    def bleu(self) -> list[float]:
        scores, product = [], 1.0
        ratio = (self.length + _TINY) / (self.wanted_length + _SMALL)
        penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        for n, (matched, written) in enumerate(zip(self.matched, self.written, strict=True), 1):
            product *= (matched + _TINY) / (written + _SMALL)
            scores.append(product ** (1 / n) * penalty)
        return scores


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
