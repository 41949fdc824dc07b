"""Continuous batching: requests join and leave between steps, and all running ones share each step.

Token ids in, token ids out. Each request gets exactly what the reference loop (`generate.py`) gives
it alone, whatever else is running.

    step: end cancelled and expired requests -> prefill one group -> decode all running rows

    >>> engine = Engine(model, num_positions=600)              # doctest: +SKIP
    >>> rows = engine.run(requests)                            # doctest: +SKIP

or, for requests that arrive one by one:

    >>> request_id = engine.add(request)                       # doctest: +SKIP
    >>> while engine.has_work:                                 # doctest: +SKIP
    ...     for event in engine.step():
    ...         print(event.request_id, event.token_id, event.stop_reason)

An engine must be used by one thread at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paligemma.adapters.bank import AdapterBank
from paligemma.engine.image_cache import ImageCache, KeyedImage, RecentCache
from paligemma.engine.request import Request, RequestEnd, RequestState, TopLogprob
from paligemma.engine.runner import ChosenToken, Prefix, Runner
from paligemma.engine.scheduler import Scheduler
from paligemma.errors import OptionError, check_whole
from paligemma.model.kv_cache import SlotCache
from paligemma.model.paligemma import PaliGemma
from paligemma.results import RangeSummary


@dataclass(frozen=True, kw_only=True)
class Event:
    """The outcome of a step for one request: a new token, its end, or both.

    `error` is the exception of a request that "failed". `top_logprobs` come from the model's own
    distribution, before temperature and grammar; where all rows of a pass were constrained to a
    range, from the distribution over that range.
    """

    request_id: int
    token_id: int | None
    logprob: float | None
    stop_reason: RequestEnd | None
    error: Exception | None
    top_logprobs: tuple[TopLogprob, ...] = ()
    summary: RangeSummary | None = None
    """Of the distribution over the request's `summarized_ids`, if the token is one of them."""
    allowed_probability: float = 1.0
    """Of all ids that the request's constraint allowed; 1 without one, and where it allowed one
    range, to which the log-probability is relative."""


@dataclass(frozen=True, kw_only=True)
class FinishedRequest:
    """The result of one request: as `GeneratedRow`, with the engine's additional stop reasons."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: RequestEnd
    error: Exception | None = None
    allowed_probabilities: tuple[float, ...] = ()


class Engine:
    """Runs any number of requests on one model, at most `max_rows` at a time.

    Each running request has `num_positions` for its prefix and all its new tokens. With
    `kv_cache_bytes`, fewer rows run if not all fit into that. Up to `max_queued` requests may
    wait. A prefill group has at most `max_prefill_positions`, including pads, which bounds the
    memory for attention and the time that running requests wait for it. While requests run, prefill
    takes at most `max_prefill_share` of the time, so that answers which have begun go on at a
    steady pace however many others arrive. Image tokens are cached up
    to `image_cache_bytes`, or in an `image_cache` shared with other engines of the model. The
    states after whole prefixes are cached up to `prefix_cache_bytes`, so a request that repeats
    prompt and images is not computed again. With `adapters`, each request may use one of them.

    Raises OptionError for numbers out of range, and for a `kv_cache_bytes` too small for one row.
    """

    def __init__(  # noqa: PLR0913
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
        max_prefill_share: float = 1.0,
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
        if not 0 < max_prefill_share <= 1:
            raise OptionError(
                f"max_prefill_share is {max_prefill_share}; it must be above 0 and at most 1."
            )
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
        self._decode_per_prefill = (1 - max_prefill_share) / max_prefill_share
        self._owed_decode_seconds = 0.0  # before the next prefill
        self._scheduler = Scheduler(
            max_rows=max_rows, max_queued=max_queued, max_prefill_positions=max_prefill_positions
        )
        self._runner = Runner(
            model,
            SlotCache(decoder, max_rows, num_positions, dtype=model.dtype, device=model.device),
            image_cache=ImageCache(image_cache_bytes) if image_cache is None else image_cache,
            prefix_cache_bytes=prefix_cache_bytes,
            adapters=adapters,
        )
        self._next_id = 0
        self._states: dict[int, RequestState] = {}
        self._events: list[Event] = []
        self._inboxes: dict[int, list[Event]] = {}

    # Adding and cancelling requests

    @property
    def has_work(self) -> bool:
        """True while there are requests or events left."""
        return bool(self._states or self._events)

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_queued(self) -> int:
        return self._scheduler.num_queued

    def add(self, request: Request, *, goes_first: bool = False) -> int:
        """Queue a request, before its client's others if it goes first; return its id.

        The id is that of its events.

        Raises PromptError or OptionError for a request that does not fit the model or the cache,
        and BusyError when the queue is full.
        """
        self._runner.check(request)
        state = self._new_state(request)
        self._scheduler.add(state, goes_first=goes_first)
        self._states[state.request_id] = state
        self._next_id += 1
        return state.request_id

    def cancel(self, request_id: int) -> bool:
        """End a waiting or running request before the next step; False if it has ended."""
        if (state := self._states.get(request_id)) is None:
            return False
        state.is_cancelled = True
        return True

    def run(self, requests: Sequence[Request]) -> list[FinishedRequest]:
        """Run these requests to their end; return the results in the same order.

        Raises what `add` raises, before any request is started.
        """
        token_ids: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        probabilities: list[list[float]] = [[] for _ in requests]
        last_events: dict[int, Event] = {}
        for index, event in self.stream(requests):
            if event.token_id is not None and event.logprob is not None:
                token_ids[index].append(event.token_id)
                logprobs[index].append(event.logprob)
                probabilities[index].append(event.allowed_probability)
            if event.stop_reason is not None:
                last_events[index] = event
        return [
            FinishedRequest(
                token_ids=tuple(token_ids[index]),
                logprobs=tuple(logprobs[index]),
                stop_reason=reason,
                error=last.error,
                allowed_probabilities=tuple(probabilities[index]),
            )
            for index in range(len(requests))
            if (reason := (last := last_events[index]).stop_reason) is not None
        ]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        """As `run`, but yield (index into `requests`, event) as soon as a token is known.

        Several streams may be read alternately, and along with `add` and `step`. Closing a stream
        early cancels its requests.
        """
        for request in requests:
            self._runner.check(request)
            self._new_state(request)
        return self._stream(requests)

    def _stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        waiting = deque(enumerate(requests))
        indices: dict[int, int] = {}  # request id -> index into `requests`
        inbox: list[Event] = []
        try:
            while waiting or indices:
                while waiting and not self._scheduler.is_full:
                    index, request = waiting.popleft()
                    request_id = self.add(request)
                    indices[request_id] = index
                    self._inboxes[request_id] = inbox
                if not inbox:
                    self.step()
                events = list(inbox)
                inbox.clear()
                for event in events:
                    index = indices[event.request_id]
                    if event.stop_reason is not None:
                        del indices[event.request_id]
                    yield index, event
        finally:
            for request_id in indices:
                self.cancel(request_id)
                self._inboxes.pop(request_id, None)

    def _new_state(self, request: Request) -> RequestState:
        vocab_size = self.model.config.decoder.vocab_size
        return RequestState(request_id=self._next_id, request=request, vocab_size=vocab_size)

    # Shared with passes outside of requests, such as scoring

    @property
    def prefixes(self) -> RecentCache[Prefix]:
        """The cache of prefixes, with its hits and misses."""
        return self._runner.prefixes

    @torch.inference_mode()
    def image_tokens(self, images: Sequence[KeyedImage]) -> Tensor:
        """Return float[I, P, D] of at least one image, from the engine's cache where possible."""
        return self._runner.image_tokens(images)

    def select_adapters(self, names: Sequence[str]) -> None:
        """Set the adapters of the next pass of the model, one name per row; "" for none."""
        self._runner.select_adapters(names)

    # One step

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Prefill a group of waiting requests, if any fits, and decode a token per running row.

        Never raises because of one request, which instead ends as "failed" with its error.
        """
        self._end_cancelled_and_expired()
        has_running = bool(self._scheduler.running)
        if not has_running or self._owed_decode_seconds <= 0:
            self._start_waiting()
        # When all rows are new, their first tokens are returned without waiting for a decode step.
        if has_running:
            started = self._clock()
            self._decode()
            self._owed_decode_seconds -= self._clock() - started
        events, self._events = self._events, []
        for event in events:
            if (inbox := self._inboxes.get(event.request_id)) is not None:
                inbox.append(event)
                if event.stop_reason is not None:
                    del self._inboxes[event.request_id]
        return events

    def _end_cancelled_and_expired(self) -> None:
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
            self._emit(state)
        self._remove_ended()

    def _start_waiting(self) -> None:
        if (row := self._scheduler.row_to_preempt()) is not None:
            self._scheduler.requeue([self._remove(row)])
        if group := self._scheduler.next_group():
            started = self._clock()
            self._prefill(group)
            self._owed_decode_seconds = self._decode_per_prefill * (self._clock() - started)

    def _prefill(self, group: list[RequestState]) -> None:
        try:
            states, tokens = self._runner.prefill(group)
        except Exception as error:
            # Retry in halves, down to the one request that cannot be prefilled at all.
            self._scheduler.prefill_failed(group)
            if len(group) > 1:
                self._scheduler.requeue(group)
            else:
                self._requeue_or_fail(group, error)
            return
        except BaseException:
            self._scheduler.requeue(group)
            raise
        self._scheduler.prefilled(states)
        self._accept(states, tokens)

    def _decode(self) -> None:
        running = self._scheduler.running
        try:
            tokens = self._runner.decode(running)
        except Exception as error:
            # The first half of the rows continues; the others are requeued.
            self._scheduler.decode_failed()
            rows = range(len(running) // 2, len(running))
            removed = [self._remove(row, wipe=True) for row in reversed(rows)]
            self._requeue_or_fail(removed, error)
            return
        self._scheduler.decoded()
        self._accept(running, tokens)

    def _requeue_or_fail(self, states: Sequence[RequestState], error: Exception) -> None:
        """Requeue requests after a pass that failed for them; the second time, they fail."""
        for state in states:
            if state.has_failed_before:
                state.fail(error)
                self._emit(state)
            state.has_failed_before = True
        self._scheduler.requeue(state for state in states if state.stop_reason is None)

    def _accept(self, states: Sequence[RequestState], tokens: Sequence[ChosenToken]) -> None:
        for state, token in zip(states, tokens, strict=True):
            if token.is_finite:
                state.accept(token.token_id, token.logprob)
                self._emit(state, token)
            else:
                state.stop_reason = "numerical_error"
                self._emit(state)
        self._remove_ended()

    def _emit(self, state: RequestState, token: ChosenToken | None = None) -> None:
        self._events.append(
            Event(
                request_id=state.request_id,
                token_id=None if token is None else token.token_id,
                logprob=None if token is None else token.logprob,
                stop_reason=state.stop_reason,
                error=state.error,
                top_logprobs=() if token is None else token.top_logprobs,
                summary=None if token is None else token.summary,
                allowed_probability=1.0 if token is None else token.allowed_probability,
            )
        )
        if state.stop_reason is not None:
            del self._states[state.request_id]

    def _remove_ended(self) -> None:
        # In reverse: the row that moves into a freed slot has already been visited.
        for row, state in reversed(list(enumerate(self._scheduler.running))):
            if state.stop_reason is not None:
                self._remove(row, wipe=state.stop_reason == "numerical_error")

    def _remove(self, row: int, *, wipe: bool = False) -> RequestState:
        self._runner.remove(row, wipe=wipe)
        return self._scheduler.remove(row)
