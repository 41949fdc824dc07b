"""How the next token is chosen: sampling, and grammars that restrict it.

Samplers are small frozen values passed to the loop. Every row draws from its own generator, seeded
from (seed, row number), and `choose` draws exactly one uniform number per token: a row's sample
depends neither on the other rows of its batch nor on the device.

A `Constraint` is a state of a grammar over token ids: what may come next. Grammars live with
whoever gives ids their meaning, such as `tasks/object_grammar.py`; they need not import this file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paligemma.errors import OptionError, check_whole

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
                "0 is greedy decoding."
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


# B rows, V vocabulary, or the part of it that logits were computed for

Allowed = range | tuple[int | range, ...] | None
"""Ids that may come next: a range of them, single ids and ranges, or any (None)."""


class Constraint(Protocol):
    """A state of a grammar; states never change, so that one may be kept and gone back to."""

    @property
    def allowed(self) -> Allowed:
        """The ids that may come next: never none at all."""

    def advance(self, token_id: int, /) -> Constraint:
        """The state after one of the allowed ids."""


def common_range(constraints: Iterable[Constraint | None]) -> range | None:
    """The smallest range that holds every row's next id, when each row is held to a range.

    Then logits outside of it need not be computed. The 1024 places are such a range.
    """
    ranges = [None if constraint is None else constraint.allowed for constraint in constraints]
    found = [allowed for allowed in ranges if isinstance(allowed, range)]
    if not found or len(found) < len(ranges):
        return None
    return range(min(r.start for r in found), max(r.stop for r in found))


def choose_allowed(
    logits: Tensor,
    constraints: Sequence[Constraint | None],
    sampler: Sampling,
    generators: Sequence[torch.Generator],
    vocab_range: range | None = None,
) -> tuple[Tensor, Tensor]:
    """An allowed token a row and its log-probability: float32[B, V] -> int64[B], float32[B].

    The logits are of all ids, or of those in `vocab_range`; a row without a constraint takes from
    whatever logits there are. Temperature, top-k and top-p act on what is allowed.

    A row that is held to a range has its log-probability among that range; every other row among
    all ids, so that it tells what the model thinks even of an id that had to come. A row's
    neighbors change neither.
    """
    first_id = 0 if vocab_range is None else vocab_range.start
    allowed = [None if constraint is None else constraint.allowed for constraint in constraints]
    open_logits = only_allowed(logits, allowed, first_id)
    places = choose(open_logits, sampler, generators)
    judged = judged_logits(logits, open_logits, allowed)
    return places + first_id, logprobs_of(judged, places)


def sound_rows(
    logits: Tensor, constraints: Sequence[Constraint | None], vocab_range: range | None = None
) -> list[bool]:
    """Which rows of the logits are free of NaN and infinity.

    A row that is held to a range is judged by that range alone: its neighbors decide whether more
    was computed.
    """
    first_id = 0 if vocab_range is None else vocab_range.start
    sound: list[bool] = logits.isfinite().all(dim=1).tolist()
    for row, constraint in enumerate(constraints):
        if sound[row] or constraint is None or not isinstance(held := constraint.allowed, range):
            continue
        own = logits[row, held.start - first_id : held.stop - first_id]
        sound[row] = bool(own.isfinite().all())
    return sound


def only_allowed(logits: Tensor, allowed: Sequence[Allowed], first_id: int = 0) -> Tensor:
    """The logits with -inf in place of what is not allowed; column 0 is the id `first_id`."""
    if all(row is None for row in allowed):
        return logits
    end = first_id + logits.shape[1]
    out = torch.full_like(logits, -math.inf)
    for row, ids in enumerate(allowed):
        if ids is None:
            out[row] = logits[row]
            continue
        parts = (ids,) if isinstance(ids, range) else ids
        # Only a wrong grammar gets here, and a slice would forgive it.
        assert parts, f"row {row} may take no id at all."
        assert all(_lies_in(part, first_id, end) for part in parts), (
            f"row {row} may take {ids}; there are logits of the ids {first_id} to {end - 1}."
        )
        for part in parts:
            if isinstance(part, range):
                columns = slice(part.start - first_id, part.stop - first_id)
                out[row, columns] = logits[row, columns]
        if single := [part - first_id for part in parts if isinstance(part, int)]:
            index = torch.tensor(single, device=logits.device)
            out[row, index] = logits[row, index]
    return out


def judged_logits(logits: Tensor, open_logits: Tensor, allowed: Sequence[Allowed]) -> Tensor:
    """Those by which chosen ids get their log-probability; see `choose_allowed`."""
    in_range = [isinstance(ids, range) for ids in allowed]
    if not any(in_range):
        return logits
    if all(in_range):
        return open_logits
    return torch.where(torch.tensor(in_range, device=logits.device)[:, None], open_logits, logits)


def _lies_in(part: int | range, first_id: int, end: int) -> bool:
    if isinstance(part, int):
        return first_id <= part < end
    return part.step == 1 and first_id <= part.start < part.stop <= end


def row_limits(max_new_tokens: int | Sequence[int], num_rows: int) -> list[int]:
    """One limit per row. Raises OptionError unless all are whole numbers of at least 1."""
    if isinstance(max_new_tokens, Sequence):
        limits = list(max_new_tokens)
    else:
        limits = [max_new_tokens] * num_rows
    for limit in limits:
        check_whole("max_new_tokens", limit)
    return limits
