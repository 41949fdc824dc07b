"""How log-probabilities become scores: the one place to change after a calibration.

    p(tokens)        = exp(mean of their log-probabilities), a geometric mean
    text             p(all tokens, the closing EOS too)
    coordinate_score p(the 4 location tokens)
    label_score      p(the label's tokens), 1 without a label
    score            sqrt(coordinate_score * label_score), coordinate_score without a label
    mask_score       p(the 16 mask tokens), kept apart from `score`

Where decoding was held to a grammar, a location or mask token that had to be one has its share
of those that could come, and every other token its probability among the whole vocabulary: a label
that was the only one possible is believed no more for it. A box's first token, before which the
list might have ended, is of the latter kind.

Knows numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_probability(logprobs: Sequence[float]) -> float:
    """exp(mean(logprobs)), at most 1; 1 for no tokens.

    >>> round(mean_probability([math.log(0.5), math.log(0.125)]), 6)
    0.25
    """
    if not logprobs:
        return 1.0
    # Rounding in the softmax can leave a log-probability slightly above zero.
    return min(1.0, math.exp(min(0.0, math.fsum(logprobs) / len(logprobs))))


def object_score(coordinate_score: float, label_score: float, *, has_label: bool) -> float:
    """One number for a box: both its place and its name must be believed.

    >>> round(object_score(0.9, 0.4, has_label=True), 6)
    0.6
    """
    return math.sqrt(coordinate_score * label_score) if has_label else coordinate_score
