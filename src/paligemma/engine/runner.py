"""The engine's calls of the model: prefill a group of requests, decode a token per running row.

The runner owns what these calls need: the slots of the KV cache, the caches of image tokens and of
prefixes, and the adapters. `engine.py` decides which requests run and what happens to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from paligemma.adapters.bank import AdapterBank
from paligemma.engine.image_cache import ImageCache, KeyedImage, RecentCache
from paligemma.engine.request import PrefixKey, Request, RequestState, TopLogprob
from paligemma.engine.sampling import choose_allowed, common_range, finite_rows, summarize_range
from paligemma.errors import OptionError, PromptError, counted
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import SlotCache
from paligemma.model.paligemma import PaliGemma
from paligemma.results import RangeSummary

# B rows of this pass, T positions of the longest, I images, P image tokens, D decoder width,
# V vocabulary, or the part of it that logits were computed for


class ChosenToken(NamedTuple):
    """The next token of a row; `is_finite` is False if the row's logits are broken."""

    token_id: int
    logprob: float
    is_finite: bool
    top_logprobs: tuple[TopLogprob, ...]
    summary: RangeSummary | None
    allowed_probability: float


class Prefilled(NamedTuple):
    """The requests of a group in the order of their slots, and the first new token of each."""

    states: list[RequestState]
    tokens: list[ChosenToken]


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The state after a prefix of T tokens, which decoding continues from."""

    hidden: Tensor  # float[D]: the last position after the final norm
    cache: Tensor  # float[2L, K, T, H], as `SlotCache.copy_of` returns it

    @property
    def num_bytes(self) -> int:
        return self.hidden.nbytes + self.cache.nbytes


class Runner:
    """Runs the model on rows in the slots of a `SlotCache`.

    If a call raises, the slots and the random generators of its rows are as before.
    """

    def __init__(
        self,
        model: PaliGemma,
        slots: SlotCache,
        *,
        image_cache: ImageCache,
        prefix_cache_bytes: int,
        adapters: AdapterBank | None,
    ) -> None:
        self.model = model
        self.prefixes: RecentCache[Prefix] = RecentCache(prefix_cache_bytes)
        self._slots = slots
        self._image_cache = image_cache
        self._adapters = adapters

    def check(self, request: Request) -> None:
        """Raises PromptError or OptionError for a request that does not fit model and cache."""
        config = self.model.config
        if self._adapters is not None:
            self._adapters.check(request.adapter)
        elif request.adapter:
            raise OptionError(
                f"The request names the adapter {request.adapter!r}, but the engine has none. "
                "Leave the adapter out."
            )
        if request.num_positions > self._slots.num_positions:
            raise PromptError(
                f"The request needs {request.num_positions} positions, {request.max_new_tokens} "
                f"of them for new tokens; the engine has {self._slots.num_positions} per request. "
                "Shorten the prompt, lower max_new_tokens, or raise the engine's num_positions."
            )
        vocab_size = config.decoder.vocab_size
        lowest, highest = int(request.token_ids.min()), int(request.token_ids.max())
        if lowest < 0 or highest >= vocab_size:
            raise PromptError(
                f"The token ids range from {lowest} to {highest}; the model has 0 to "
                f"{vocab_size - 1}. Use this model's tokenizer."
            )
        num_image_positions = int(request.image_mask.sum())
        num_image_tokens = self.model.vision_encoder.position_embedding.num_embeddings
        if num_image_positions != len(request.images) * num_image_tokens:
            raise PromptError(
                f"The request has {num_image_positions} image token positions, but "
                f"{counted(len(request.images), 'image')} of {num_image_tokens} tokens each. "
                "Build it with "
                "a processor for the model's resolution."
            )
        shape = (3, config.vision.resolution, config.vision.resolution)
        for image in request.images:
            if image.pixel_values.shape != shape:
                raise PromptError(
                    f"An image has shape {list(image.pixel_values.shape)}; the model takes "
                    f"{list(shape)}. Prepare it with a processor for the model's resolution."
                )

    def image_tokens(self, images: Sequence[KeyedImage]) -> Tensor:
        """Return float[I, P, D] of at least one image, from the cache where possible."""
        return self._image_cache.encode(images, self.model)

    def select_adapters(self, names: Sequence[str]) -> None:
        """Set the adapters of the next pass of the model, one name per row; "" for none."""
        if self._adapters is not None:
            self._adapters.select(names)

    def prefill(self, group: Sequence[RequestState]) -> Prefilled:
        """Run prefixes into the next free slots, and choose a token for each."""
        first_slot = self._slots.num_rows
        vocab_range = common_range(state.constraint for state in group)
        try:
            states, hidden = self._prefix_states(group)
            logits = self.model.decoder.logits(hidden, vocab_range=vocab_range)
            tokens = _choose_tokens(logits, states, vocab_range)
        except BaseException:
            for slot, state in enumerate(group, start=first_slot):
                self._slots.wipe(slot)
                state.rewind()
            raise
        self._slots.admit([state.num_tokens for state in states])
        return Prefilled(states, tokens)

    def decode(self, running: Sequence[RequestState]) -> list[ChosenToken]:
        """Add the last token of each running row, and choose the next ones."""
        lengths = list(self._slots.row_lengths)
        last_ids = torch.tensor([s.token_ids[-1] for s in running], device=self.model.device)
        vocab_range = common_range(state.constraint for state in running)
        try:
            self.select_adapters([state.request.adapter for state in running])
            logits = self.model.decode_step(last_ids, self._slots, vocab_range)
            return _choose_tokens(logits, running, vocab_range)
        except BaseException:
            for row, (state, length) in enumerate(zip(running, lengths, strict=True)):
                self._slots.truncate(row, length)
                state.rewind()
            raise

    def remove(self, row: int, *, wipe: bool = False) -> None:
        """Free a row's slot; the last row moves into it. `wipe` if it may contain NaN."""
        if wipe:
            self._slots.wipe(row)
        self._slots.remove(row)

    def _prefix_states(self, group: Sequence[RequestState]) -> tuple[list[RequestState], Tensor]:
        """Fill the next free slots; return the requests in their order, and float[B, D].

        Prefixes that are cached or occur twice in the group are copied instead of computed. They
        come after the others.
        """
        if not self.prefixes.max_bytes:
            return list(group), self._compute(group)
        keys = [state.prefix_key() for state in group]
        cached = {key: self.prefixes.get(key) for key in dict.fromkeys(keys)}
        new: dict[PrefixKey, RequestState] = {}
        copied: list[tuple[PrefixKey, RequestState]] = []
        for key, state in zip(keys, group, strict=True):
            if cached[key] is None and key not in new:
                new[key] = state
            else:
                copied.append((key, state))
        prefixes = {key: prefix for key, prefix in cached.items() if prefix is not None}
        if new:
            prefixes |= self._cache_prefixes(new, self._compute(list(new.values())))
        for slot, (key, _) in enumerate(copied, self._slots.num_rows + len(new)):
            self._slots.restore(slot, prefixes[key].cache)
        hidden = [prefixes[key].hidden for key in (*new, *(key for key, _ in copied))]
        return [*new.values(), *(state for _, state in copied)], torch.stack(hidden)

    def _cache_prefixes(
        self, new: Mapping[PrefixKey, RequestState], hidden: Tensor
    ) -> dict[PrefixKey, Prefix]:
        """Copy the prefixes that were just computed into the next free slots, and cache them."""
        prefixes = {}
        for slot, (key, state) in enumerate(new.items(), self._slots.num_rows):
            row = hidden[slot - self._slots.num_rows].clone()
            prefix = Prefix(hidden=row, cache=self._slots.copy_of(slot, state.num_tokens))
            prefixes[key] = prefix
            if bool(row.isfinite().all()):
                self.prefixes.keep(key, prefix, prefix.num_bytes)
        return prefixes

    def _compute(self, group: Sequence[RequestState]) -> Tensor:
        """Run the prefixes of these requests into the next free slots -> float[B, D]."""
        inputs, image_tokens = self._build_inputs(group)
        self.select_adapters([state.request.adapter for state in group])
        return self.model.prefix_state(inputs, self._slots.fresh(len(group)), image_tokens)

    def _build_inputs(self, group: Sequence[RequestState]) -> tuple[ModelInputs, Tensor | None]:
        """Return the group as one batch padded on the right, and its images' float[I, P, D].

        The tokens that a requeued request generated before become its causal suffix.
        """
        shape = (len(group), max(state.num_tokens for state in group))
        token_ids = torch.zeros(shape, dtype=torch.long)
        input_mask, mask_ar, image_mask = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        for row, state in enumerate(group):
            suffix_start = len(state.request.token_ids)
            token_ids[row, :suffix_start] = state.request.token_ids
            image_mask[row, :suffix_start] = state.request.image_mask
            token_ids[row, suffix_start : state.num_tokens] = torch.tensor(state.token_ids)
            input_mask[row, : state.num_tokens] = True
            mask_ar[row, suffix_start : state.num_tokens] = True
        images = {image.key: image for state in group for image in state.request.images}
        index = {key: i for i, key in enumerate(images)}
        device = self.model.device
        inputs = ModelInputs(
            token_ids=token_ids.to(device),
            input_mask=input_mask.to(device),
            mask_ar=mask_ar.to(device),
            image_mask=image_mask.to(device),
            pixel_values=None,
            image_index=tuple(
                tuple(index[image.key] for image in state.request.images) for state in group
            ),
        )
        return inputs, self.image_tokens(list(images.values())) if images else None


def _choose_tokens(
    logits: Tensor, states: Sequence[RequestState], vocab_range: range | None
) -> list[ChosenToken]:
    """Choose a token for each row of float32[B, V]."""
    token_ids, logprobs = [0] * len(states), [0.0] * len(states)
    probabilities = [1.0] * len(states)
    # Rows that differ only in their seed are chosen together: each has its own generator.
    samplers = [replace(state.request.sampler, seed=0) for state in states]
    for sampler in dict.fromkeys(samplers):
        rows = [row for row, other in enumerate(samplers) if other == sampler]
        all_rows = len(rows) == len(states)
        chosen = choose_allowed(
            logits if all_rows else logits[torch.tensor(rows, device=logits.device)],
            [states[row].constraint for row in rows],
            sampler,
            [states[row].generator for row in rows],
            vocab_range,
        )
        for row, *values in zip(rows, *(column.tolist() for column in chosen), strict=True):
            token_ids[row], logprobs[row], probabilities[row] = values
    is_finite = finite_rows(logits, [state.constraint for state in states], vocab_range)
    first_id = 0 if vocab_range is None else vocab_range.start
    top_logprobs = [
        _top_logprobs(logits[row], state.request.num_top_logprobs, first_id)
        for row, state in enumerate(states)
    ]
    summaries = _summaries(logits, states, token_ids, vocab_range)
    columns = (token_ids, logprobs, is_finite, top_logprobs, summaries, probabilities)
    return [ChosenToken(*column) for column in zip(*columns, strict=True)]


def _summaries(
    logits: Tensor,
    states: Sequence[RequestState],
    token_ids: Sequence[int],
    vocab_range: range | None,
) -> list[RangeSummary | None]:
    """Summarize for each row the distribution over its request's `summarized_ids`."""
    summaries: list[RangeSummary | None] = [None] * len(states)
    constraints = [state.constraint for state in states]
    for ids in {state.request.summarized_ids for state in states}:
        of_all = summarize_range(logits, token_ids, constraints, ids, vocab_range)
        for row, state in enumerate(states):
            if state.request.summarized_ids == ids:
                summaries[row] = of_all[row]
    return summaries


def _top_logprobs(logits: Tensor, number: int, first_id: int) -> tuple[TopLogprob, ...]:
    """Return the likeliest tokens by float32[V] logits, whose first column is id `first_id`."""
    if number == 0:
        return ()
    values, columns = torch.log_softmax(logits, dim=0).topk(min(number, len(logits)))
    return tuple(
        TopLogprob(column + first_id, value)
        for column, value in zip(columns.tolist(), values.tolist(), strict=True)
    )
