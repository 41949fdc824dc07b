"""From tokens to what people read: text, boxes and masks as they come, and the typed result.

A `Draft` belongs to one job and to one thread at a time. What the job streams is read by the same
code that reads the whole answer, so that the pieces joined are the result. Knows tasks and text;
knows no engine thread and no event loop.
"""

from __future__ import annotations

from typing import Any, cast

from paligemma.engine.engine import Event
from paligemma.engine.request import TopLogprob
from paligemma.errors import (
    CancelledError,
    PaliGemmaError,
    UnavailableError,
)
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import TextStream
from paligemma.results import Generation, StopReason
from paligemma.server.faults import Faults
from paligemma.server.jobs import Update, Usage
from paligemma.server.limits import Limits
from paligemma.server.object_stream import ObjectStream
from paligemma.server.preparing import ReadyJob, too_many_mask_pixels
from paligemma.tasks.objects import parse_objects
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import GuidedTask, TaskContext
from paligemma.text_engine import numerical_error


class Draft:
    """The answer to one job as it grows."""

    def __init__(
        self,
        ready: ReadyJob,
        predictor: Predictor,
        limits: Limits,
        faults: Faults,
        *,
        stop: tuple[str, ...],
        stream: bool,
    ) -> None:
        self._ready = ready
        self._tokenizer = predictor.processor.tokenizer
        self._limits = limits
        self._faults = faults
        self._stream = stream
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._tops: list[tuple[TopLogprob, ...]] = []
        self._text: TextStream | None = None
        if ready.task is None or stream:
            self._text = TextStream(self._tokenizer, stop)
        self._context: TaskContext | None = None
        self._objects: ObjectStream | None = None
        if ready.task is not None:
            self._context = TaskContext(
                transform=ready.photos[0].transform, mask_codec=predictor.mask_codec
            )
            if stream and isinstance(ready.task, GuidedTask):
                self._objects = ObjectStream(ready.task, self._tokenizer, self._context)

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._ready.num_prompt_tokens,
            image_tokens=self._ready.num_image_tokens,
            completion_tokens=len(self._token_ids),
        )

    @property
    def top_logprobs(self) -> tuple[tuple[TopLogprob, ...], ...]:
        """Of each token, when they were asked for."""
        return tuple(self._tops) if any(self._tops) else ()

    def push(self, event: Event) -> Update | None:
        """Take in a token, if the event has one; what is to be told of it, when streaming."""
        self._faults.hit("detok")
        if event.token_id is None or event.logprob is None:
            return None
        self._token_ids.append(event.token_id)
        self._logprobs.append(event.logprob)
        self._tops.append(event.top_logprobs)
        if self._text is not None and event.token_id != self._tokenizer.eos_id:
            self._text.push(event.token_id)
        if not self._stream:
            return None
        assert self._text is not None
        found = None
        if self._objects is not None:
            found = self._objects.push(event.token_id, event.logprob)
        return Update(
            text=self._text.take(),
            token_ids=(event.token_id,),
            logprobs=(event.logprob,),
            top_logprobs=(event.top_logprobs,) if event.top_logprobs else (),
            object=found,
        )

    def finish(self, event: Event) -> tuple[Update | None, Any]:
        """The last update, and the typed result. Raises what ended the job instead."""
        if (error := _error_of(event)) is not None:
            raise error
        stop_reason = cast("StopReason", event.stop_reason)
        rest = "" if self._text is None else self._text.take_rest()
        found = None if self._objects is None else self._objects.finish(stop_reason)
        last = Update(text=rest, object=found) if self._stream and (rest or found) else None
        return last, self._result(rest, stop_reason)

    def _result(self, rest: str, stop_reason: StopReason) -> Any:
        generation = Generation(
            text=self._whole_text(rest),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            stop_reason=stop_reason,
        )
        task = self._ready.task
        if task is None:
            return generation
        assert self._context is not None
        if isinstance(task, SegmentTask):
            self._check_masks(generation)
        return task.parse(generation, self._tokenizer, self._context)

    def _whole_text(self, rest: str) -> str:
        return rest if self._text is None or not self._stream else self._text.text

    def _check_masks(self, generation: Generation) -> None:
        """Raises ImageError before masks are made that take too much memory together."""
        parsed = parse_objects(
            generation.token_ids,
            generation.logprobs,
            self._tokenizer,
            stop_reason=generation.stop_reason,
        )
        number = sum(bool(item.seg_codes) for item in parsed.objects)
        width, height = size_wh = self._ready.photos[0].transform.source_wh
        if number * width * height > self._limits.max_mask_pixels:
            raise too_many_mask_pixels(number, size_wh, self._limits)


def _error_of(event: Event) -> PaliGemmaError | None:
    match event.stop_reason:
        case "numerical_error":
            return numerical_error()
        case "cancelled" | "expired":
            return CancelledError("The job was cancelled.")
        case "failed":
            return ours(event.error)
        case _:
            return None


def ours(error: BaseException | None) -> PaliGemmaError:
    """The error itself when it is of the family; else one that says only that much."""
    if isinstance(error, PaliGemmaError):
        return error
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        found: PaliGemmaError = UnavailableError(
            "There was no memory for this answer, twice. Try again later, or with fewer tokens."
        )
    else:
        found = PaliGemmaError("The server failed at this request; it is not the request's fault.")
    found.__cause__ = error
    return found
