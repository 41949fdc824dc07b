"""Jobs for the service: what is asked, the ticket that the caller holds, and the queue.

A `Job` is one task or prompt, a `ScoreJob` some texts to score. For each the service returns a
`Ticket`, which delivers updates and then the result.
"""

from __future__ import annotations

import asyncio
import enum
import math
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from paligemma.answering import Update, Usage
from paligemma.engine.request import TopLogprob
from paligemma.engine.sampling import GREEDY, Sampling
from paligemma.errors import ImageError, OptionError, PromptError
from paligemma.processor.image import ImageTransform, LoadedImage
from paligemma.server.settings import Limits
from paligemma.tasks.chart import ChartTask
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.field import FieldTask, JsonTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.table import TableTask
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask, BoxCaptionTask, CaptionTask, OcrTask, QuestionTask

ItemT = TypeVar("ItemT")

ImagePayload = bytes | LoadedImage
"""The bytes of an image file, or an image that is decoded already."""

_NUM_SAMPLES = 32  # enough for an average, and few enough to follow a load that changes
_SAMPLE_SECONDS = 60.0  # after which a sample is dropped: the machine may be quieter now

TaskBuilder = Callable[[ImageTransform], Task[Any]]
"""Builds a task that depends on the image's size, such as a caption of a box given in pixels."""

_TASK_NAMES: dict[type, str] = {
    CaptionTask: "caption",
    BoxCaptionTask: "box_caption",
    AnswerTask: "ask",
    FieldTask: "field",
    JsonTask: "json",
    QuestionTask: "question",
    OcrTask: "ocr",
    DetectTask: "detect",
    SegmentTask: "segment",
    TableTask: "table",
    ChartTask: "chart",
}


class JobState(enum.Enum):
    """The stages of a job, in order. A job may end in any of them."""

    QUEUED = "queued"  # accepted; a decoder will prepare its images and prompt
    RUNNING = "running"  # passed to the engine
    ENDED = "ended"  # its client has received the result or the error


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How an answer is generated."""

    max_new_tokens: int | None = None  # None: as many as the task usually needs
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    sample_index: int = 0
    """Numbers several answers to one prompt from 0; randomness depends on it and on the seed."""
    stop: tuple[str, ...] = ()
    logprobs: int = 0  # the number of alternatives to report per token
    constrained: bool = True  # constrain the answers of detect and segment to their grammar
    adapter: str | None = None
    """The name of one of the service's adapters; None is the model itself."""

    @property
    def sampling(self) -> Sampling:
        """Raises OptionError for a value out of range."""
        if self.temperature == 0 and self.top_k is None and self.top_p is None:
            return GREEDY
        return Sampling(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed
        )

    def check(self, limits: Limits) -> None:
        """Raises OptionError for a value out of range; the message quotes no text."""
        if self.max_new_tokens is not None:
            _check_whole("max_new_tokens", self.max_new_tokens, 1, limits.max_tokens)
        _check_whole("logprobs", self.logprobs, 0, limits.max_logprobs)
        _check_whole("sample_index", self.sample_index, 0, None)
        if not isinstance(self.stop, tuple) or len(self.stop) > limits.max_stops:
            raise OptionError(f"stop must be a tuple of at most {limits.max_stops} strings.")
        longest = limits.max_stop_characters
        if not all(isinstance(text, str) and 0 < len(text) <= longest for text in self.stop):
            raise OptionError(f"Each stop must be a string of 1 to {longest} characters.")
        if not isinstance(self.constrained, bool):
            raise OptionError("constrained must be True or False.")
        assert self.sampling is not None  # Sampling checks its values


@dataclass(frozen=True, kw_only=True)
class Job:
    """One task or one prompt, about some images."""

    task: Task[Any] | TaskBuilder | None = None
    prompt: str | None = None
    images: tuple[ImagePayload, ...] = ()
    options: JobOptions = field(default_factory=JobOptions)
    client: str = ""  # clients take turns
    deadline: float | None = None
    """When to stop, on the service's clock; None is the limit for requests."""
    notes: tuple[str, ...] = ()
    """For the result: how the client's words were understood."""
    stream: bool = False
    """Deliver tokens, text and objects as they are generated; else only the result."""

    @property
    def kind(self) -> str:
        """The task's name, such as "caption", or "prompt": few, and fit for metrics."""
        if self.task is None:
            return "prompt"
        return "box_caption" if callable(self.task) else _TASK_NAMES.get(type(self.task), "task")

    def check(self, limits: Limits) -> None:
        """Raises ImageError, PromptError or OptionError for an invalid job."""
        check_images(self.images, limits)
        self.options.check(limits)
        if (self.task is None) == (self.prompt is None):
            raise OptionError("A job has either a task or a prompt.")
        if self.task is not None and len(self.images) != 1:
            raise ImageError(f"A task needs exactly one image; {len(self.images)} were given.")
        if self.prompt is not None:
            check_text(self.prompt, limits)
        elif not callable(self.task) and self.task is not None:
            check_text(self.task.prompt(), limits)


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """Texts to score after a prompt. The result is list[Score]."""

    prompt: str
    suffixes: tuple[str, ...]
    images: tuple[ImagePayload, ...] = ()
    adapter: str | None = None
    client: str = ""
    deadline: float | None = None

    kind = "score"

    def check(self, limits: Limits) -> None:
        """Raises ImageError, PromptError or OptionError for an invalid job."""
        check_images(self.images, limits)
        if not 1 <= len(self.suffixes) <= limits.max_suffixes:
            raise OptionError(
                f"The number of texts to score is {len(self.suffixes)}; it must be from 1 to "
                f"{limits.max_suffixes}."
            )
        for text in (self.prompt, *self.suffixes):
            check_text(text, limits)


def check_images(images: tuple[ImagePayload, ...], limits: Limits) -> None:
    """Raises ImageError for too many images, or too large ones."""
    if len(images) > limits.max_images:
        raise ImageError(
            f"The number of images is {len(images)}; the limit is {limits.max_images}."
        )
    for image in images:
        if isinstance(image, bytes):
            if len(image) > limits.max_image_bytes:
                raise ImageError(
                    f"The image has {len(image)} bytes; the limit is {limits.max_image_bytes}. "
                    "Send a smaller file."
                )
        elif not isinstance(image, LoadedImage):
            raise ImageError("An image must be the bytes of a file or a LoadedImage.")


def check_text(text: str, limits: Limits) -> None:
    """Raises PromptError for a text that is too long even to be tokenized."""
    if not isinstance(text, str):
        raise PromptError("A prompt must be a string.")
    if len(text) > limits.max_prompt_characters:
        raise PromptError(
            f"The prompt has {len(text)} characters; the limit is {limits.max_prompt_characters}. "
            "Shorten it."
        )


def _check_whole(name: str, value: object, least: int, most: int | None) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise OptionError(f"{name} must be a whole number, {bounds}.")


class Ticket:
    """What the caller holds while the service works on a job.

    All methods belong to the event loop that submitted it.
    """

    def __init__(
        self, *, number: int, loop: asyncio.AbstractEventLoop, cancel: Callable[[], None]
    ) -> None:
        self.number = number
        self.deadline = math.inf
        """When the service ends the job, on its clock."""
        self.loop = loop
        self.usage = Usage()
        """Available when the job has ended."""
        self.top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
        """Of the whole answer, if they were requested; available when the job has ended."""
        self._cancel = cancel
        self._pending: deque[Update] = deque()
        self._changed = asyncio.Event()
        self._has_ended = False
        self._result: Any = None
        self._error: Exception | None = None

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    async def updates(self) -> AsyncIterator[Update]:
        """The updates until the job ends, however it ends. Only one reader is supported.

        Leaving early, by an exception or a cancelled asyncio task, cancels the job.
        """
        try:
            while True:
                while self._pending:
                    yield self._pending.popleft()
                if self._has_ended:
                    return
                self._changed.clear()
                await self._changed.wait()
        finally:
            self.cancel()

    def result(self) -> Any:
        """The typed result of the task, `Generation` of a prompt, list[Score] of a `ScoreJob`.

        Raises the error that ended the job, a PaliGemmaError.
        """
        if not self._has_ended:
            raise RuntimeError("The job has not ended; read updates() to their end first.")
        if self._error is not None:
            raise self._error
        return self._result

    async def wait(self) -> Any:
        """Wait for the end and return `result()`."""
        async for _ in self.updates():
            pass
        return self.result()

    def cancel(self) -> None:
        """Cancel the job: the engine stops within a step. Does nothing when it has ended."""
        if not self._has_ended:
            self._cancel()

    # Called by the service, on the loop

    def deliver(self, update: Update) -> None:
        """Add an update; it is merged with what a slow reader has not taken yet."""
        last = self._pending[-1] if self._pending else None
        if last is None or last.object is not None or update.object is not None:
            self._pending.append(update)
        else:
            self._pending[-1] = last.then(update)
        self._changed.set()

    def end(self, result: Any, error: Exception | None, usage: Usage) -> None:
        """Record how the job ended. Only the first call counts."""
        if self._has_ended:
            return
        self._result, self._error, self.usage = result, error, usage
        self._has_ended = True
        self._changed.set()


async def gather_results(tickets: Sequence[Ticket]) -> list[Any]:
    """All results. If one fails or the caller is cancelled, the others are cancelled."""
    try:
        return [await ticket.wait() for ticket in tickets]
    finally:
        for ticket in tickets:
            ticket.cancel()


async def merge_updates(tickets: Sequence[Ticket]) -> AsyncGenerator[tuple[int, Update], None]:
    """The updates of all tickets as they arrive, each with the index of its ticket.

    Raises the first error of any ticket.
    """
    queue: asyncio.Queue[tuple[int, Update | None]] = asyncio.Queue(maxsize=1)

    async def forward(index: int, ticket: Ticket) -> None:
        async for update in ticket.updates():
            await queue.put((index, update))
        await queue.put((index, None))

    tasks = [asyncio.ensure_future(forward(i, ticket)) for i, ticket in enumerate(tickets)]
    try:
        num_open = len(tickets)
        while num_open:
            index, update = await queue.get()
            if update is None:
                num_open -= 1
                tickets[index].result()  # raises, and so ends the stream at once
            else:
                yield index, update
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class FairQueue(Generic[ItemT]):
    """A queue between threads in which clients take turns.

    Items of one client keep their order, except that its slow ones wait on their own: they let
    the others pass. The client served last waits for all others.
    """

    def __init__(self) -> None:
        self._items: OrderedDict[tuple[str, bool], deque[ItemT]] = OrderedDict()
        self._changed = threading.Condition()
        self._is_closed = False

    def put(
        self, client: str, item: ItemT, *, is_slow: bool = False, goes_first: bool = False
    ) -> int:
        """Enqueue an item after the client's earlier ones; or before them and all others.

        Returns how many of the client wait with it.
        """
        turn = (client, is_slow)
        with self._changed:
            items = self._items.setdefault(turn, deque())
            if goes_first:
                items.appendleft(item)
                self._items.move_to_end(turn, last=False)
            else:
                items.append(item)
            self._changed.notify_all()
            return len(items)

    def take(self, *, with_slow: bool = True) -> ItemT | None:
        """Wait for the next item; None when the queue is closed."""
        with self._changed:
            while (turn := self._turn(with_slow)) is None and not self._is_closed:
                self._changed.wait()
            if self._is_closed or turn is None:
                return None
            items = self._items[turn]
            item = items.popleft()
            if items:
                self._items.move_to_end(turn)
            else:
                del self._items[turn]
            return item

    def _turn(self, with_slow: bool) -> tuple[str, bool] | None:
        return next((turn for turn in self._items if with_slow or not turn[1]), None)

    def close(self) -> None:
        """Drop all items and wake the threads that wait in `take`."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()


class ServedRate:
    """How long a job will wait, from how fast the latest ones got their first token.

    Only time in which jobs wait counts, so a server with little to do does not look slow.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_NUM_SAMPLES)
        """When a job was served, and how many seconds after the one before it."""
        self._waiting: Counter[str] = Counter()  # by client
        self._since: float | None = None  # the last first token; None while nobody waits

    def add(self, client: str, number: int, now: float) -> None:
        """Count jobs that wait from now on."""
        self._waiting[client] += number
        if self._since is None:
            self._since = now

    def remove(self, client: str, now: float, *, is_served: bool) -> None:
        """Count a job that no longer waits: it got its first token, or ended without one."""
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client]
        if is_served and self._since is not None:
            while self._samples and self._samples[0][0] < now - _SAMPLE_SECONDS:
                self._samples.popleft()
            self._samples.append((now, now - self._since))
            self._since = now
        if not self._waiting:
            self._since = None

    def num_ahead(self, client: str) -> int:
        """Jobs that get their turn before a new one of this client: clients take turns."""
        own = self._waiting[client]
        return own + sum(
            min(own + 1, number) for name, number in self._waiting.items() if name != client
        )

    def seconds(self, num_jobs: int, now: float) -> float | None:
        """The expected time to serve so many jobs; None before the first was served."""
        if not self._samples:
            return None
        total = sum(seconds for _, seconds in self._samples)
        if self._since is not None:  # a job that takes long is noticed before it is served
            total = max(total, now - self._since)
        return num_jobs * total / len(self._samples)


State = Literal["loading", "ready", "draining", "dead"]
HowEnded = Literal["answered", "failed", "cancelled", "expired"]

TOTALS = (
    "accepted", "rejected", "answered", "failed", "cancelled", "expired",
    "prompt_tokens", "image_tokens", "completion_tokens",
)  # fmt: skip
"""The fields of `Stats` that only grow and that the service counts itself."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended, with times in seconds since it was accepted."""

    kind: str  # "caption", "detect", "prompt", "score", ...: never text that a client wrote
    outcome: HowEnded
    first_token_seconds: float | None
    seconds: float
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Current values, and totals since the start."""

    state: State
    waiting: int  # jobs that are accepted and have no token yet
    running: int
    max_running: int
    accepted: int
    rejected: int
    answered: int
    failed: int
    cancelled: int
    expired: int
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    steps: int
    image_cache_bytes: int
    image_cache_hits: int
    image_cache_misses: int
    prefix_cache_bytes: int
    prefix_cache_hits: int
    prefix_cache_misses: int
    heartbeat_age: float  # seconds since the engine's thread last finished a step; 0 without work
