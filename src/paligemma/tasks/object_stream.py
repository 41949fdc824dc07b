"""The objects of an answer while its tokens come: each as soon as it is whole.

An object is whole where the next one begins or the answer ends. Its tokens alone are then read by
the task's own parser, so that what was told one by one is what the result holds. Knows tasks and
token ids; knows no engine.
"""

from __future__ import annotations

from typing import Any

from paligemma.results import Detection, Generation, Objects, StopReason
from paligemma.tasks.objects import BoxYxyxBins, TokenReader, parse_objects
from paligemma.tasks.task import Task, TaskContext


class ObjectStream:
    """Reads the answer to one detect or segment task."""

    def __init__(self, task: Task[Any], tokenizer: TokenReader, context: TaskContext) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._context = context
        self._token_ids: list[int] = []  # from the current object's first place on
        self._logprobs: list[float] = []
        self._has_begun = False
        self._in_places = False
        self._seen: set[tuple[str, BoxYxyxBins]] = set()

    def push(self, token_id: int, logprob: float) -> Detection | None:
        """Take in a token; the object that is whole now, if there is one."""
        found = None
        is_place = self._tokenizer.is_loc(token_id)
        if is_place and not self._in_places:
            found = self._read("eos")
            self._token_ids, self._logprobs = [], []
            self._has_begun = True
        self._in_places = is_place
        if self._has_begun:
            self._token_ids.append(token_id)
            self._logprobs.append(logprob)
        return found

    def finish(self, stop_reason: StopReason) -> Detection | None:
        """The last object, when no more tokens come."""
        return self._read(stop_reason)

    def _read(self, stop_reason: StopReason) -> Detection | None:
        parsed = parse_objects(
            self._token_ids, self._logprobs, self._tokenizer, stop_reason=stop_reason
        )
        for item in parsed.objects:  # one at most: no second run of places
            if (item.label, item.box_yxyx_bins) in self._seen:
                return None
            self._seen |= {(item.label, item.box_yxyx_bins), ("", item.box_yxyx_bins)}
            piece = Generation(
                text="",
                token_ids=tuple(self._token_ids),
                logprobs=tuple(self._logprobs),
                stop_reason=stop_reason,
            )
            objects: Objects[Any] = self._task.parse(piece, self._tokenizer, self._context)
            if objects:
                found: Detection = objects[0]
                return found
        return None
