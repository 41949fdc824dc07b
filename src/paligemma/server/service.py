"""Runs many jobs at a time on one model. Each is accepted or refused at once.

    submit -> queue -> decoders -> engine thread -> writer -> Ticket
              (by client)         (EngineLoop)     (Answer)  (asyncio)

There are four kinds of threads, and none waits for a client: decoders prepare images and prompts,
one thread runs the model, one builds answers and enforces time limits, and one builds masks. An
accepted job ends with a result, with an error, or cancelled by its client.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import queue
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from paligemma.adapters.bank import AdapterBank
from paligemma.adapters.lora import LowRank
from paligemma.answering import CONTEXT_LENGTH, Answer, AnswerPipeline, PreparedImage, Update, Usage
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.engine.engine import Engine, Event
from paligemma.engine.image_cache import ImageCache, RecentCache
from paligemma.errors import (
    BusyError,
    CancelledError,
    OptionError,
    PaliGemmaError,
    TimeLimitError,
    UnavailableError,
    counted,
)
from paligemma.model.kv_cache import SlotCache
from paligemma.predictor import Predictor
from paligemma.server.engine_loop import EngineLoop, Outcome, is_end
from paligemma.server.jobs import (
    TOTALS,
    Ended,
    FairQueue,
    HowEnded,
    ImagePayload,
    Job,
    JobState,
    ScoreJob,
    ServedRate,
    State,
    Stats,
    Ticket,
)
from paligemma.server.preparing import PreparedScore, Preprocessor
from paligemma.server.settings import Limits
from paligemma.threads import available_cpus, share_cpus

Post = Callable[[asyncio.AbstractEventLoop, Callable[[], None]], None]
"""Runs a call in an event loop."""

_TICK_SECONDS = 0.05  # resolution of time limits
_ARRIVAL_SECONDS = 0.5  # that the body of an admitted request usually takes at most
_SLOW_PER_CLIENT = 16  # requests with large images that may wait
_UNMEASURED_JOBS = 32  # that may wait before it is known how fast they are served
_MANY_REFUSALS = 32  # in a second: they take a good part of a CPU
_ENGINE_QUEUE = 2**16  # never full: the service limits what it accepts
_PREFILL_POSITIONS = 512  # per prefill step, while all running answers wait
_PREFILL_SHARE = 0.7  # of the time in which answers are running

_log = logging.getLogger("paligemma.server")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A predictor and the adapters of its model by name."""

    predictor: Predictor
    adapters: Mapping[str, Mapping[str, LowRank]] = field(default_factory=dict)
    """Name of the adapter -> name of the layer -> weights, as `read_adapter` returns them."""
    trained_on: Mapping[str, TrainedOn] = field(default_factory=dict)
    """Name of the adapter -> what it was trained on, where that is known."""


@dataclass(kw_only=True, eq=False)
class _Work:
    """One accepted job, until it is released."""

    ticket: Ticket
    job: Job | ScoreJob
    kind: str
    accepted_at: float
    queue_deadline: float
    deadline: float
    image_bytes: int
    prepared: Answer | PreparedScore | None = None
    first_token_at: float | None = None
    is_continuation: bool  # of a request that was accepted, and has waited
    is_patient: bool
    is_waiting: bool  # for its first token; continuations and patient jobs are not counted
    is_slow: bool = False
    state: JobState = JobState.QUEUED

    @property
    def has_ended(self) -> bool:
        """True when its client has been told how; the engine may hold it a little longer."""
        return self.state is JobState.ENDED


class Service:
    """Answers jobs with one model.

    `load` is called in the engine's thread. Clients use `name` for the model and `adapter_names`
    for its adapters. `clock` returns seconds, like time.monotonic. `on_end` is called in any
    thread for each job that has ended.
    """

    def __init__(
        self,
        load: Callable[[], Loaded | Predictor],
        *,
        name: str,
        adapter_names: Sequence[str] = (),
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_end: Callable[[Ended], None] | None = None,
    ) -> None:
        self.name = name
        self.adapter_names = tuple(adapter_names)
        self.limits = limits or Limits()
        self.failure: BaseException | None = None
        """Why the model could not be loaded, or why the engine's thread ended."""
        self.on_end = on_end
        self.predictor: Predictor | None = None
        self._load = load
        self._trained_on: Mapping[str, TrainedOn] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._open: dict[int, _Work] = {}  # accepted and not released
        self._by_client: Counter[str] = Counter()
        self._rate = ServedRate()
        self._arrivals: dict[int, float] = {}  # requests whose bodies are received -> since when
        self._refused_at: deque[float] = deque(maxlen=_MANY_REFUSALS)
        self._image_bytes = 0
        self._totals: Counter[str] = Counter()
        self._is_draining = False
        self._num_held = 0
        self._is_closing = False
        self._max_running = self.limits.max_running
        self._loop: EngineLoop | None = None
        self._preprocessor: Preprocessor | None = None
        self._image_cache: ImageCache | None = None
        self._queue: FairQueue[list[_Work]] = FairQueue()
        self._outbox: queue.SimpleQueue[list[tuple[_Work, Outcome]] | None] = queue.SimpleQueue()
        self._masks = ThreadPoolExecutor(
            1, thread_name_prefix="paligemma-masks", initializer=_compute_with, initargs=(1,)
        )
        self._threads: list[threading.Thread] = []
        share_cpus()
        self._num_threads = torch.get_num_threads()
        self._num_threads_under_overload = max(1, min(self._num_threads, available_cpus() - 1))

    # Life

    def start(self) -> None:
        """Start the threads, one of which loads the model; see `state()`."""
        bodies = [("engine", self._run_engine), ("writer", self._run_writer)]
        num_decoders = self.limits.num_decoders
        for number in range(num_decoders):
            # The first leaves large images to the others, so that small ones never wait for them.
            run = functools.partial(self._run_decoder, with_slow=number > 0 or num_decoders == 1)
            bodies.append((f"decoder-{number}", run))
        self._threads = [
            threading.Thread(target=body, name=f"paligemma-{name}", daemon=True)
            for name, body in bodies
        ]
        for thread in self._threads:
            thread.start()

    async def wait_until_ready(self) -> None:
        """Wait for the model. Raises UnavailableError, caused by `failure`, if loading fails."""
        while (state := self.state()) == "loading":
            await asyncio.sleep(_TICK_SECONDS)
        if state == "dead":
            raise UnavailableError(
                "The model could not be loaded. See the server's log."
            ) from self.failure

    def state(self) -> State:
        """The current state; "dead" when the engine's thread has ended or hangs."""
        if self.failure is not None or self._is_closing or self._is_stalled():
            return "dead"
        if self._is_draining:
            return "draining"
        return "loading" if self._loop is None else "ready"

    def is_alive(self) -> bool:
        """False when the process must be restarted."""
        return self.state() != "dead"

    async def drain(self, seconds: float | None = None) -> None:
        """Refuse new jobs, give accepted ones this long to finish, then end them."""
        self._is_draining = True
        until = self._clock() + (self.limits.drain_seconds if seconds is None else seconds)
        while (self._open or self._num_held) and self._clock() < until and self.is_alive():
            await asyncio.sleep(_TICK_SECONDS)
        self._end_all("The server is shutting down.")

    def now(self) -> float:
        """The time on the service's clock, for deadlines."""
        return self._clock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, draining waits as for a job: an accepted request will submit further ones."""
        self._num_held += 1
        try:
            yield
        finally:
            self._num_held -= 1

    def close(self, *, wait: bool = True) -> None:
        """End all jobs and threads now, and free the caches: an application may outlive this.

        Without `wait`, threads may still be running afterwards.
        """
        self._is_closing = True
        self._end_all("The server is shutting down.")
        self._queue.close()
        if self._loop is not None:
            self._loop.close()
        self._outbox.put(None)
        self._masks.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            thread.join(timeout=5.0 if wait else 0.0)
        if not any(thread.is_alive() for thread in self._threads):
            self._loop = self._preprocessor = self._image_cache = None
            if self.failure is not None:
                traceback.clear_frames(self.failure.__traceback__)

    @property
    def models(self) -> dict[str, str | None]:
        """Names for clients -> `JobOptions.adapter`; the model itself is first."""
        return {self.name: None} | {name: name for name in self.adapter_names}

    def trained_on(self, adapter: str | None) -> TrainedOn | None:
        """What the model or an adapter was trained on, if it says so."""
        if adapter is not None:
            return self._trained_on.get(adapter)
        return None if self.predictor is None else self.predictor.trained_on

    # Jobs

    def submit(self, job: Job | ScoreJob) -> Ticket:
        """Accept a job in the running event loop, without blocking.

        Raises InputError for an invalid job, BusyError when too many are waiting, and
        UnavailableError when the model is loading, draining or dead.
        """
        return self.submit_all([job])[0]

    def submit_all(
        self,
        jobs: Sequence[Job | ScoreJob],
        *,
        is_continuation: bool = False,
        is_patient: bool = False,
    ) -> list[Ticket]:
        """Accept all of these jobs or none. An image that they share is decoded once.

        `is_continuation` is for further jobs of a request that was accepted. They must not fail
        because others came in between, and go first: their request has waited. `is_patient` is for
        those of an accepted request with so many that they can wait, until their deadline: they
        take only half of the queue, and others are not refused because of them.
        """
        if not jobs:
            return []
        for job in jobs:
            job.check(self.limits)
            adapter = job.adapter if isinstance(job, ScoreJob) else job.options.adapter
            if adapter is not None and adapter not in self.adapter_names:
                raise OptionError("Unknown adapter. See the list of models.")
        state = self.state()
        is_further = is_continuation or is_patient
        if state != "ready" and not (is_further and state == "draining"):
            raise UnavailableError(f"The model is unavailable: it is {state}.")
        loop = asyncio.get_running_loop()
        now = self._clock()
        works = [self._work(job, loop, now, is_continuation, is_patient) for job in jobs]
        with self._lock:
            if is_patient:
                self._check_patient_room(jobs[0].client, len(works))
            elif not is_continuation:
                try:
                    self._check_room(works, now)
                except BusyError:
                    self._totals["rejected"] += len(works)
                    raise
                self._rate.add(jobs[0].client, len(works), now)
            for work in works:
                self._open[work.ticket.number] = work
                self._by_client[work.job.client] += 1
                self._image_bytes += work.image_bytes
            self._totals["accepted"] += len(works)
        # On their own like large images: in a queue that lets the others pass.
        self._queue.put(jobs[0].client, works, is_slow=is_patient, goes_first=is_continuation)
        return [work.ticket for work in works]

    def admit(self, client: str) -> int:
        """Refuse a request before its body is read if its jobs would be refused.

        Returns a number for `end_arrival`. Raises BusyError or UnavailableError.
        """
        self.check_admission(client)
        number = next(self._numbers)
        with self._lock:
            self._arrivals[number] = self._clock()
        return number

    def check_admission(self, client: str) -> None:
        """Raises what `admit` would raise now."""
        if (state := self.state()) != "ready":
            raise UnavailableError(f"The model is unavailable: it is {state}.")
        now = self._clock()
        with self._lock:
            while self._arrivals:  # slow bodies take no room
                oldest = next(iter(self._arrivals))
                if self._arrivals[oldest] > now - _ARRIVAL_SECONDS:
                    break
                del self._arrivals[oldest]
            try:
                self._check_queue(client, 1, len(self._arrivals), now)
            except BusyError:
                self._totals["rejected"] += 1
                self._refused_at.append(now)
                raise

    def end_arrival(self, number: int) -> None:
        """The body of an admitted request has been read, or never will be."""
        with self._lock:
            self._arrivals.pop(number, None)

    def score(
        self,
        prompt: str,
        suffixes: Sequence[str],
        images: Sequence[ImagePayload] = (),
        *,
        adapter: str | None = None,
        client: str = "",
        deadline: float | None = None,
    ) -> Ticket:
        """Submit a `ScoreJob`, whose result is list[Score]."""
        return self.submit(
            ScoreJob(
                prompt=prompt,
                suffixes=tuple(suffixes),
                images=tuple(images),
                adapter=adapter,
                client=client,
                deadline=deadline,
            )
        )

    def stats(self) -> Stats:
        """The current statistics; cheap to compute."""
        with self._lock:
            works = list(self._open.values())
            totals = dict(self._totals)
        loop, cache = self._loop, self._image_cache
        return Stats(
            state=self.state(),
            waiting=sum(work.first_token_at is None for work in works),
            running=sum(work.first_token_at is not None for work in works),
            max_running=self._max_running,
            **{name: totals.get(name, 0) for name in TOTALS},
            steps=0 if loop is None else loop.num_steps,
            image_cache_bytes=0 if cache is None else cache.num_bytes,
            image_cache_hits=0 if cache is None else cache.num_hits,
            image_cache_misses=0 if cache is None else cache.num_misses,
            prefix_cache_bytes=0 if loop is None else loop.engine.prefixes.num_bytes,
            prefix_cache_hits=0 if loop is None else loop.engine.prefixes.num_hits,
            prefix_cache_misses=0 if loop is None else loop.engine.prefixes.num_misses,
            heartbeat_age=self._heartbeat_age(),
        )

    # Admission

    def _work(
        self,
        job: Job | ScoreJob,
        loop: asyncio.AbstractEventLoop,
        now: float,
        is_continuation: bool,
        is_patient: bool,
    ) -> _Work:
        number, limits = next(self._numbers), self.limits
        deadline = now + limits.request_seconds
        if job.deadline is not None:
            deadline = job.deadline if is_patient else min(deadline, job.deadline)
        ticket = Ticket(number=number, loop=loop, cancel=lambda: self._cancel(work))
        ticket.deadline = deadline
        work = _Work(
            ticket=ticket,
            job=job,
            kind=job.kind,
            accepted_at=now,
            queue_deadline=deadline if is_patient else min(deadline, now + limits.queue_seconds),
            deadline=deadline,
            image_bytes=sum(len(image) for image in job.images if isinstance(image, bytes)),
            is_continuation=is_continuation,
            is_patient=is_patient,
            is_waiting=not (is_continuation or is_patient),
        )
        return work

    def _check_patient_room(self, client: str, number: int) -> None:
        """Raises BusyError if so many more patient jobs of a client have to wait elsewhere."""
        limits = self.limits
        room = self._max_running + limits.max_queued // 2 - len(self._open)
        if number > room or self._by_client[client] + number > limits.streams_per_client:
            raise BusyError("Too many requests are running or waiting. Try again later.")

    def _check_queue(self, client: str, number: int, num_arriving: int, now: float) -> None:
        """Raises BusyError if so many more jobs of a client would be too many or wait too long."""
        limits = self.limits
        room = self._max_running + limits.max_queued - len(self._open) - num_arriving
        if number > room:
            raise BusyError(
                f"{counted(len(self._open), 'request is', 'requests are')} running or waiting, "
                "with "
                f"room for {max(0, room)} more. Try again later.",
                retry_after=self._rate.seconds(number - room, now),
            )
        if client and self._by_client[client] + number > limits.streams_per_client:
            raise BusyError(
                f"The limit is {limits.streams_per_client} requests at a time per client. Wait for "
                "some to finish.",
                retry_after=self._rate.seconds(1, now),
            )
        num_ahead = self._rate.num_ahead(client) + num_arriving
        seconds = self._rate.seconds(num_ahead, now)
        if seconds is None:  # nothing was served yet
            is_long = num_ahead >= _UNMEASURED_JOBS
        else:
            is_long = num_ahead > 0 and seconds > limits.max_wait_seconds
        if is_long:
            raise BusyError(
                f"The time until the first token would be {seconds or 0:.1f} s; the limit is "
                f"{limits.max_wait_seconds:g} s. Try again later.",
                retry_after=None if seconds is None else seconds - limits.max_wait_seconds,
            )

    def _check_room(self, works: Sequence[_Work], now: float) -> None:
        limits = self.limits
        self._check_queue(works[0].job.client, len(works), 0, now)
        # A single job is accepted however large its images are.
        new_bytes = sum(work.image_bytes for work in works)
        if self._image_bytes and self._image_bytes + new_bytes > limits.max_waiting_image_bytes:
            raise BusyError("Too many images are waiting. Try again later.")

    def _release_image_bytes(self, work: _Work) -> None:
        work.job = replace(work.job, images=())  # their bytes are no longer needed
        with self._lock:
            self._image_bytes -= work.image_bytes
            work.image_bytes = 0

    def _stop_waiting(self, work: _Work, *, is_served: bool) -> None:
        with self._lock:
            if work.is_waiting:
                work.is_waiting = False
                self._rate.remove(work.job.client, self._clock(), is_served=is_served)

    def _release(self, work: _Work) -> None:
        """Free the slot of a job that no thread works on."""
        self._stop_waiting(work, is_served=False)
        with self._lock:
            if self._open.pop(work.ticket.number, None) is None:
                return
            self._by_client[work.job.client] -= 1
            if not self._by_client[work.job.client]:
                del self._by_client[work.job.client]
            self._image_bytes -= work.image_bytes

    # Ends

    def _end(
        self,
        work: _Work,
        outcome: HowEnded,
        result: Any = None,
        error: Exception | None = None,
        last: Update | None = None,
        post: Post | None = None,
    ) -> JobState:
        """Tell the client how the job ended, once. Returns the state in which it was.

        `post` runs a call in the client's event loop.
        """
        with self._lock:
            previous, work.state = work.state, JobState.ENDED
            if previous is JobState.ENDED:
                return previous
            usage = Usage() if work.prepared is None else work.prepared.usage
            self._totals[outcome] += 1
            self._totals["prompt_tokens"] += usage.prompt_tokens
            self._totals["image_tokens"] += usage.image_tokens
            self._totals["completion_tokens"] += usage.completion_tokens
        ticket = work.ticket
        top_logprobs = work.prepared.top_logprobs if isinstance(work.prepared, Answer) else ()

        def deliver() -> None:
            if last is not None:
                ticket.deliver(last)
            ticket.top_logprobs = top_logprobs
            ticket.end(result, error, usage)

        (post or _post_now)(ticket.loop, deliver)
        if self.on_end is not None:
            first = work.first_token_at
            ended = Ended(
                kind=work.kind,
                outcome=outcome,
                first_token_seconds=None if first is None else first - work.accepted_at,
                seconds=self._clock() - work.accepted_at,
                usage=usage,
            )
            try:
                self.on_end(ended)
            except Exception as fault:  # an error in a callback must not end this thread
                self._log_error(fault)
        return previous

    def _abort(self, work: _Work, outcome: HowEnded, error: PaliGemmaError) -> None:
        """End a job in any state. Its slot is free when the engine has released it."""
        previous = self._end(work, outcome, error=error)
        if previous is JobState.RUNNING and self._loop is not None:
            self._loop.cancel(work)

    def _cancel(self, work: _Work) -> None:
        self._abort(work, "cancelled", CancelledError("The job was cancelled."))

    def _end_all(self, message: str) -> None:
        for work in list(self._open.values()):
            self._abort(work, "failed", UnavailableError(message))

    # The decoders' threads

    def _run_decoder(self, *, with_slow: bool) -> None:
        _compute_with(1)
        while (works := self._queue.take(with_slow=with_slow)) is not None:
            if self._put_back(works):
                continue
            images: dict[int, PreparedImage] = {}  # by id(): the jobs keep their images alive
            for work in works:
                try:
                    if work.has_ended:
                        self._release(work)
                        continue
                    self._prepare(work, images)
                except Exception as error:
                    self._log_error(error)
                    self._end(work, "failed", error=_public_error(error))
                    self._release(work)

    def _put_back(self, works: list[_Work]) -> bool:
        """Let a request with large images wait on its own, out of the way of others."""
        first = works[0]
        is_placed = first.is_slow or first.is_continuation or first.is_patient
        if is_placed or self._preprocessor is None:
            return False
        if not self._preprocessor.is_slow(first.job.images):
            return False
        for work in works:
            work.is_slow = True
            self._stop_waiting(work, is_served=False)  # what others wait for is not this
        if self._queue.put(first.job.client, works, is_slow=True) > _SLOW_PER_CLIENT:
            error = BusyError("Too many large images of this client are waiting. Try again later.")
            for work in works:
                self._abort(work, "failed", error)
        return True

    def _prepare(self, work: _Work, images: dict[int, PreparedImage]) -> None:
        preprocessor, loop, job = self._preprocessor, self._loop, work.job
        assert preprocessor is not None
        assert loop is not None
        for source in job.images:
            if id(source) not in images:
                images[id(source)] = preprocessor.image(source)
        prepared_images = tuple(images[id(source)] for source in job.images)
        if isinstance(job, ScoreJob):
            work.prepared = preprocessor.score(job, prepared_images)
        else:
            work.prepared = preprocessor.answer(job, prepared_images)
        with self._lock:
            if work.state is JobState.QUEUED:
                work.state = JobState.RUNNING
        if work.has_ended:
            self._release(work)
            return
        self._release_image_bytes(work)
        loop.add(work, work.prepared, goes_first=work.is_continuation)
        if work.has_ended:  # since then, before the engine had it
            loop.cancel(work)

    # The engine's thread

    def _run_engine(self) -> None:
        try:
            _compute_with(self._num_threads)
            loaded = self._load()
            self._open_engine(Loaded(predictor=loaded) if isinstance(loaded, Predictor) else loaded)
            assert self._loop is not None
            self._loop.run()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._log_error(error)
        self._end_all("The engine has failed.")
        for work in list(self._open.values()):
            self._release(work)

    def _open_engine(self, loaded: Loaded) -> None:
        predictor, limits = loaded.predictor, self.limits
        if set(loaded.adapters) != set(self.adapter_names):
            raise OptionError("The loaded adapters are not those in adapter_names.")
        model = predictor.model
        bank = AdapterBank(model, loaded.adapters) if loaded.adapters else None
        num_places = predictor.processor.num_image_tokens * limits.max_images
        num_positions = min(
            CONTEXT_LENGTH, num_places + limits.max_prompt_tokens + limits.max_tokens
        )
        row_bytes = num_positions * SlotCache.bytes_per_position(model.config.decoder, model.dtype)
        max_rows = max(1, min(limits.max_running, limits.kv_cache_bytes // row_bytes))
        # Half for image tokens, half for decoded images.
        image_cache = ImageCache(limits.image_cache_bytes // 2)
        engine = Engine(
            model,
            num_positions=num_positions,
            max_rows=max_rows,
            max_queued=_ENGINE_QUEUE,
            max_prefill_positions=_PREFILL_POSITIONS,
            max_prefill_share=_PREFILL_SHARE,
            image_cache=image_cache,
            prefix_cache_bytes=limits.prefix_cache_bytes,
            adapters=bank,
            clock=self._clock,
        )
        self.predictor = predictor
        self._trained_on = loaded.trained_on
        self._max_running = max_rows
        self._image_cache = image_cache
        pipeline = AnswerPipeline(
            processor=predictor.processor,
            mask_codec=predictor.mask_codec,
            text_length=predictor.text_length,
            languages=predictor.languages,
            num_positions=num_positions,
            max_prompt_tokens=limits.max_prompt_tokens,
            max_new_tokens=limits.max_tokens,
            max_mask_pixels=limits.max_mask_pixels,
        )
        self._preprocessor = Preprocessor(
            pipeline,
            limits,
            rows_per_score_batch=max(1, _PREFILL_POSITIONS // num_positions),
            cache=RecentCache(limits.image_cache_bytes // 2),
        )
        self._loop = EngineLoop(
            engine,
            emit=self._outbox.put,  # type: ignore[arg-type]
            before_turn=self._leave_a_cpu,
            clock=self._clock,
        )

    def _leave_a_cpu(self) -> None:
        """Under overload, compute with one thread fewer than there are CPUs.

        Refusing requests takes a CPU. Each operation of the model waits for its slowest thread, so
        with as many threads as CPUs it would run as slowly as the one that shares its CPU.
        """
        first = self._refused_at[0] if len(self._refused_at) == _MANY_REFUSALS else -math.inf
        is_overloaded = self._clock() - first < 1.0
        number = self._num_threads_under_overload if is_overloaded else self._num_threads
        if number != torch.get_num_threads():
            torch.set_num_threads(number)

    def _is_stalled(self) -> bool:
        return self._heartbeat_age() > self.limits.stall_seconds

    def _heartbeat_age(self) -> float:
        loop = self._loop
        if loop is None or not loop.is_busy:
            return 0.0
        return max(0.0, self._clock() - loop.last_beat)

    # The writer's thread

    def _run_writer(self) -> None:
        _compute_with(1)
        try:
            while (outcomes := self._next_outcomes()) is not None:
                self._write(outcomes)
                self._enforce_deadlines()
        except BaseException as error:  # without this thread no client gets an answer
            self._fail(error)

    def _next_outcomes(self) -> list[tuple[_Work, Outcome]] | None:
        try:
            return self._outbox.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            return []

    def _write(self, outcomes: Sequence[tuple[_Work, Outcome]]) -> None:
        posts: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}

        def post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
            posts.setdefault(loop, []).append(call)

        for work, outcome in outcomes:
            if work.first_token_at is None and _has_token(outcome):
                work.first_token_at = self._clock()
                self._stop_waiting(work, is_served=True)
            if is_end(outcome):
                self._release(work)
            if work.has_ended:
                continue
            if isinstance(work.prepared, Answer) and work.prepared.makes_masks:
                self._masks.submit(self._write_one, work, outcome, _post_now)
            else:
                self._write_one(work, outcome, post)
        # One call per turn of the engine for all answers.
        for loop, calls in posts.items():
            _post_now(loop, functools.partial(_call_all, calls))

    def _write_one(self, work: _Work, outcome: Outcome, post: Post) -> None:
        """Deliver a token or the end to a job's client."""
        if work.has_ended:
            return
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, list):
                self._end(work, "answered", outcome, post=post)
                return
            assert isinstance(work.prepared, Answer)
            if (update := work.prepared.push(outcome)) is not None:
                post(work.ticket.loop, lambda: work.ticket.deliver(update))
            if outcome.stop_reason is not None:
                last, result = work.prepared.finish(outcome)
                self._end(work, "answered", result, last=last, post=post)
        except CancelledError as error:
            self._end(work, "cancelled", error=error, post=post)
        except Exception as error:
            self._log_error(error)
            self._end(work, "failed", error=_public_error(error), post=post)
            if not is_end(outcome) and self._loop is not None:
                self._loop.cancel(work)

    def _enforce_deadlines(self) -> None:
        """End jobs that are late, and all jobs when the engine hangs."""
        now = self._clock()
        if self._is_stalled():
            self._end_all("The engine does not respond.")
        for work in list(self._open.values()):
            if work.has_ended:
                continue
            if now >= work.deadline:
                was_running = work.first_token_at is not None
            elif now >= work.queue_deadline and work.first_token_at is None:
                was_running = False
            else:
                continue
            message = "The request timed out."
            self._abort(work, "expired", TimeLimitError(message, was_running=was_running))

    def _log_error(self, error: BaseException) -> None:
        """Log where an unexpected error was raised; its message may quote a client."""
        if isinstance(error, PaliGemmaError):
            return
        places = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        _log.error("%s at %s", type(error).__name__, " < ".join(reversed(places)))


def _post_now(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop is closed: its clients are gone
        _log.debug("an answer was ready after its event loop was closed")


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _has_token(outcome: Outcome) -> bool:
    return isinstance(outcome, list) or (
        isinstance(outcome, Event) and outcome.token_id is not None
    )


def _public_error(error: BaseException) -> PaliGemmaError:
    """The error itself if it is one of the package's, else one without its details."""
    if isinstance(error, PaliGemmaError):
        return error
    public: PaliGemmaError
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        public = UnavailableError(
            "Out of memory twice while answering. Try again later, or ask for fewer tokens."
        )
    else:
        public = PaliGemmaError("Internal error: the server failed, the request is valid.")
    public.__cause__ = error
    return public


def _compute_with(num_threads: int) -> None:
    """Let this thread's tensor operations use this many threads.

    OpenMP keeps a team of workers for every thread that ever used one. Once all teams together
    are larger than the processor, workers sleep between operations instead of spinning, and prefill
    takes up to twice as long. So only the engine's thread has a team.
    """
    torch.get_num_threads()  # a thread's first call adopts what any thread has set last
    torch.set_num_threads(num_threads)
