"""The reference loop: prefill the prefix, then one token per step. Faster code must match it.

Token ids in, token ids out. Stop strings are passed as `should_stop`. `score` returns the
log-probabilities of given suffixes instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from paligemma.engine.sampling import (
    GREEDY,
    Constraint,
    Sampling,
    choose_allowed,
    common_range,
    finite_rows,
    logprobs_of,
    row_generator,
    row_limits,
)
from paligemma.errors import NumericalError, OptionError
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma
from paligemma.results import RangeSummary, Score

# B rows of the batch, V vocabulary, I images, P image tokens, D decoder width

RowEnd = Literal["eos", "stop", "length", "numerical_error"]
ShouldStop = Callable[[int, list[int]], bool]
"""(row, the row's new token ids so far) -> True to end the row there."""


class GenerateOptions(TypedDict, total=False):
    """Optional keywords of `generate` and `generate_steps`."""

    sampler: Sampling
    """Defaults to greedy decoding."""
    row_numbers: Sequence[int]
    """Together with the seed they determine each row's randomness, so that a row with the same
    number gets the same sample in any batch. Default to 0 to B - 1."""
    should_stop: ShouldStop | None
    constraints: Sequence[Constraint | None] | None
    """One per row. When all rows are constrained to location tokens, only the logits of those are
    computed."""
    image_tokens: Tensor | None
    """float[I, P, D], instead of encoding `inputs.pixel_values`."""


@dataclass(frozen=True, kw_only=True)
class GeneratedRow:
    """The result of one row.

    `token_ids` includes the final EOS, if there is one. `logprobs` has one entry per token: its
    log-probability under the model's own distribution, before temperature, top-k and top-p; for a
    token that a constraint limited to one range, such as a location, relative to that range.
    `stop_reason`: "eos"; "stop" (`should_stop` returned True); "length" (`max_new_tokens` reached);
    "numerical_error" (NaN or infinity in the row's logits; the tokens before are kept).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: RowEnd
    summaries: tuple[RangeSummary | None, ...] = ()
    """One per token, if they were asked for."""
    allowed_probabilities: tuple[float, ...] = ()
    """One per token: the probability of all ids that the constraint allowed there; 1 without a
    constraint, and where it allowed one range. Beam search, which takes none, leaves them out."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The outcome of one step for one row: a token, or None if its logits were not finite.

    `stop_reason` is None while the row continues.
    """

    row: int
    token_id: int | None
    logprob: float | None
    stop_reason: RowEnd | None
    allowed_probability: float = 1.0


def generate(
    model: PaliGemma,
    inputs: ModelInputs,
    *,
    max_new_tokens: int | Sequence[int],
    eos_id: int,
    **options: Unpack[GenerateOptions],
) -> list[GeneratedRow]:
    """Continue each of the B rows until EOS, a stop, or `max_new_tokens` (one for all, or per row).

    Raises OptionError for `max_new_tokens` below 1.

    Inputs are built by a `Processor` or by hand, here for one image of 4 image tokens and the
    prompt 21209 659 ("caption en"):

    >>> ids = torch.tensor([[0, 0, 0, 0, 2, 21209, 659, 108]])
    >>> inputs = ModelInputs(
    ...     token_ids=ids,
    ...     input_mask=torch.ones_like(ids, dtype=torch.bool),
    ...     mask_ar=torch.zeros_like(ids, dtype=torch.bool),
    ...     image_mask=torch.arange(8)[None] < 4,
    ...     pixel_values=torch.zeros(1, 3, 28, 28),
    ...     image_index=((0,),),
    ... )
    >>> generate(model, inputs, max_new_tokens=32, eos_id=1)[0].token_ids  # doctest: +SKIP
    (54901, 1)
    """
    num_rows = inputs.token_ids.shape[0]
    token_ids: list[list[int]] = [[] for _ in range(num_rows)]
    logprobs: list[list[float]] = [[] for _ in range(num_rows)]
    probabilities: list[list[float]] = [[] for _ in range(num_rows)]
    reasons: list[RowEnd] = ["length"] * num_rows
    steps = generate_steps(model, inputs, max_new_tokens=max_new_tokens, eos_id=eos_id, **options)
    for step in steps:
        if step.token_id is not None and step.logprob is not None:
            token_ids[step.row].append(step.token_id)
            logprobs[step.row].append(step.logprob)
            probabilities[step.row].append(step.allowed_probability)
        if step.stop_reason is not None:
            reasons[step.row] = step.stop_reason
    return [
        GeneratedRow(
            token_ids=tuple(token_ids[row]),
            logprobs=tuple(logprobs[row]),
            stop_reason=reasons[row],
            allowed_probabilities=tuple(probabilities[row]),
        )
        for row in range(num_rows)
    ]


def generate_steps(
    model: PaliGemma,
    inputs: ModelInputs,
    *,
    max_new_tokens: int | Sequence[int],
    eos_id: int,
    **options: Unpack[GenerateOptions],
) -> Iterator[Step]:
    """As `generate`, but yield every token as soon as it is known, row by row in each step."""
    num_rows = inputs.token_ids.shape[0]
    sampler = options.get("sampler", GREEDY)
    row_numbers = options.get("row_numbers") or range(num_rows)
    rows = _Rows(
        limits=row_limits(max_new_tokens, num_rows),
        eos_id=eos_id,
        should_stop=options.get("should_stop"),
        generators=[row_generator(sampler, number) for number in row_numbers],
        constraints=list(options.get("constraints") or [None] * num_rows),
        token_ids=[[] for _ in range(num_rows)],
        running=set(range(num_rows)),
    )
    return _steps(model, inputs, sampler, rows, options.get("image_tokens"))


@dataclass(kw_only=True)
class _Rows:
    limits: list[int]
    eos_id: int
    should_stop: ShouldStop | None
    generators: list[torch.Generator]
    constraints: list[Constraint | None]
    token_ids: list[list[int]]
    running: set[int]

    def accept(self, row: int, token_id: int) -> RowEnd | None:
        """Append a token; return why the row ends with it, or None."""
        token_ids = self.token_ids[row]
        token_ids.append(token_id)
        if token_id == self.eos_id:
            return "eos"
        if self.should_stop is not None and self.should_stop(row, token_ids):
            return "stop"
        if len(token_ids) == self.limits[row]:
            return "length"
        if (constraint := self.constraints[row]) is not None:
            self.constraints[row] = constraint.advance(token_id)
        return None


@torch.inference_mode()
def _steps(
    model: PaliGemma,
    inputs: ModelInputs,
    sampler: Sampling,
    rows: _Rows,
    image_tokens: Tensor | None,
) -> Iterator[Step]:
    inputs = inputs.to(model.device)
    num_rows, prefix_length = inputs.token_ids.shape
    kv_cache = KVCache(
        model.config.decoder,
        num_rows,
        prefix_length + max(rows.limits),
        dtype=model.dtype,
        device=model.device,
    )
    slots = list(range(num_rows))  # the row in each slot of the cache
    vocab_range = common_range(rows.constraints)
    logits = model.prefill(inputs, kv_cache, image_tokens, vocab_range)
    while True:
        constraints = [rows.constraints[row] if row in rows.running else None for row in slots]
        generators = [rows.generators[row] for row in slots]
        chosen = choose_allowed(logits, constraints, sampler, generators, vocab_range)
        is_finite = finite_rows(logits, constraints, vocab_range)
        columns = zip(slots, *(column.tolist() for column in chosen), is_finite, strict=True)
        for row, token_id, logprob, probability, is_row_finite in columns:
            if row not in rows.running:
                continue
            if not is_row_finite:
                rows.running.discard(row)
                yield Step(row=row, token_id=None, logprob=None, stop_reason="numerical_error")
                continue
            reason = rows.accept(row, token_id)
            if reason is not None:
                rows.running.discard(row)
            yield Step(
                row=row,
                token_id=token_id,
                logprob=logprob,
                stop_reason=reason,
                allowed_probability=probability,
            )
        if not rows.running:
            return
        last_ids = chosen.token_ids
        # Ended rows stay in the batch until they are half of it: dropping them copies the cache,
        # and a step's time is mostly that of reading the weights, whatever the number of rows.
        if 2 * len(rows.running) <= len(slots):
            kept = [slot for slot, row in enumerate(slots) if row in rows.running]
            index = torch.tensor(kept, device=model.device)
            kv_cache.select_rows(index)
            last_ids = last_ids[index]
            slots = [slots[slot] for slot in kept]
        vocab_range = common_range(rows.constraints[row] for row in slots if row in rows.running)
        logits = model.decode_step(last_ids, kv_cache, vocab_range)


@torch.inference_mode()
def score(
    model: PaliGemma, inputs: ModelInputs, *, image_tokens: Tensor | None = None
) -> list[Score]:
    """Return the log-probabilities of the tokens that `inputs.loss_mask` marks, per row.

    The token at position t is scored by the logits at t - 1. `image_tokens` float[I, P, D] replace
    encoding `inputs.pixel_values`. Raises OptionError without a `loss_mask`, NumericalError for
    NaN and infinity.
    """
    if inputs.loss_mask is None:
        raise OptionError(
            "The inputs have no loss_mask, which marks the tokens to score. "
            "Build them with Processor.example_inputs."
        )
    inputs = inputs.to(model.device)
    assert inputs.loss_mask is not None
    hidden = model.hidden_states(inputs, image_tokens=image_tokens)
    rows = []
    for row in range(hidden.shape[0]):
        targets = inputs.loss_mask[row].nonzero()[:, 0]
        token_ids = inputs.token_ids[row, targets]
        # Logits of the suffix only: with 257,152 per position, those of the prefix would take more
        # memory than the pass itself.
        logprobs = logprobs_of(model.decoder.logits(hidden[row, targets - 1]), token_ids)
        score = Score(token_ids=tuple(token_ids.tolist()), logprobs=tuple(logprobs.tolist()))
        if not all(map(math.isfinite, score.logprobs)):
            raise NumericalError.of_model()
        rows.append(score)
    return rows
