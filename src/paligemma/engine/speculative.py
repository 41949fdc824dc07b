"""Speculative decoding: a few tokens are guessed cheaply and judged by the model in one pass.

A pass over five tokens takes little longer than one over one, as both read all the weights: what
is guessed right comes for free. Guesses come from a smaller model of the family, or from the text
so far, for output that repeats the prompt or itself.

The result is the model's own whatever the guesses. Greedy ids are those of the plain loop. A sample
has the same distribution as the plain loop's (arXiv 2211.17192, section 2.3), but is another
sample: judging takes more random numbers. Knows no text; works off the rows one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from paligemma.engine.constraint import Constraint, judged_logits, only_allowed, sound_rows
from paligemma.engine.generate import GeneratedRow, RowEnd, ShouldStop, row_limits
from paligemma.engine.sampling import (
    GREEDY,
    Sampling,
    distribution,
    draw,
    logprobs_of,
    row_generator,
)
from paligemma.errors import OptionError
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma

# T tokens in this call, V vocabulary, I images, P image tokens, D decoder width


@dataclass(frozen=True, kw_only=True)
class DraftModel:
    """Guesses by a smaller model with the same vocabulary, such as the 3B of a 10B.

    It sees the pictures by its own vision encoder. `inputs` are needed when it takes pictures of
    another size than the model; `image_tokens` float[I, P, D] are its own.
    """

    model: PaliGemma
    inputs: ModelInputs | None = None
    image_tokens: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PromptLookup:
    """Guesses that the text goes on as it did after the last equal run of tokens.

    A run of `max_run` tokens is looked for in prompt and output, then shorter ones.
    """

    max_run: int = 3

    def __post_init__(self) -> None:
        _check_at_least_one("max_run", self.max_run)


@dataclass(frozen=True, kw_only=True)
class SpeculativeRow(GeneratedRow):
    """What one row got, and what it took."""

    num_passes: int
    """Passes of the model, the prefill among them; the plain loop takes one a token."""
    num_guessed: int
    num_accepted: int


@torch.inference_mode()
def generate_speculative(
    model: PaliGemma,
    inputs: ModelInputs,
    *,
    draft: DraftModel | PromptLookup,
    num_draft_tokens: int = 4,
    max_new_tokens: int | Sequence[int],
    eos_id: int,
    sampler: Sampling = GREEDY,
    row_numbers: Sequence[int] | None = None,
    should_stop: ShouldStop | None = None,
    constraints: Sequence[Constraint | None] | None = None,
    image_tokens: Tensor | None = None,
) -> list[SpeculativeRow]:
    """As `generate`, with up to `num_draft_tokens` guesses judged in each pass.

    Constraints hold for guesses too. Raises OptionError for numbers below 1, and for a draft model
    of another vocabulary.

    >>> rows = generate_speculative(  # doctest: +SKIP
    ...     model_10b, inputs, draft=DraftModel(model=model_3b), max_new_tokens=64, eos_id=1
    ... )
    >>> len(rows[0].token_ids), rows[0].num_passes  # doctest: +SKIP
    (23, 8)
    """
    _check_at_least_one("num_draft_tokens", num_draft_tokens)
    inputs = inputs.to(model.device)
    limits = row_limits(max_new_tokens, inputs.token_ids.shape[0])
    numbers = row_numbers or range(len(limits))
    states = constraints or [None] * len(limits)
    image_tokens = _image_tokens(model, inputs, image_tokens)
    if isinstance(draft, DraftModel):
        draft = _ready(draft, model, inputs)
    rows = []
    for number, limit in enumerate(limits):
        row = _Row(
            limit=limit,
            eos_id=eos_id,
            sampler=sampler,
            generator=row_generator(sampler, numbers[number]),
            should_stop=_stop_of_row(should_stop, number),
            state=states[number],
        )
        own = inputs.row(number)
        guesser: _Guesser
        if isinstance(draft, DraftModel):
            guesser = _ModelGuesser(draft, number, row)
        else:
            guesser = _LookupGuesser(draft, own)
        _fill(row, model, own, image_tokens, guesser, num_draft_tokens)
        rows.append(row.result())
    return rows


@dataclass(frozen=True, kw_only=True)
class _Guess:
    token_id: int
    probabilities: Tensor | None
    """float64[V] that the token was drawn from; None when it was not drawn."""


class _Guesser(Protocol):
    def guess(
        self, token_ids: Sequence[int], state: Constraint | None, num_tokens: int
    ) -> list[_Guess]:
        """At most so many tokens that may follow a row's new tokens; there is at least one."""


@dataclass(kw_only=True)
class _Row:
    """One row as it grows."""

    limit: int
    eos_id: int
    sampler: Sampling
    generator: torch.Generator
    should_stop: Callable[[list[int]], bool]
    state: Constraint | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: RowEnd | None = None
    num_passes: int = 0
    num_guessed: int = 0
    num_accepted: int = 0

    def judge(self, logits: Tensor, guesses: Sequence[_Guess]) -> None:
        """Take tokens up to the first wrong guess, put right, or one more when all are right.

        float32[T, V] logits before each of the T - 1 guesses, and after the last.
        """
        self.num_passes += 1
        self.num_guessed += len(guesses)
        for here, guess in zip(logits.split(1), [*guesses, None], strict=True):
            if not sound_rows(here, [self.state])[0]:
                self.stop_reason = "numerical_error"
                return
            allowed = [None if self.state is None else self.state.allowed]
            open_logits = only_allowed(here, allowed)
            token_id = _settle(open_logits, guess, self.sampler, self.generator)
            judged = judged_logits(here, open_logits, allowed)
            logprob = logprobs_of(judged, torch.tensor([token_id], device=judged.device))
            self._take(token_id, float(logprob))
            is_right = guess is not None and guess.token_id == token_id
            self.num_accepted += is_right
            if self.stop_reason is not None or not is_right:
                return

    def _take(self, token_id: int, logprob: float) -> None:
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        if token_id == self.eos_id:
            self.stop_reason = "eos"
        elif self.should_stop(self.token_ids):
            self.stop_reason = "stop"
        elif len(self.token_ids) == self.limit:
            self.stop_reason = "length"
        elif self.state is not None:
            self.state = self.state.advance(token_id)

    def result(self) -> SpeculativeRow:
        assert self.stop_reason is not None
        return SpeculativeRow(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            stop_reason=self.stop_reason,
            num_passes=self.num_passes,
            num_guessed=self.num_guessed,
            num_accepted=self.num_accepted,
        )


def _fill(
    row: _Row,
    model: PaliGemma,
    inputs: ModelInputs,
    image_tokens: Tensor | None,
    guesser: _Guesser,
    num_draft_tokens: int,
) -> None:
    """Work off one row: prefill, then guess and judge until it ends."""
    kv_cache = _cache(model, inputs, row.limit)
    prefix_length = inputs.token_ids.shape[1]
    row.judge(model.prefill(inputs, kv_cache, image_tokens), [])
    while row.stop_reason is None:
        num_guesses = min(num_draft_tokens, row.limit - len(row.token_ids) - 1)
        guesses = guesser.guess(row.token_ids, row.state, num_guesses)
        # The last token taken has not been read yet, and wrong guesses have.
        kv_cache.truncate(prefix_length + len(row.token_ids) - 1)
        unread = [row.token_ids[-1], *(guess.token_id for guess in guesses)]
        logits = model.extend(torch.tensor([unread], device=model.device), kv_cache)
        row.judge(logits[0], guesses)


def _settle(
    logits: Tensor, guess: _Guess | None, sampler: Sampling, generator: torch.Generator
) -> int:
    """The token for a place: the guess if it stands, else another; float32[1, V] logits.

    A guess drawn with probability q stands with probability min(1, p / q), where p is the model's
    own. What replaces it is drawn from max(0, p - q), so that both together give p. A guess that
    was not drawn has a q of 1.
    """
    if sampler.temperature == 0:
        return int(logits.argmax())
    own = distribution(logits, sampler)
    if guess is None:
        return int(draw(own, [generator]))
    token_id = guess.token_id
    guessed = torch.zeros_like(own)
    if guess.probabilities is None:
        guessed[0, token_id] = 1.0
    else:
        guessed[0] = guess.probabilities
    uniform = torch.rand((), dtype=torch.float64, generator=generator).item()
    rest = (own - guessed).clamp_min(0.0)
    # Without a rest the two are equal but for rounding.
    if uniform * float(guessed[0, token_id]) < float(own[0, token_id]) or not rest.any():
        return token_id
    return int(draw(rest, [generator]))


class _ModelGuesser:
    """A draft model's own continuation, with a cache of its own."""

    def __init__(self, draft: DraftModel, number: int, row: _Row) -> None:
        assert draft.inputs is not None
        self._model = draft.model
        self._row = row
        inputs = draft.inputs.row(number)
        self._prefix_length = inputs.token_ids.shape[1]
        self._kv_cache = _cache(draft.model, inputs, row.limit)
        self._read: list[int] = []
        draft.model.hidden_states(inputs, image_tokens=draft.image_tokens, kv_cache=self._kv_cache)

    def guess(
        self, token_ids: Sequence[int], state: Constraint | None, num_tokens: int
    ) -> list[_Guess]:
        guesses: list[_Guess] = []
        unread = self._forget_wrong(token_ids)
        while len(guesses) < num_tokens:
            self._read += unread
            ids = torch.tensor([unread], device=self._model.device)
            logits = self._model.extend(ids, self._kv_cache)[:, -1]
            if not sound_rows(logits, [state])[0]:
                break
            logits = only_allowed(logits, [None if state is None else state.allowed])
            guess = self._choose(logits)
            guesses.append(guess)
            if guess.token_id == self._row.eos_id:
                break
            state = None if state is None else state.advance(guess.token_id)
            unread = [guess.token_id]
        return guesses

    def _forget_wrong(self, token_ids: Sequence[int]) -> list[int]:
        """Take back from the cache what was not taken; the tokens that it lacks."""
        num_right = 0
        while num_right < len(self._read) and self._read[num_right] == token_ids[num_right]:
            num_right += 1
        self._read = self._read[:num_right]
        self._kv_cache.truncate(self._prefix_length + num_right)
        return list(token_ids[num_right:])

    def _choose(self, logits: Tensor) -> _Guess:
        if self._row.sampler.temperature == 0:
            return _Guess(token_id=int(logits.argmax()), probabilities=None)
        probabilities = distribution(logits, self._row.sampler)
        token_id = int(draw(probabilities, [self._row.generator]))
        return _Guess(token_id=token_id, probabilities=probabilities[0])


class _LookupGuesser:
    """What followed the last run of tokens equal to the text's end."""

    def __init__(self, lookup: PromptLookup, inputs: ModelInputs) -> None:
        self._max_run = lookup.max_run
        self._prompt: list[int] = inputs.token_ids[0][~inputs.image_mask[0]].tolist()

    def guess(
        self, token_ids: Sequence[int], state: Constraint | None, num_tokens: int
    ) -> list[_Guess]:
        text = [*self._prompt, *token_ids]
        length = len(text)
        for num_equal in range(min(self._max_run, length - 1), 0, -1):
            for start in range(length - num_equal - 1, -1, -1):
                if text[start : start + num_equal] == text[length - num_equal : length]:
                    # The text grows as it is copied: a run that repeats goes on repeating.
                    for place in range(start + num_equal, start + num_equal + num_tokens):
                        text.append(text[place])
                    return [
                        _Guess(token_id=token_id, probabilities=None) for token_id in text[length:]
                    ]
        return []


def _ready(draft: DraftModel, model: PaliGemma, inputs: ModelInputs) -> DraftModel:
    """The draft with its inputs and image tokens."""
    found, expected = (m.config.decoder.vocab_size for m in (draft.model, model))
    if found != expected:
        raise OptionError(
            f"The draft model has a vocabulary of {found} tokens, the model one of {expected}. "
            "Take a draft model of the same family, with the same tokenizer."
        )
    own = (draft.inputs or inputs).to(draft.model.device)
    if own.token_ids.shape[0] != inputs.token_ids.shape[0]:
        raise OptionError(
            f"The draft model's inputs have {own.token_ids.shape[0]} rows, the model's "
            f"{inputs.token_ids.shape[0]}. Build both from the same prompts."
        )
    image_tokens = _image_tokens(draft.model, own, draft.image_tokens)
    return replace(draft, inputs=own, image_tokens=image_tokens)


def _image_tokens(model: PaliGemma, inputs: ModelInputs, given: Tensor | None) -> Tensor | None:
    """All pictures at once, before the rows are taken apart."""
    if given is not None or not any(inputs.image_index):
        return given
    return model.embed_images(inputs.pixel_values)


def _cache(model: PaliGemma, inputs: ModelInputs, num_more: int) -> KVCache:
    return KVCache(
        model.config.decoder,
        1,
        inputs.token_ids.shape[1] + num_more,
        dtype=model.dtype,
        device=model.device,
    )


def _stop_of_row(should_stop: ShouldStop | None, row: int) -> Callable[[list[int]], bool]:
    return lambda token_ids: should_stop is not None and should_stop(row, token_ids)


def _check_at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} is {value!r}; it must be a whole number of at least 1.")
