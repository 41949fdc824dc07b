"""Decoding held to a grammar, on token ids: what may come next, and choosing among it.

Knows ids only. Grammars come from those who know what ids mean, such as
`tasks/object_grammar.py`; they need not import this file to fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from paligemma.engine.sampling import Sampling, choose, logprobs_of

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
