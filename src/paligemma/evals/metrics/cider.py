"""CIDEr-D, the consensus score of captions, as pycocoevalcap computes it.

Vedantam et al. 2015, arXiv 1411.5726, section 5: cosine of tf-idf vectors of 1- to 4-grams, counts
clipped to the reference's, a Gaussian penalty on the difference in length (sigma 6), times 10.
Document frequencies come from the references of the very set that is scored, so the score of one
caption depends on the whole set, and a set of one has no score but 0.

The value is 1.42 where papers print 142. It stands above 1 for good captions; 10 is the most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.evals.metrics.ptb import TextForm, words_of
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair

_MAX_ORDER = 4
_SIGMA = 6.0

NGram = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cider:
    """CIDEr-D of each caption against all its references; the value is the mean.

    `text="ptb"` makes words as the official tokenizer does (lower case, punctuation away);
    `text="split"` takes what white space separates, as it is.
    """

    text: TextForm = "ptb"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        pairs = pair(predictions, references)
        guesses = [_count_ngrams(words_of(guess, self.text)) for guess, _ in pairs]
        truths = [
            [_count_ngrams(words_of(r, self.text)) for r in accepted] for _, accepted in pairs
        ]
        frequency: Counter[NGram] = Counter()
        for of_one in truths:
            frequency.update({ngram for reference in of_one for ngram in reference})
        # log of the number of pictures over the number whose references have the n-gram
        log_pictures = math.log(len(pairs))
        rarity = {ngram: log_pictures - math.log(count) for ngram, count in frequency.items()}

        scores = []
        for guess, of_one in zip(guesses, truths, strict=True):
            vector = _Vector(guess, rarity, log_pictures)
            total = sum(
                vector.similarity(_Vector(reference, rarity, log_pictures)) for reference in of_one
            )
            scores.append(10.0 * total / len(of_one))
        return mean_result("cider", scores)


class _Vector:
    """The tf-idf vectors of one caption, one for each n."""

    def __init__(
        self, counts: Counter[NGram], rarity: dict[NGram, float], unseen_rarity: float
    ) -> None:
        self.weights: list[dict[NGram, float]] = [{} for _ in range(_MAX_ORDER)]
        for ngram, count in counts.items():
            self.weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen_rarity)
        self.norms = [math.sqrt(math.fsum(w * w for w in part.values())) for part in self.weights]
        # The official code takes the number of 2-grams for the length.
        self.length = sum(count for ngram, count in counts.items() if len(ngram) == 2)

    def similarity(self, reference: _Vector) -> float:
        """Mean over n of the clipped cosine, with the penalty on length, 0..1."""
        penalty = math.exp(-((self.length - reference.length) ** 2) / (2 * _SIGMA**2))
        total = 0.0
        for own, other, own_norm, other_norm in zip(
            self.weights, reference.weights, self.norms, reference.norms, strict=True
        ):
            dot = math.fsum(
                min(weight, other[ngram]) * other[ngram]
                for ngram, weight in own.items()
                if ngram in other
            )
            if own_norm and other_norm:
                total += dot / (own_norm * other_norm)
        return total / _MAX_ORDER * penalty


def _count_ngrams(words: Sequence[str]) -> Counter[NGram]:
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, _MAX_ORDER + 1)
        for start in range(len(words) - n + 1)
    )
