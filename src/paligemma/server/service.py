"""Many questions at a time to one model: accepted or refused at once, answered as they come.

    submit -> line -> decoders -> engine thread -> writer -> Ticket
              (by client)         (EngineLoop)     (Answer)  (asyncio)

Four kinds of threads, and none waits for a client: decoders prepare images and prompts, one
thread owns the model, one writes answers and keeps the time, one lays masks into pictures. What
is accepted ends in one of three ways: a result, an error, or cancelled by who asked. Knows no
HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import queue
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from paligemma.adapters.bank import AdapterBank
from paligemma.adapters.lora import LowRank
from paligemma.answering import (
    CONTEXT_LENGTH,
    Answer,
    AnswerPipeline,
    PreparedImage,
    Update,
    Usage,
)
from paligemma.engine.engine import Engine, Event
from paligemma.engine.image_cache import ImageCache, RecentCache
from paligemma.errors import (
    BusyError,
    CancelledError,
    OptionError,
    PaliGemmaError,
    TimeLimitError,
    UnavailableError,
)
from paligemma.model.kv_cache import SlotCache
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor
from paligemma.server.engine_loop import EngineLoop, Outcome, is_end
from paligemma.server.fair_queue import FairQueue
from paligemma.server.faults import Faults
from paligemma.server.faulty_model import FaultyModel
from paligemma.server.jobs import ImagePayload, Job, ScoreJob
from paligemma.server.limits import Limits
from paligemma.server.preparing import PreparedScore, Preprocessor
from paligemma.server.stats import TOTALS, Ended, HowEnded, State, Stats, kind_of
from paligemma.server.tickets import Ticket

Post = Callable[[asyncio.AbstractEventLoop, Callable[[], None]], None]
"""Brings a call to an event loop."""

_TICK_SECONDS = 0.05  # how exactly time limits are kept
_PREFILL_POSITIONS = 1024  # computed at once, while all running answers wait

_log = logging.getLogger("paligemma.server")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a server serves: a predictor, and adapters of its model by name."""

    predictor: Predictor
    adapters: Mapping[str, Mapping[str, LowRank]] = field(default_factory=dict)
    """Each by its layers' names, as `checkpoints.adapter.read_adapter` gives them."""


@dataclass(kw_only=True, eq=False)
class _Work:
    """One accepted job, until it is let go."""

    ticket: Ticket
    job: Job | ScoreJob
    kind: str
    accepted_at: float
    queue_deadline: float
    deadline: float
    image_bytes: int
    prepared: Answer | PreparedScore | None = None
    first_token_at: float | None = None
    has_ended: bool = False
    """Its client has been told."""
    is_in_engine: bool = False


class Service:
    """Answers jobs with one model.

    `load` makes what is served, in the engine's thread; `name` is what clients call the model,
    and `adapter_names` what they may call its adapters. `clock` counts seconds, like
    time.monotonic. `on_end` is called, in some thread, with each job that has ended.
    """

    def __init__(
        self,
        load: Callable[[], Loaded | Predictor],
        *,
        name: str,
        adapter_names: Sequence[str] = (),
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        faults: Faults | None = None,
        on_end: Callable[[Ended], None] | None = None,
    ) -> None:
        self.name = name
        self.adapter_names = tuple(adapter_names)
        self.limits = limits or Limits()
        self.faults = faults or Faults()
        self.failure: BaseException | None = None
        """Why the model could not be loaded, or why the engine's thread ended."""
        self.on_end = on_end
        self.predictor: Predictor | None = None
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._open: dict[int, _Work] = {}  # accepted and not let go
        self._by_client: Counter[str] = Counter()
        self._image_bytes = 0
        self._totals: Counter[str] = Counter()
        self._is_draining = False
        self._is_closing = False
        self._max_running = self.limits.max_running
        self._loop: EngineLoop | None = None
        self._preprocessor: Preprocessor | None = None
        self._image_cache: ImageCache | None = None
        self._line: FairQueue[list[_Work]] = FairQueue()
        self._outbox: queue.SimpleQueue[list[tuple[_Work, Outcome]] | None] = queue.SimpleQueue()
        self._masks = ThreadPoolExecutor(
            1, thread_name_prefix="paligemma-masks", initializer=_compute_with, initargs=(1,)
        )
        self._threads: list[threading.Thread] = []
        self._num_threads = torch.get_num_threads()

    # Life

    def start(self) -> None:
        """Load the model, in a thread of its own; `state()` says how far it is."""
        bodies = [("engine", self._run_engine), ("writer", self._run_writer)]
        bodies += [(f"decoder-{n}", self._run_decoder) for n in range(self.limits.num_decoders)]
        self._threads = [
            threading.Thread(target=body, name=f"paligemma-{name}", daemon=True)
            for name, body in bodies
        ]
        for thread in self._threads:
            thread.start()

    async def wait_until_ready(self) -> None:
        """Raises UnavailableError, caused by `failure`, when the model cannot be loaded."""
        while (state := self.state()) == "loading":
            await asyncio.sleep(_TICK_SECONDS)
        if state == "dead":
            raise UnavailableError("The model could not be loaded.") from self.failure

    def state(self) -> State:
        """ "dead": the engine's thread has ended, or its step has taken too long."""
        if self.failure is not None or self._is_closing or self._is_stalled():
            return "dead"
        if self._is_draining:
            return "draining"
        return "loading" if self._loop is None else "ready"

    def is_alive(self) -> bool:
        """False when only a new process will help."""
        return self.state() != "dead"

    async def drain(self, seconds: float | None = None) -> None:
        """Take nothing more; give what was accepted so long to finish, then end it."""
        self._is_draining = True
        until = self._clock() + (self.limits.drain_seconds if seconds is None else seconds)
        while self._open and self._clock() < until and self.is_alive():
            await asyncio.sleep(_TICK_SECONDS)
        self._end_all("The server is shutting down.")

    def close(self) -> None:
        """End everything now, and the threads."""
        self._is_closing = True
        self._end_all("The server is shutting down.")
        self._line.close()
        if self._loop is not None:
            self._loop.close()
        self._outbox.put(None)
        self._masks.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            thread.join(timeout=5.0)

    @property
    def models(self) -> dict[str, str | None]:
        """What can be asked for: name -> `JobOptions.adapter`; the model itself comes first."""
        return {self.name: None} | {name: name for name in self.adapter_names}

    # Jobs

    def submit(self, job: Job | ScoreJob) -> Ticket:
        """Accept a job, on the running event loop; takes no longer than a moment.

        Raises InputError for what can be refused at a glance, BusyError when too much is waiting,
        UnavailableError when the model is loading, draining or dead.
        """
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job | ScoreJob]) -> list[Ticket]:
        """All of these or none; a picture that several bring is decoded once."""
        if not jobs:
            return []
        for job in jobs:
            job.check(self.limits)
            adapter = job.adapter if isinstance(job, ScoreJob) else job.options.adapter
            if adapter is not None and adapter not in self.adapter_names:
                raise OptionError("There is no adapter of that name. See the list of models.")
        if (state := self.state()) != "ready":
            raise UnavailableError(f"The model takes no requests: it is {state}.")
        loop = asyncio.get_running_loop()
        now = self._clock()
        works = [self._work(job, loop, now) for job in jobs]
        with self._lock:
            try:
                self._check_room(works)
            except BusyError:
                self._totals["rejected"] += len(works)
                raise
            for work in works:
                self._open[work.ticket.number] = work
                self._by_client[work.job.client] += 1
                self._image_bytes += work.image_bytes
            self._totals["accepted"] += len(works)
        self._line.put(jobs[0].client, works)
        return [work.ticket for work in works]

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
        """Cheap enough to ask for at any time."""
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

    def _work(self, job: Job | ScoreJob, loop: asyncio.AbstractEventLoop, now: float) -> _Work:
        number = next(self._numbers)
        deadline = now + self.limits.request_seconds
        if job.deadline is not None:
            deadline = min(deadline, job.deadline)
        ticket = Ticket(number=number, loop=loop, cancel=lambda: self._cancel(work))
        work = _Work(
            ticket=ticket,
            job=job,
            kind=kind_of(job),
            accepted_at=now,
            queue_deadline=min(deadline, now + self.limits.queue_seconds),
            deadline=deadline,
            image_bytes=sum(len(image) for image in job.images if isinstance(image, bytes)),
        )
        return work

    def _check_room(self, works: Sequence[_Work]) -> None:
        limits = self.limits
        room = self._max_running + limits.max_queued - len(self._open)
        if len(works) > room:
            raise BusyError(
                f"{len(self._open)} requests are running or waiting, and there is room for "
                f"{max(0, room)} more. Try again later."
            )
        client = works[0].job.client
        if client and self._by_client[client] + len(works) > limits.streams_per_client:
            raise BusyError(
                f"A client may have {limits.streams_per_client} requests at a time. Wait for "
                "some to end."
            )
        # One job finds room for its pictures when no other waits.
        new_bytes = sum(work.image_bytes for work in works)
        if self._image_bytes and self._image_bytes + new_bytes > limits.max_waiting_image_bytes:
            raise BusyError("Too many bytes of pictures are waiting. Try again later.")

    def _images_are_read(self, work: _Work) -> None:
        work.job = replace(work.job, images=())  # their bytes are not needed any more
        with self._lock:
            self._image_bytes -= work.image_bytes
            work.image_bytes = 0

    def _let_go(self, work: _Work) -> None:
        """Nothing works on it any more: its place is free."""
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
    ) -> None:
        """Tell the client, once; `post` brings it to the client's event loop."""
        with self._lock:
            if work.has_ended:
                return
            usage = Usage() if work.prepared is None else work.prepared.usage
            work.has_ended = True
            self._totals[outcome] += 1
            self._totals["prompt_tokens"] += usage.prompt_tokens
            self._totals["image_tokens"] += usage.image_tokens
            self._totals["completion_tokens"] += usage.completion_tokens
        ticket = work.ticket
        tops = work.prepared.top_logprobs if isinstance(work.prepared, Answer) else ()

        def tell() -> None:
            if last is not None:
                ticket.deliver(last)
            ticket.top_logprobs = tops
            ticket.end(result, error, usage)

        (post or _post_now)(ticket.loop, tell)
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
            except Exception as fault:  # whoever counts must not stop the thread that answers
                self._note(fault)

    def _give_up(self, work: _Work, outcome: HowEnded, error: PaliGemmaError) -> None:
        """End a job wherever it is; its place is free when the engine has let it go."""
        self._end(work, outcome, error=error)
        if work.is_in_engine and self._loop is not None:
            self._loop.cancel(work)

    def _cancel(self, work: _Work) -> None:
        self._give_up(work, "cancelled", CancelledError("The job was cancelled."))

    def _end_all(self, message: str) -> None:
        for work in list(self._open.values()):
            self._give_up(work, "failed", UnavailableError(message))

    # The decoders' threads

    def _run_decoder(self) -> None:
        _compute_with(1)
        while (works := self._line.take()) is not None:
            images: dict[int, PreparedImage] = {}  # by id(): the jobs keep their images alive
            for work in works:
                try:
                    if work.has_ended:
                        self._let_go(work)
                        continue
                    self._prepare(work, images)
                except Exception as error:
                    self._note(error)
                    self._end(work, "failed", error=_public_error(error))
                    self._let_go(work)

    def _prepare(self, work: _Work, images: dict[int, PreparedImage]) -> None:
        preprocessor, loop, job = self._preprocessor, self._loop, work.job
        assert preprocessor is not None
        assert loop is not None
        for source in job.images:
            if id(source) not in images:
                images[id(source)] = preprocessor.image(source)
        own = tuple(images[id(source)] for source in job.images)
        if isinstance(job, ScoreJob):
            work.prepared = preprocessor.score(job, own)
        else:
            work.prepared = preprocessor.answer(job, own)
        self._images_are_read(work)
        work.is_in_engine = True
        loop.add(work, work.prepared)
        if work.has_ended:  # meanwhile, when the engine did not know it yet
            loop.cancel(work)

    # The engine's thread

    def _run_engine(self) -> None:
        try:
            _compute_with(self._num_threads)
            self.faults.hit("load")
            loaded = self._load()
            self._open_engine(Loaded(predictor=loaded) if isinstance(loaded, Predictor) else loaded)
            assert self._loop is not None
            self._loop.run()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A thread that all rely on has ended: so does everything."""
        self.failure = error
        self._note(error)
        self._end_all("The engine has failed.")
        for work in list(self._open.values()):
            self._let_go(work)

    def _open_engine(self, loaded: Loaded) -> None:
        predictor, limits = loaded.predictor, self.limits
        if set(loaded.adapters) != set(self.adapter_names):
            raise OptionError("The adapters loaded are not those that the service was told of.")
        model = predictor.model
        bank = AdapterBank(model, loaded.adapters) if loaded.adapters else None
        num_places = predictor.processor.num_image_tokens * limits.max_images
        num_positions = min(
            CONTEXT_LENGTH, num_places + limits.max_prompt_tokens + limits.max_tokens
        )
        row_bytes = num_positions * SlotCache.bytes_per_position(model.config.decoder, model.dtype)
        max_rows = max(1, min(limits.max_running, limits.kv_cache_bytes // row_bytes))
        # Half for what the model has seen, half for pictures that are ready for it.
        image_cache = ImageCache(limits.image_cache_bytes // 2)
        engine = Engine(
            cast("PaliGemma", FaultyModel(model, self.faults))
            if self.faults.are_allowed
            else model,
            num_positions=num_positions,
            max_rows=max_rows,
            max_queued=max_rows + limits.max_queued,
            max_prefill_positions=_PREFILL_POSITIONS,
            image_cache=image_cache,
            prefix_cache_bytes=limits.prefix_cache_bytes,
            adapters=bank,
            clock=self._clock,
        )
        self.predictor = predictor
        self._max_running = max_rows
        self._image_cache = image_cache
        pipeline = AnswerPipeline(
            processor=predictor.processor,
            mask_codec=predictor.mask_codec,
            text_length=predictor.text_length,
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
            faults=self.faults,
        )
        self._loop = EngineLoop(
            engine,
            tell=self._outbox.put,  # type: ignore[arg-type]
            clock=self._clock,
            faults=self.faults,
        )

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
            while (told := self._next_told()) is not None:
                self._write(told)
                self._keep_time()
        except BaseException as error:  # nobody would be told anything any more
            self._fail(error)

    def _next_told(self) -> list[tuple[_Work, Outcome]] | None:
        try:
            return self._outbox.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            return []

    def _write(self, told: Sequence[tuple[_Work, Outcome]]) -> None:
        posts: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}

        def post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
            posts.setdefault(loop, []).append(call)

        for work, outcome in told:
            if work.first_token_at is None and _has_token(outcome):
                work.first_token_at = self._clock()
            if is_end(outcome):
                self._let_go(work)
            if work.has_ended:
                continue
            if isinstance(work.prepared, Answer) and work.prepared.makes_masks:
                self._masks.submit(self._write_one, work, outcome, _post_now)
            else:
                self._write_one(work, outcome, post)
        # One call a turn of the engine, however many answers have grown.
        for loop, calls in posts.items():
            _post_now(loop, functools.partial(_call_all, calls))

    def _write_one(self, work: _Work, outcome: Outcome, post: Post) -> None:
        """What a job's client is told of a token or an end."""
        if work.has_ended:
            return
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, list):
                self._end(work, "answered", outcome, post=post)
                return
            assert isinstance(work.prepared, Answer)
            self.faults.hit("detok")
            if (update := work.prepared.push(outcome)) is not None:
                post(work.ticket.loop, lambda: work.ticket.deliver(update))
            if outcome.stop_reason is not None:
                last, result = work.prepared.finish(outcome)
                self._end(work, "answered", result, last=last, post=post)
        except CancelledError as error:
            self._end(work, "cancelled", error=error, post=post)
        except Exception as error:
            self._note(error)
            self._end(work, "failed", error=_public_error(error), post=post)
            if not is_end(outcome) and self._loop is not None:
                self._loop.cancel(work)

    def _keep_time(self) -> None:
        """End what is late, and everything when the engine hangs."""
        now = self._clock()
        if self._is_stalled():
            self._end_all("The engine hangs.")
        for work in list(self._open.values()):
            if work.has_ended:
                continue
            if now >= work.deadline:
                was_running = work.first_token_at is not None
            elif now >= work.queue_deadline and work.first_token_at is None:
                was_running = False
            else:
                continue
            message = "The answer was not there in time."
            self._give_up(work, "expired", TimeLimitError(message, was_running=was_running))

    def _note(self, error: BaseException) -> None:
        """Log where an error that is not one of ours came from; its words may be a client's."""
        if isinstance(error, PaliGemmaError):
            return
        places = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        _log.error("%s at %s", type(error).__name__, " < ".join(reversed(places)))


def _post_now(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop is closed: nobody waits there any more
        _log.debug("an answer came after its event loop was closed")


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
    """Let this thread's tensor operations use so many threads.

    OpenMP keeps a team for every thread that ever asked for one, and once all teams together are
    larger than the processor, its workers sleep between operations instead of spinning: prefill
    then takes up to twice as long. So the engine alone has a team.
    """
    torch.get_num_threads()  # a thread's first look takes over what was set last, in any thread
    torch.set_num_threads(num_threads)
