"""Continuous batching: requests come and go between steps, and all that run share each step.

Token ids in, token ids out; knows no text. What a request gets is what the plain loop gives it
alone, whatever else is going on.

    step: end what was cancelled or is late -> prefill one group -> decode all rows

    >>> engine = Engine(model, num_positions=600)              # doctest: +SKIP
    >>> rows = engine.run(requests)                            # doctest: +SKIP

or, for requests that come one by one:

    >>> number = engine.add(request)                           # doctest: +SKIP
    >>> while engine.has_work:                                 # doctest: +SKIP
    ...     for event in engine.step():
    ...         print(event.request_id, event.token_id, event.stop_reason)

One thread at a time may use an engine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from paligemma.adapters.bank import AdapterBank
from paligemma.engine.image_cache import ImageCache, KeyedImage, RecentCache
from paligemma.engine.request import PrefixKey, Request, RequestEnd, RequestState, TopLogprob
from paligemma.engine.sampling import choose_allowed, common_range, sound_rows
from paligemma.engine.scheduler import Scheduler
from paligemma.errors import OptionError, PromptError, check_whole
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import SlotCache
from paligemma.model.paligemma import PaliGemma

# B rows of this pass, T positions of the longest, I pictures, P image tokens, D decoder width


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a step brought one request: a token, its end, or both.

    `error` is the exception of a request that "failed". `top_logprobs` are of the model's own
    distribution, whatever temperature or grammar chose the token; where all rows of a pass were
    held to a range, of that range.
    """

    request_id: int
    token_id: int | None
    logprob: float | None
    stop_reason: RequestEnd | None
    error: Exception | None
    top_logprobs: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FinishedRequest:
    """What one request got; as `GeneratedRow`, with the ways to end that only an engine has."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: RequestEnd
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """All that a prefix of T tokens leaves behind."""

    hidden: Tensor
    """float[D]: of its last position, behind the last norm."""
    cache: Tensor
    """float[2L, K, T, H], as `SlotCache.copy_of` gives it."""

    @property
    def num_bytes(self) -> int:
        return self.hidden.nbytes + self.cache.nbytes


class Engine:
    """Runs any number of requests on one model, at most `max_rows` at a time.

    Every running request has room for `num_positions` (its prefix and all its new tokens); with
    `kv_cache_bytes` there are as many rows as fit into that, if fewer. `max_queued` requests may
    wait. A group of prefixes takes at most `max_prefill_positions`, pads counted: the memory that
    attention takes grows with it, and running requests wait while it is computed. Image tokens of
    pictures seen before are kept up to `image_cache_bytes`, or in an `image_cache` that other
    engines of this model share. What whole prefixes left behind is kept up to
    `prefix_cache_bytes`: a request that repeats one, pictures and all, is not read again. With
    `adapters`, which stand beside the model's layers, each request has its own, or none.
    """

    def __init__(
        self,
        model: PaliGemma,
        *,
        num_positions: int,
        max_rows: int = 32,
        kv_cache_bytes: int | None = None,
        image_cache_bytes: int = 256 * 2**20,
        image_cache: ImageCache | None = None,
        prefix_cache_bytes: int = 0,
        adapters: AdapterBank | None = None,
        max_queued: int = 1024,
        max_prefill_positions: int = 8192,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value, least in (
            ("num_positions", num_positions, 1),
            ("max_rows", max_rows, 1),
            ("max_queued", max_queued, 1),
            ("max_prefill_positions", max_prefill_positions, 1),
            ("image_cache_bytes", image_cache_bytes, 0),
            ("prefix_cache_bytes", prefix_cache_bytes, 0),
        ):
            check_whole(name, value, least)
        decoder = model.config.decoder
        if kv_cache_bytes is not None:
            row_bytes = num_positions * SlotCache.bytes_per_position(decoder, model.dtype)
            if (max_rows := min(max_rows, kv_cache_bytes // row_bytes)) < 1:
                raise OptionError(
                    f"kv_cache_bytes is {kv_cache_bytes}, but one row of {num_positions} positions "
                    f"takes {row_bytes} bytes. Raise kv_cache_bytes or lower num_positions."
                )
        self.model = model
        self.num_positions = num_positions
        self._clock = clock
        self._adapters = adapters
        self._images = ImageCache(image_cache_bytes) if image_cache is None else image_cache
        self.prefixes: RecentCache[Prefix] = RecentCache(prefix_cache_bytes)
        self._scheduler = Scheduler(
            max_rows=max_rows,
            max_queued=max_queued,
            max_prefill_positions=max_prefill_positions,
        )
        self._slots = SlotCache(
            decoder, max_rows, num_positions, dtype=model.dtype, device=model.device
        )
        self._next_id = 0
        self._states: dict[int, RequestState] = {}
        self._events: list[Event] = []
        self._inboxes: dict[int, list[Event]] = {}

    # Requests come and go

    @property
    def has_work(self) -> bool:
        """True while a step has something to do or to tell."""
        return bool(self._states or self._events)

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_queued(self) -> int:
        return self._scheduler.num_queued

    def add(self, request: Request) -> int:
        """Put a request into the queue; gives back the number that its events will have.

        Raises PromptError or OptionError for a request that does not fit the model or the cache,
        and BusyError when too many are waiting.
        """
        state = self._checked(request)
        self._scheduler.add(state)
        self._states[state.request_id] = state
        self._next_id += 1
        return state.request_id

    def cancel(self, request_id: int) -> bool:
        """End a request, waiting or running, before the next step; False if it has ended."""
        if (state := self._states.get(request_id)) is None:
            return False
        state.is_cancelled = True
        return True

    def run(self, requests: Sequence[Request]) -> list[FinishedRequest]:
        """All of these, in this order; raises what `add` raises, before any is started."""
        token_ids: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        ends: dict[int, Event] = {}
        for number, event in self.stream(requests):
            if event.token_id is not None and event.logprob is not None:
                token_ids[number].append(event.token_id)
                logprobs[number].append(event.logprob)
            if event.stop_reason is not None:
                ends[number] = event
        return [
            FinishedRequest(
                token_ids=tuple(ids), logprobs=tuple(values), stop_reason=reason, error=end.error
            )
            for number, (ids, values) in enumerate(zip(token_ids, logprobs, strict=True))
            if (reason := (end := ends[number]).stop_reason) is not None
        ]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        """As `run`, but gives (place in `requests`, event) as soon as it is known.

        Several may be read in turns, and beside `add` and `step`. Requests of a stream that is
        closed early are cancelled.
        """
        for request in requests:
            self._checked(request)
        return self._stream(requests)

    def _stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        waiting = deque(enumerate(requests))
        numbers: dict[int, int] = {}  # request id -> place in `requests`
        inbox: list[Event] = []
        try:
            while waiting or numbers:
                while waiting and not self._scheduler.is_full:
                    number, request = waiting.popleft()
                    request_id = self.add(request)
                    numbers[request_id] = number
                    self._inboxes[request_id] = inbox
                if not inbox:
                    self.step()
                events = list(inbox)
                inbox.clear()
                for event in events:
                    number = numbers[event.request_id]
                    if event.stop_reason is not None:
                        del numbers[event.request_id]
                    yield number, event
        finally:
            for request_id in numbers:
                self.cancel(request_id)
                self._inboxes.pop(request_id, None)

    def _checked(self, request: Request) -> RequestState:
        """Its state at the beginning, if it fits this model and this cache."""
        config = self.model.config
        if self._adapters is not None:
            self._adapters.check(request.adapter)
        elif request.adapter:
            raise OptionError(
                f"The request names the adapter {request.adapter!r}, but the engine has none. "
                "Leave the adapter out."
            )
        if request.num_positions > self.num_positions:
            raise PromptError(
                f"The request needs {request.num_positions} positions, {request.max_new_tokens} "
                f"of them for new tokens; the engine has {self.num_positions} per request. "
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
        num_image_tokens = config.vision.num_image_tokens
        if num_image_positions != len(request.images) * num_image_tokens:
            raise PromptError(
                f"The request has {num_image_positions} image token positions, but "
                f"{len(request.images)} image(s) of {num_image_tokens} tokens each. Build it with "
                "a processor for the model's resolution."
            )
        shape = (3, config.vision.resolution, config.vision.resolution)
        for image in request.images:
            if image.pixel_values.shape != shape:
                raise PromptError(
                    f"An image has shape {list(image.pixel_values.shape)}; the model takes "
                    f"{list(shape)}. Prepare it with a processor for the model's resolution."
                )
        return RequestState(request_id=self._next_id, request=request, vocab_size=vocab_size)

    # What is shared with passes that are not a request's

    @torch.inference_mode()
    def image_tokens(self, images: Sequence[KeyedImage]) -> Tensor:
        """float[I, P, D] of at least one picture, from the engine's cache where they are known."""
        return self._images.encode(images, self.model)

    def select_adapters(self, names: Sequence[str]) -> None:
        """Before a pass of the model: whose rows it has, one name a row; "" for no adapter."""
        if self._adapters is not None:
            self._adapters.select(names)

    # One step

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Prefill a group of waiting requests, if any fits, and give every running row a token.

        Raises nothing for a request's sake: it ends with "failed" and its error.
        """
        self._end_cancelled_and_late()
        if (row := self._scheduler.row_to_give_back()) is not None:
            self._scheduler.put_back([self._free(row)])
        has_running = bool(self._scheduler.running)
        if group := self._scheduler.next_group():
            self._prefill(group)
        # When all are new, nobody waits for a decode step: their first tokens are told at once.
        if has_running:
            self._decode()
        events, self._events = self._events, []
        for event in events:
            if (inbox := self._inboxes.get(event.request_id)) is not None:
                inbox.append(event)
                if event.stop_reason is not None:
                    del self._inboxes[event.request_id]
        return events

    def _end_cancelled_and_late(self) -> None:
        now = self._clock()
        for state in list(self._states.values()):
            if state.is_cancelled:
                state.stop_reason = "cancelled"
            elif state.request.deadline is not None and state.request.deadline <= now:
                state.stop_reason = "expired"
            else:
                continue
            if state not in self._scheduler.running:
                self._scheduler.drop(state)
            self._tell(state)
        self._free_ended()

    def _prefill(self, group: list[RequestState]) -> None:
        first = self._slots.num_rows
        vocab_range = common_range(state.constraint for state in group)
        try:
            group, hidden = self._read(group)
            logits = self.model.decoder.logits(hidden, vocab_range=vocab_range)
            chosen = _choose(logits, group, vocab_range)
        except BaseException as error:
            for row, state in enumerate(group, start=first):
                self._slots.wipe(row)
                state.rewind()
            if not isinstance(error, Exception):
                self._scheduler.put_back(group)
                raise
            # In halves, down to the one request that cannot be prefilled at all.
            self._scheduler.prefill_failed(group)
            if len(group) > 1:
                self._scheduler.put_back(group)
            else:
                self._put_back(group, error)
            return
        self._slots.admit([state.num_tokens for state in group])
        self._scheduler.prefilled(group)
        self._accept(group, chosen)

    def _read(self, group: list[RequestState]) -> tuple[list[RequestState], Tensor]:
        """Fill the next free slots -> whose they are, and the last hidden states, float[B, D].

        Prefixes that are known, or stand in the group twice, are not computed; they come last.
        """
        if not self.prefixes.max_bytes:
            return group, self._compute(group)
        keys = [state.prefix_key() for state in group]
        known = {key: self.prefixes.get(key) for key in dict.fromkeys(keys)}
        new: dict[PrefixKey, RequestState] = {}
        repeated: list[tuple[PrefixKey, RequestState]] = []
        for key, state in zip(keys, group, strict=True):
            if known[key] is None and key not in new:
                new[key] = state
            else:
                repeated.append((key, state))
        found = {key: prefix for key, prefix in known.items() if prefix is not None}
        if new:
            found |= self._keep(new, self._compute(list(new.values())))
        for slot, (key, _) in enumerate(repeated, self._slots.num_rows + len(new)):
            self._slots.restore(slot, found[key].cache)
        hidden = [found[key].hidden for key in (*new, *(key for key, _ in repeated))]
        return [*new.values(), *(state for _, state in repeated)], torch.stack(hidden)

    def _keep(
        self, new: Mapping[PrefixKey, RequestState], hidden: Tensor
    ) -> dict[PrefixKey, Prefix]:
        """What was just computed into the next free slots, for those who ask it again."""
        made = {}
        for slot, (key, state) in enumerate(new.items(), self._slots.num_rows):
            row = hidden[slot - self._slots.num_rows].clone()
            made[key] = Prefix(hidden=row, cache=self._slots.copy_of(slot, state.num_tokens))
            if bool(row.isfinite().all()):
                self.prefixes.keep(key, made[key], made[key].num_bytes)
        return made

    def _compute(self, group: Sequence[RequestState]) -> Tensor:
        """The prefixes of these into the next free slots -> float[B, D]."""
        inputs, image_tokens = self._inputs(group)
        self.select_adapters([state.request.adapter for state in group])
        return self.model.prefix_state(inputs, self._slots.fresh(len(group)), image_tokens)

    def _inputs(self, group: Sequence[RequestState]) -> tuple[ModelInputs, Tensor | None]:
        """The group as one batch with pads on the right, and float[I, P, D] of its pictures.

        A row that was put back brings the tokens it had, as its causal suffix.
        """
        shape = (len(group), max(state.num_tokens for state in group))
        token_ids = torch.zeros(shape, dtype=torch.long)
        input_mask, mask_ar, image_mask = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        for row, state in enumerate(group):
            suffix = len(state.request.token_ids)
            token_ids[row, :suffix] = state.request.token_ids
            image_mask[row, :suffix] = state.request.image_mask
            token_ids[row, suffix : state.num_tokens] = torch.tensor(state.token_ids)
            input_mask[row, : state.num_tokens] = True
            mask_ar[row, suffix : state.num_tokens] = True
        images = {image.key: image for state in group for image in state.request.images}
        places = {key: place for place, key in enumerate(images)}
        inputs = ModelInputs(
            token_ids=token_ids,
            input_mask=input_mask,
            mask_ar=mask_ar,
            image_mask=image_mask,
            pixel_values=None,
            image_index=tuple(
                tuple(places[image.key] for image in state.request.images) for state in group
            ),
        ).to(self.model.device)
        if not images:
            return inputs, None
        return inputs, self._images.encode(list(images.values()), self.model)

    def _decode(self) -> None:
        running = self._scheduler.running
        lengths = list(self._slots.row_lengths)
        last_ids = torch.tensor([s.token_ids[-1] for s in running], device=self.model.device)
        vocab_range = common_range(state.constraint for state in running)
        try:
            self.select_adapters([state.request.adapter for state in running])
            logits = self.model.decode_step(last_ids, self._slots, vocab_range)
            chosen = _choose(logits, running, vocab_range)
        except BaseException as error:
            for row, (state, length) in enumerate(zip(running, lengths, strict=True)):
                self._slots.truncate(row, length)
                state.rewind()
            if not isinstance(error, Exception):
                raise
            # The first half of the rows goes on, the others wait for their return.
            self._scheduler.decode_failed()
            rows = range(len(running) // 2, len(running))
            for row in rows:
                self._slots.wipe(row)
            self._put_back([self._free(row) for row in reversed(rows)], error)
            return
        self._scheduler.decoded()
        self._accept(running, chosen)

    def _put_back(self, states: Sequence[RequestState], error: Exception) -> None:
        """Let requests start anew after a pass that failed for them; the second time they fail."""
        for state in states:
            if state.has_failed_before:
                state.fail(error)
                self._tell(state)
            state.has_failed_before = True
        self._scheduler.put_back(state for state in states if state.stop_reason is None)

    def _accept(self, states: Sequence[RequestState], chosen: Sequence[_Chosen]) -> None:
        """Give rows the tokens chosen for them; those that end leave at once."""
        for state, one in zip(states, chosen, strict=True):
            if one.is_sound:
                state.accept(one.token_id, one.logprob)
                self._tell(state, one)
            else:
                state.stop_reason = "numerical_error"
                self._tell(state)
        self._free_ended()

    def _tell(self, state: RequestState, chosen: _Chosen | None = None) -> None:
        self._events.append(
            Event(
                request_id=state.request_id,
                token_id=None if chosen is None else chosen.token_id,
                logprob=None if chosen is None else chosen.logprob,
                stop_reason=state.stop_reason,
                error=state.error,
                top_logprobs=() if chosen is None else chosen.top_logprobs,
            )
        )
        if state.stop_reason is not None:
            del self._states[state.request_id]

    def _free_ended(self) -> None:
        # From the last row on: whoever moves into a freed place was looked at before.
        for row, state in reversed(list(enumerate(self._scheduler.running))):
            if state.stop_reason is not None:
                if state.stop_reason == "numerical_error":
                    self._slots.wipe(row)
                self._free(row)

    def _free(self, row: int) -> RequestState:
        self._slots.remove(row)
        return self._scheduler.remove(row)


class _Chosen(NamedTuple):
    token_id: int
    logprob: float
    is_sound: bool
    top_logprobs: tuple[TopLogprob, ...]


def _choose(
    logits: Tensor, states: Sequence[RequestState], vocab_range: range | None
) -> list[_Chosen]:
    """For each row of float32[B, V] a token, and whether the row is sound."""
    token_ids, logprobs = [0] * len(states), [0.0] * len(states)
    # Rows of other seeds are chosen together: each has its own generator.
    samplers = [replace(state.request.sampler, seed=0) for state in states]
    for sampler in dict.fromkeys(samplers):
        rows = [row for row, own in enumerate(samplers) if own == sampler]
        of_all = len(rows) == len(states)
        ids, values = choose_allowed(
            logits if of_all else logits[torch.tensor(rows, device=logits.device)],
            [states[row].constraint for row in rows],
            sampler,
            [states[row].generator for row in rows],
            vocab_range,
        )
        for row, token_id, logprob in zip(rows, ids.tolist(), values.tolist(), strict=True):
            token_ids[row], logprobs[row] = token_id, logprob
    sound = sound_rows(logits, [state.constraint for state in states], vocab_range)
    first_id = 0 if vocab_range is None else vocab_range.start
    tops = [
        _top_logprobs(logits[row], state.request.num_top_logprobs, first_id)
        for row, state in enumerate(states)
    ]
    return [_Chosen(*found) for found in zip(token_ids, logprobs, sound, tops, strict=True)]


def _top_logprobs(logits: Tensor, number: int, first_id: int) -> tuple[TopLogprob, ...]:
    """The likeliest ids by float32[V] logits, of which the first is that of `first_id`."""
    if number == 0:
        return ()
    values, places = torch.log_softmax(logits, dim=0).topk(min(number, len(logits)))
    return tuple(
        TopLogprob(place + first_id, value)
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
    )
