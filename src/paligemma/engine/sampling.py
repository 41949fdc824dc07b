"""Ways to choose the next token: small frozen values that one passes to the loop.

Knows logits and random numbers; knows no model and no text. Every row draws from its own
generator, seeded from (seed, row number), and one uniform number a token is all that `choose`
draws: a row's sample depends neither on its batch mates nor on the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paligemma.errors import OptionError

# B batch, V vocabulary


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A random token, by probability.

    `temperature` divides the logits: 1 keeps the model's distribution, 0 is greedy: the likeliest
    token, among equals the one of the lowest id. `top_k` keeps the k likeliest tokens; of these,
    `top_p` keeps the fewest whose probabilities together reach p (at least one). Equal seeds give
    equal samples.

    Raises OptionError for a value out of range.

    >>> Sampling(temperature=0.7, top_p=0.9, seed=3)
    Sampling(temperature=0.7, top_k=None, top_p=0.9, seed=3)
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise OptionError(
                f"temperature is {self.temperature!r}; it must be a finite number of at least 0. "
                "0 takes the likeliest token each time."
            )
        if self.top_k is not None and (not _is_whole(self.top_k) or self.top_k < 1):
            raise OptionError(
                f"top_k is {self.top_k!r}; it must be a whole number of at least 1. "
                "Leave it out to keep all tokens."
            )
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 <= self.top_p <= 1):
            raise OptionError(
                f"top_p is {self.top_p!r}; it must be a number between 0 and 1. "
                "Leave it out to keep all tokens."
            )
        if not _is_whole(self.seed) or self.seed < 0:
            raise OptionError(f"seed is {self.seed!r}; it must be a whole number of at least 0.")


GREEDY = Sampling(temperature=0.0)


def row_generator(sampler: Sampling, row_number: int) -> torch.Generator:
    """The source of randomness of one row; a hash, so that near seeds are not near streams."""
    digest = hashlib.blake2b(f"{sampler.seed}/{row_number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def choose(logits: Tensor, sampler: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """One token a row: float32[B, V] -> int64[B].

    A logit of -inf is a banned token. A row with NaN, or without any finite logit, gets some id
    all the same, for the caller knows such rows and ends them.
    """
    if sampler.temperature == 0:
        return logits.argmax(dim=1)
    probabilities, order = _kept(logits, sampler)
    place = draw(probabilities, generators)
    return (place if order is None else order.gather(1, place[:, None])[:, 0]).to(logits.device)


def distribution(logits: Tensor, sampler: Sampling) -> Tensor:
    """What `choose` draws from, if not greedy: float32[B, V] -> float64[B, V], of sum 1 a row."""
    kept, order = _kept(logits, sampler)
    kept = kept / kept.sum(dim=1, keepdim=True)
    if order is None:
        return kept
    return kept.new_zeros(logits.shape).scatter(1, order, kept)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """A column a row, by float64[B, N] probabilities of any sum: int64[B]."""
    # Inverse transform sampling: the first token at which the cumulated probability passes a
    # uniform number.
    uniform = [torch.rand((), dtype=torch.float64, generator=g).item() for g in generators]
    cumulated = probabilities.nan_to_num(0.0).cumsum(dim=1)
    target = torch.tensor(uniform, dtype=torch.float64, device=cumulated.device)
    target = target[:, None] * cumulated[:, -1:]
    place = torch.searchsorted(cumulated, target, right=True).clamp_max(cumulated.shape[1] - 1)
    return place[:, 0]


def _kept(logits: Tensor, sampler: Sampling) -> tuple[Tensor, Tensor | None]:
    """Probabilities of what the sampler keeps, and the ids of their columns unless all in order."""
    # In float64, as a sum over 257 thousand float32 terms drifts.
    exact = logits.cpu() if logits.device.type == "mps" else logits
    exact = exact.double()
    # The maximum goes first, so that a tiny temperature gives zeros and not inf - inf.
    scaled = (exact - exact.max(dim=1, keepdim=True).values) / sampler.temperature
    order = None
    if sampler.top_k is not None:
        # Sorted even when k keeps all: then banned tokens, which come last, change no sample.
        scaled, order = scaled.topk(min(sampler.top_k, logits.shape[1]), dim=1)
    elif sampler.top_p is not None:
        scaled, order = scaled.sort(dim=1, descending=True, stable=True)
    probabilities = torch.softmax(scaled, dim=1)
    if sampler.top_p is not None:
        before = probabilities.cumsum(dim=1) - probabilities
        before[:, 0] = -1.0  # the likeliest token always stays
        probabilities = probabilities.masked_fill(before >= sampler.top_p, 0.0)
    return probabilities, order


def logprobs_of(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probabilities of int64[B] tokens under float32[B, V] logits: float32[B]."""
    return torch.log_softmax(logits, dim=1).gather(1, token_ids[:, None])[:, 0]
