"""The engine's thread, which alone uses the model.

    inbox (add, cancel) -> turn: take new work, step, score one batch -> outbox

A turn raises only when the engine itself is broken; the error of one request becomes its outcome.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from paligemma.answering import Answer
from paligemma.engine.engine import Engine, Event
from paligemma.engine.generate import score
from paligemma.results import Score
from paligemma.server.preparing import PreparedScore

Outcome = Event | list[Score] | Exception
"""A token or the end; all scores; or the error of the request."""


@dataclass(kw_only=True, eq=False)
class _Scoring:
    key: Hashable
    prepared: PreparedScore
    scores: list[Score] = field(default_factory=list)
    num_done: int = 0


class EngineLoop:
    """Runs one engine.

    `emit` gets the outcomes of each turn, and must return at once. `before_turn` is called in the
    engine's thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        emit: Callable[[list[tuple[Hashable, Outcome]]], None],
        before_turn: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.engine = engine
        self.last_beat = clock()
        """When the last turn began or ended."""
        self.num_steps = 0
        self._emit = emit
        self._before_turn = before_turn
        self._clock = clock
        self._changed = threading.Condition()
        self._new: deque[tuple[Hashable, Answer | PreparedScore, bool]] = deque()
        self._cancelled: list[Hashable] = []
        self._is_closing = False
        self._keys: dict[int, Hashable] = {}  # of the engine's requests
        self._numbers: dict[Hashable, int] = {}
        self._scorings: deque[_Scoring] = deque()

    # From any thread

    def add(
        self, key: Hashable, prepared: Answer | PreparedScore, *, goes_first: bool = False
    ) -> None:
        """Queue work, before its client's other answers if it goes first.

        Its outcomes are emitted with this key, the end last.
        """
        with self._changed:
            if not self.is_busy:  # idle until now: the time without work does not count
                self.last_beat = self._clock()
            self._new.append((key, prepared, goes_first))
            self._changed.notify()

    def cancel(self, key: Hashable) -> None:
        """Cancel work before the next step and emit its end. Does nothing when it has ended."""
        with self._changed:
            if not self.is_busy:
                self.last_beat = self._clock()
            self._cancelled.append(key)
            self._changed.notify()

    def close(self) -> None:
        """Make `run` return after the current turn."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    @property
    def is_busy(self) -> bool:
        """True while there is work."""
        return bool(self._new or self._cancelled or self._scorings or self.engine.has_work)

    # The thread itself

    def run(self) -> None:
        """Run turns until closed. Raises what `turn` raises."""
        while True:
            with self._changed:
                while not self.is_busy and not self._is_closing:
                    self._changed.wait()
                self.last_beat = self._clock()
                if self._is_closing:
                    return
            self._before_turn()
            self.turn()

    def turn(self) -> None:
        """Take new work, make one step, score one batch."""
        self.last_beat = self._clock()
        outcomes: list[tuple[Hashable, Outcome]] = []
        self._take(outcomes)
        if self.engine.has_work:
            for event in self.engine.step():
                key = self._keys[event.request_id]
                if event.stop_reason is not None:
                    del self._keys[event.request_id], self._numbers[key]
                outcomes.append((key, event))
            self.num_steps += 1
        if self._scorings:
            self._score(outcomes)
        if outcomes:
            self._emit(outcomes)
        self.last_beat = self._clock()

    def _take(self, outcomes: list[tuple[Hashable, Outcome]]) -> None:
        with self._changed:
            new, self._new = self._new, deque()
            cancelled, self._cancelled = self._cancelled, []
        for key, prepared, goes_first in new:
            if isinstance(prepared, PreparedScore):
                self._scorings.append(_Scoring(key=key, prepared=prepared))
                continue
            try:
                number = self.engine.add(prepared.request, goes_first=goes_first)
            except Exception as error:  # of this request alone, such as of its grammar
                outcomes.append((key, error))
            else:
                self._keys[number] = key
                self._numbers[key] = number
        for key in cancelled:
            if (running := self._numbers.get(key)) is not None:
                self.engine.cancel(running)
            for scoring in [s for s in self._scorings if s.key == key]:
                self._scorings.remove(scoring)
                outcomes.append((key, []))

    def _score(self, outcomes: list[tuple[Hashable, Outcome]]) -> None:
        """Score one batch of the first job, which then goes to the end of the queue."""
        scoring = self._scorings.popleft()
        prepared = scoring.prepared
        try:
            image_tokens = None
            if prepared.images:
                images = [image.image for image in prepared.images]
                image_tokens = self.engine.image_tokens(images)
            inputs = prepared.batches[scoring.num_done]
            self.engine.select_adapters([prepared.adapter] * len(inputs.token_ids))
            scoring.scores += score(self.engine.model, inputs, image_tokens=image_tokens)
        except Exception as error:
            outcomes.append((scoring.key, error))
            return
        scoring.num_done += 1
        if scoring.num_done == len(prepared.batches):
            outcomes.append((scoring.key, scoring.scores))
        else:
            self._scorings.append(scoring)


def is_end(outcome: Outcome) -> bool:
    """True for the last outcome of a job."""
    return not isinstance(outcome, Event) or outcome.stop_reason is not None
