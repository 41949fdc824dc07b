"""How the next token is chosen: sampling, and grammars that constrain it.

Every row draws from its own generator, seeded from (seed, row number), and `choose` draws exactly
one uniform number per token, so a row's sample depends neither on the other rows of the batch nor
on the device.

A `Constraint` is a state of a grammar over token ids: it says which ids may come next.
`tasks/object_grammar.py` has one; it is a protocol, so grammars need not import this file.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from paligemma.errors import OptionError, check_whole
from paligemma.results import RangeSummary

# B batch, V vocabulary


def drawn_seed(seed: int | None) -> int:
    """Return the seed itself, or a random one for None."""
    return secrets.randbits(48) if seed is None else seed


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options for choosing tokens.

    `temperature` divides the logits: 1 keeps the model's distribution, 0 is greedy decoding (the
    likeliest token, and of equals the lowest id). `top_k` keeps the k likeliest tokens. Of these,
    `top_p` keeps the smallest set whose probabilities sum to at least p. Equal seeds give equal
    samples.

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
                f"top_k is {self.top_k!r}; it must be a whole number of at least 1, or None to "
                "keep all tokens."
            )
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 <= self.top_p <= 1):
            raise OptionError(
                f"top_p is {self.top_p!r}; it must be a number between 0 and 1, or None to keep "
                "all tokens."
            )
        if not _is_whole(self.seed) or self.seed < 0:
            raise OptionError(f"seed is {self.seed!r}; it must be a whole number of at least 0.")


GREEDY = Sampling(temperature=0.0)


def row_generator(sampler: Sampling, row_number: int) -> torch.Generator:
    """Return the random generator of a row; hashing makes streams of similar seeds unrelated."""
    digest = hashlib.blake2b(f"{sampler.seed}/{row_number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def choose(logits: Tensor, sampler: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Choose one token per row: float32[B, V] -> int64[B].

    A logit of -inf bans a token. A row with NaN, or without any finite logit, gets an arbitrary id;
    callers detect such rows with `finite_rows`.
    """
    if sampler.temperature == 0:
        return logits.argmax(dim=1)
    probabilities, ids = _candidates(logits, sampler)
    # Inverse transform sampling: the first candidate whose cumulative probability exceeds a
    # uniform number. Probabilities need not sum to 1.
    uniform = [torch.rand((), dtype=torch.float64, generator=g).item() for g in generators]
    cumulative = probabilities.nan_to_num(0.0).cumsum(dim=1)
    target = torch.tensor(uniform, dtype=torch.float64, device=cumulative.device)
    target = target[:, None] * cumulative[:, -1:]
    column = torch.searchsorted(cumulative, target, right=True).clamp_max(cumulative.shape[1] - 1)
    return (column if ids is None else ids.gather(1, column))[:, 0].to(logits.device)


def _candidates(logits: Tensor, sampler: Sampling) -> tuple[Tensor, Tensor | None]:
    """Return float64 probabilities of the tokens to sample from, and their ids; None if all."""
    # float64, because a sum of 257,000 float32 terms drifts.
    exact = logits.cpu() if logits.device.type == "mps" else logits
    exact = exact.double()
    # Subtract the maximum before dividing: a tiny temperature would give inf - inf.
    scaled = (exact - exact.max(dim=1, keepdim=True).values) / sampler.temperature
    order = None
    if sampler.top_k is not None:
        # Sort even if k keeps all tokens: banned ones come last and do not affect the sample.
        scaled, order = scaled.topk(min(sampler.top_k, logits.shape[1]), dim=1)
    elif sampler.top_p is not None:
        scaled, order = scaled.sort(dim=1, descending=True, stable=True)
    probabilities = torch.softmax(scaled, dim=1)
    if sampler.top_p is not None:
        before = probabilities.cumsum(dim=1) - probabilities
        before[:, 0] = -1.0  # always keep the likeliest token
        probabilities = probabilities.masked_fill(before >= sampler.top_p, 0.0)
    return probabilities, order


def logprobs_of(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return the log-probabilities of int64[B] tokens under float32[B, V] logits: float32[B]."""
    return torch.log_softmax(logits, dim=1).gather(1, token_ids[:, None])[:, 0]


# B rows, V vocabulary, or the part of it that logits were computed for

Allowed = range | tuple[int | range, ...] | Tensor | None
"""Ids that may come next: one range, several ids and ranges, a mask, or any id (None).

A mask is bool[V], or int32[ceil(V / 32)] with the id i at bit i % 32 of word i // 32. It may be
shorter than the vocabulary: ids beyond its end are not allowed.
"""


class Constraint(Protocol):
    """A state of a grammar. States are immutable, so that a row can return to an earlier one."""

    @property
    def allowed(self) -> Allowed:
        """The ids that may come next; never empty."""

    def advance(self, token_id: int, /) -> Constraint:
        """Return the state after one of the allowed ids."""


def common_range(constraints: Iterable[Constraint | None]) -> range | None:
    """Return the smallest range with the next ids of all rows, if all are constrained to a range.

    Logits outside of it need not be computed. The 1024 location tokens are such a range.
    """
    allowed = [None if constraint is None else constraint.allowed for constraint in constraints]
    ranges = [ids for ids in allowed if isinstance(ids, range)]
    if not ranges or len(ranges) < len(allowed):
        return None
    return range(min(r.start for r in ranges), max(r.stop for r in ranges))


class Chosen(NamedTuple):
    """The tokens chosen for B rows."""

    token_ids: Tensor
    """int64[B]"""
    logprobs: Tensor
    """float32[B]: relative to the range in a row that is constrained to one range, else to all
    ids, so that it says how likely the model found even an id that was the only one allowed."""
    allowed_probabilities: Tensor
    """float32[B]: of all allowed ids together, in the distribution that `logprobs` refer to."""


def choose_allowed(
    logits: Tensor,
    constraints: Sequence[Constraint | None],
    sampler: Sampling,
    generators: Sequence[torch.Generator],
    vocab_range: range | None = None,
) -> Chosen:
    """Choose an allowed token per row of float32[B, V].

    The logits are those of all ids, or of those in `vocab_range`. Temperature, top-k and top-p act
    on the allowed ids. What is returned for a row does not depend on the other rows of the batch.
    """
    first_id = 0 if vocab_range is None else vocab_range.start
    allowed = [None if constraint is None else constraint.allowed for constraint in constraints]
    masked_logits = mask_logits(logits, allowed, first_id)
    columns = choose(masked_logits, sampler, generators)
    scored_logits = _logits_for_logprobs(logits, masked_logits, allowed)
    logprobs = logprobs_of(scored_logits, columns)
    probabilities = torch.ones_like(logprobs)
    rows = [row for row, ids in enumerate(allowed) if isinstance(ids, tuple | Tensor)]
    if rows:
        index = torch.tensor(rows, device=logits.device)
        total = logits[index, columns[index]] - logprobs[index]
        held_logits = masked_logits if len(rows) == len(allowed) else masked_logits[index]
        share = torch.logsumexp(held_logits, dim=1) - total
        probabilities[index] = share.exp().clamp(max=1.0)
    return Chosen(columns + first_id, logprobs, probabilities)


def finite_rows(
    logits: Tensor, constraints: Sequence[Constraint | None], vocab_range: range | None = None
) -> list[bool]:
    """Return which rows of the logits contain neither NaN nor infinity.

    In a row that is constrained to a range only that range counts, because whether more was
    computed depends on the other rows.
    """
    first_id = 0 if vocab_range is None else vocab_range.start
    is_finite: list[bool] = logits.isfinite().all(dim=1).tolist()
    for row, constraint in enumerate(constraints):
        if is_finite[row] or constraint is None:
            continue
        if isinstance(ids := constraint.allowed, range):
            values = logits[row, ids.start - first_id : ids.stop - first_id]
            is_finite[row] = bool(values.isfinite().all())
    return is_finite


_NUM_QUANTILES = 32


def summarize_range(
    logits: Tensor,
    token_ids: Sequence[int],
    constraints: Sequence[Constraint | None],
    ids: range,
    vocab_range: range | None = None,
) -> list[RangeSummary | None]:
    """Summarize the distributions over `ids` that chosen tokens come from; None for other tokens.

    float32[B, V] logits as in `choose_allowed`. In a row that is constrained to one range, only
    that range counts.
    """
    summaries: list[RangeSummary | None] = [None] * len(token_ids)
    rows = [row for row, token_id in enumerate(token_ids) if token_id in ids]
    if not rows:
        return summaries
    first_id = 0 if vocab_range is None else vocab_range.start
    start, stop = max(ids.start, first_id), min(ids.stop, first_id + logits.shape[1])
    chosen = logits[torch.tensor(rows, device=logits.device)]
    part = chosen[:, start - first_id : stop - first_id].clone()
    totals = torch.logsumexp(part, dim=1) - torch.logsumexp(chosen, dim=1)
    shares = totals.exp().clamp(max=1.0).tolist()
    for index, row in enumerate(rows):
        constraint = constraints[row]
        if constraint is not None and isinstance(allowed := constraint.allowed, range):
            shares[index] = 1.0
            part[index, : max(0, allowed.start - start)] = -math.inf
            part[index, max(0, allowed.stop - start) :] = -math.inf
    cumulative = torch.softmax(part, dim=1).cumsum(dim=1)
    levels = (torch.arange(_NUM_QUANTILES, device=part.device) + 0.5) / _NUM_QUANTILES
    columns = torch.searchsorted(cumulative, levels * cumulative[:, -1:])
    columns = columns.clamp(max=part.shape[1] - 1) + start
    for row, share, quantiles in zip(rows, shares, columns.tolist(), strict=True):
        summaries[row] = RangeSummary(share, tuple(quantiles))
    return summaries


def mask_logits(logits: Tensor, allowed: Sequence[Allowed], first_id: int = 0) -> Tensor:
    """Replace the logits of ids that are not allowed by -inf; column 0 is the id `first_id`."""
    if all(row is None for row in allowed):
        return logits
    end = first_id + logits.shape[1]
    out = torch.full_like(logits, -math.inf)
    for row, ids in enumerate(allowed):
        if ids is None:
            out[row] = logits[row]
            continue
        if isinstance(ids, Tensor):
            bits = mask_bits(ids, first_id)[: logits.shape[1]]
            assert bool(bits.any()), f"row {row} allows no id at all."
            columns = slice(len(bits))
            out[row, columns] = torch.where(bits.to(logits.device), logits[row, columns], -math.inf)
            continue
        parts = (ids,) if isinstance(ids, range) else ids
        # A grammar with a bug would otherwise go unnoticed, because slices ignore their bounds.
        assert parts, f"row {row} allows no id at all."
        assert all(_is_within(part, first_id, end) for part in parts), (
            f"row {row} allows {ids}, but the logits are of the ids {first_id} to {end - 1}."
        )
        for part in parts:
            if isinstance(part, range):
                columns = slice(part.start - first_id, part.stop - first_id)
                out[row, columns] = logits[row, columns]
        if single := [part - first_id for part in parts if isinstance(part, int)]:
            index = torch.tensor(single, device=logits.device)
            out[row, index] = logits[row, index]
    return out


def mask_bits(mask: Tensor, start: int = 0) -> Tensor:
    """Unpack a mask, bool[V] or int32[ceil(V / 32)], from the id `start` on: bool, on the CPU."""
    if mask.dtype == torch.bool:
        return mask[start:].cpu()
    words = mask[start // 32 :].cpu().numpy().astype("<i4", copy=False)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[start % 32 :]
    return torch.from_numpy(bits.view(np.bool_))


def _logits_for_logprobs(
    logits: Tensor, masked_logits: Tensor, allowed: Sequence[Allowed]
) -> Tensor:
    """Return the logits that log-probabilities are computed from; see `choose_allowed`."""
    in_range = [isinstance(ids, range) for ids in allowed]
    if not any(in_range):
        return logits
    if all(in_range):
        return masked_logits
    is_masked = torch.tensor(in_range, device=logits.device)[:, None]
    return torch.where(is_masked, masked_logits, logits)


def _is_within(part: int | range, first_id: int, end: int) -> bool:
    if isinstance(part, int):
        return first_id <= part < end
    return part.step == 1 and first_id <= part.start < part.stop <= end


def row_limits(max_new_tokens: int | Sequence[int], num_rows: int) -> list[int]:
    """Return one limit per row. Raises OptionError unless all are ints of at least 1."""
    if isinstance(max_new_tokens, Sequence):
        limits = list(max_new_tokens)
    else:
        limits = [max_new_tokens] * num_rows
    for limit in limits:
        check_whole("max_new_tokens", limit)
    return limits
