"""Parse the objects of a detect or segment answer while it is generated.

An object is complete when the next one begins or the answer ends. Its tokens are then parsed by the
task itself, so the streamed objects are those of the final result.
"""

from __future__ import annotations

from typing import Any

from paligemma.results import Detection, Generation, Objects, RangeSummary, StopReason
from paligemma.tasks.objects import BoxYxyxBins, TokenReader, parse_objects, separator_start
from paligemma.tasks.task import Task, TaskContext


class ObjectStream:
    """The objects of one answer."""

    def __init__(self, task: Task[Any], tokenizer: TokenReader, context: TaskContext) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._context = context
        # Of the current object, from the separator before it on
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._locations: list[RangeSummary | None] = []
        self._in_locations = False
        self._seen: set[tuple[str, BoxYxyxBins]] = set()

    def push(
        self, token_id: int, logprob: float, location: RangeSummary | None
    ) -> Detection | None:
        """Add a token; return the object that is complete now, if there is one."""
        completed = None
        is_location = self._tokenizer.is_loc(token_id)
        if is_location and not self._in_locations:
            completed = self._read("eos")
            start = separator_start(self._token_ids, len(self._token_ids), self._tokenizer)
            del self._token_ids[:start], self._logprobs[:start], self._locations[:start]
        self._in_locations = is_location
        self._token_ids.append(token_id)
        self._logprobs.append(logprob)
        self._locations.append(location)
        return completed

    def finish(self, stop_reason: StopReason) -> Detection | None:
        """Return the last object, after the last token."""
        return self._read(stop_reason)

    def _read(self, stop_reason: StopReason) -> Detection | None:
        parsed = parse_objects(
            self._token_ids, self._logprobs, self._tokenizer, stop_reason=stop_reason
        )
        for item in parsed.objects:  # at most one, because there is one run of locations
            if (item.label, item.box_yxyx_bins) in self._seen:
                return None
            self._seen |= {(item.label, item.box_yxyx_bins), ("", item.box_yxyx_bins)}
            piece = Generation(
                text="",
                token_ids=tuple(self._token_ids),
                logprobs=tuple(self._logprobs),
                stop_reason=stop_reason,
                locations=tuple(self._locations),
            )
            objects: Objects[Any] = self._task.parse(piece, self._tokenizer, self._context)
            if objects:
                detection: Detection = objects[0]
                return detection
        return None
