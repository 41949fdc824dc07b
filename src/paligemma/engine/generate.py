"""The plain loop: prefill the prefix, then one token a step. Everything faster must equal it.

Token ids in, token ids out; knows no text. Stop strings come in as `should_stop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paligemma.engine.sampling import (
    GREEDY,
    Constraint,
    Sampling,
    choose_allowed,
    common_range,
    row_generator,
    row_limits,
    sound_rows,
)
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma

# B rows of the batch, V vocabulary

RowEnd = Literal["eos", "stop", "length", "numerical_error"]
ShouldStop = Callable[[int, list[int]], bool]
"""(row, the row's new token ids so far) -> True to end the row there."""


@dataclass(frozen=True, kw_only=True)
class GeneratedRow:
    """What one row got.

    `token_ids` holds the closing EOS when it was produced. `logprobs` has one entry a token:
    its log-probability under the model's own distribution, before temperature, top-k and top-p;
    of a token that a constraint held to a range, such as a place, its share of that range.
    `stop_reason`: "eos"; "stop" (`should_stop` said so); "length" (`max_new_tokens` reached);
    "numerical_error" (NaN or infinity in this row's logits; what came before is kept).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: RowEnd


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row's share of one step: a token, or none when its logits were broken.

    `stop_reason` is None while the row goes on.
    """

    row: int
    token_id: int | None
    logprob: float | None
    stop_reason: RowEnd | None


def generate(
    model: PaliGemma,
    inputs: ModelInputs,
    *,
    max_new_tokens: int | Sequence[int],
    eos_id: int,
    sampler: Sampling = GREEDY,
    row_numbers: Sequence[int] | None = None,
    should_stop: ShouldStop | None = None,
    constraints: Sequence[Constraint | None] | None = None,
    image_tokens: Tensor | None = None,
) -> list[GeneratedRow]:
    """Continue each of the B rows until EOS, a stop, or `max_new_tokens` (one for all, or each).

    `row_numbers` (0 to B - 1 by default) decide, with the seed, each row's randomness: a row that
    keeps its number keeps its sample in any batch. `constraints`, one a row, hold rows to grammars;
    where every row is held to places, only the logits of places are computed. `image_tokens`
    float[I, P, D] stand in for encoding `inputs.pixel_values`. Raises OptionError for
    `max_new_tokens` below 1.

    The inputs are built by a `Processor` or by hand, here for one picture of 4 image tokens and
    the prompt 21209 659 ("caption en"):

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
    reasons: list[RowEnd] = ["length"] * num_rows
    for step in generate_steps(
        model,
        inputs,
        max_new_tokens=max_new_tokens,
        eos_id=eos_id,
        sampler=sampler,
        row_numbers=row_numbers,
        should_stop=should_stop,
        constraints=constraints,
        image_tokens=image_tokens,
    ):
        if step.token_id is not None and step.logprob is not None:
            token_ids[step.row].append(step.token_id)
            logprobs[step.row].append(step.logprob)
        if step.stop_reason is not None:
            reasons[step.row] = step.stop_reason
    return [
        GeneratedRow(token_ids=tuple(ids), logprobs=tuple(values), stop_reason=reason)
        for ids, values, reason in zip(token_ids, logprobs, reasons, strict=True)
    ]


def generate_steps(
    model: PaliGemma,
    inputs: ModelInputs,
    *,
    max_new_tokens: int | Sequence[int],
    eos_id: int,
    sampler: Sampling = GREEDY,
    row_numbers: Sequence[int] | None = None,
    should_stop: ShouldStop | None = None,
    constraints: Sequence[Constraint | None] | None = None,
    image_tokens: Tensor | None = None,
) -> Iterator[Step]:
    """As `generate`, but gives every token as soon as it is known, row by row in each step."""
    num_rows = inputs.token_ids.shape[0]
    limits = row_limits(max_new_tokens, num_rows)
    generators = [row_generator(sampler, n) for n in row_numbers or range(num_rows)]
    states = list(constraints or [None] * num_rows)
    return _steps(
        model, inputs, limits, eos_id, sampler, generators, should_stop, states, image_tokens
    )


@torch.inference_mode()
def _steps(
    model: PaliGemma,
    inputs: ModelInputs,
    limits: Sequence[int],
    eos_id: int,
    sampler: Sampling,
    generators: Sequence[torch.Generator],
    should_stop: ShouldStop | None,
    states: list[Constraint | None],
    image_tokens: Tensor | None,
) -> Iterator[Step]:
    inputs = inputs.to(model.device)
    num_rows, prefix_length = inputs.token_ids.shape
    kv_cache = KVCache(
        model.config.decoder,
        num_rows,
        prefix_length + max(limits),
        dtype=model.dtype,
        device=model.device,
    )
    new_ids: list[list[int]] = [[] for _ in range(num_rows)]
    slots = list(range(num_rows))  # which row stands where in the cache
    live = set(slots)
    vocab_range = common_range(states)
    logits = model.prefill(inputs, kv_cache, image_tokens, vocab_range)
    for num_done in range(1, max(limits) + 1):
        held = [states[row] if row in live else None for row in slots]
        chosen, logprobs = choose_allowed(
            logits, held, sampler, [generators[row] for row in slots], vocab_range
        )
        chosen_ids, chosen_logprobs = chosen.tolist(), logprobs.tolist()
        healthy = sound_rows(logits, held, vocab_range)
        for slot, row in enumerate(slots):
            if row not in live:
                continue
            if not healthy[slot]:
                live.discard(row)
                yield Step(row=row, token_id=None, logprob=None, stop_reason="numerical_error")
                continue
            new_ids[row].append(chosen_ids[slot])
            reason: RowEnd | None = None
            if chosen_ids[slot] == eos_id:
                reason = "eos"
            elif should_stop is not None and should_stop(row, new_ids[row]):
                reason = "stop"
            elif num_done == limits[row]:
                reason = "length"
            if reason is not None:
                live.discard(row)
            elif (state := states[row]) is not None:
                states[row] = state.advance(chosen_ids[slot])
            yield Step(
                row=row,
                token_id=chosen_ids[slot],
                logprob=chosen_logprobs[slot],
                stop_reason=reason,
            )
        if not live:
            return
        # Ended rows ride along until they are half of the batch: dropping them copies the cache,
        # and a step's cost is mostly that of reading the weights, whatever the number of rows.
        if 2 * len(live) <= len(slots):
            kept = [slot for slot, row in enumerate(slots) if row in live]
            index = torch.tensor(kept, device=model.device)
            kv_cache.select_rows(index)
            chosen = chosen[index]
            slots = [slots[slot] for slot in kept]
        vocab_range = common_range(states[row] for row in slots if row in live)
        logits = model.decode_step(chosen, kv_cache, vocab_range)
