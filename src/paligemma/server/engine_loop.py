"""The engine's own thread: it alone touches the model, and nobody else waits for it.

    inbox (add, cancel, score) -> turn: take, step, one batch to score -> outbox

A turn raises only when the engine itself is broken; what goes wrong with one request comes out of
the outbox as its end. Knows the engine and works that have a number; knows no text, no event
loop and no HTTP.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from paligemma.answering import Answer
from paligemma.engine.engine import Engine, Event
from paligemma.engine.score import score
from paligemma.results import Score
from paligemma.server.faults import Faults
from paligemma.server.preparing import PreparedScore

Outcome = Event | list[Score] | Exception
"""A token or an end; all scores; or why the engine did not take it."""


@dataclass(kw_only=True, eq=False)
class _Scoring:
    key: Hashable
    prepared: PreparedScore
    scores: list[Score] = field(default_factory=list)
    num_done: int = 0


class EngineLoop:
    """Feeds one engine. `tell` gets what each turn brought, and must return at once."""

    def __init__(
        self,
        engine: Engine,
        *,
        tell: Callable[[list[tuple[Hashable, Outcome]]], None],
        clock: Callable[[], float],
        faults: Faults,
    ) -> None:
        self.engine = engine
        self.last_beat = clock()
        """When the last turn began or ended."""
        self.num_steps = 0
        self._tell = tell
        self._clock = clock
        self._faults = faults
        self._news = threading.Condition()
        self._new: deque[tuple[Hashable, Answer | PreparedScore]] = deque()
        self._cancelled: list[Hashable] = []
        self._is_closing = False
        self._keys: dict[int, Hashable] = {}  # of the engine's requests
        self._numbers: dict[Hashable, int] = {}
        self._scorings: deque[_Scoring] = deque()

    # From any thread

    def add(self, key: Hashable, prepared: Answer | PreparedScore) -> None:
        """Hand over work; what becomes of it is told under this key, its end last."""
        with self._news:
            if not self.is_busy:  # it rested, and nobody can say since when it should not
                self.last_beat = self._clock()
            self._new.append((key, prepared))
            self._news.notify()

    def cancel(self, key: Hashable) -> None:
        """End it before the next step; that is told, too. Does nothing when it has ended."""
        with self._news:
            if not self.is_busy:
                self.last_beat = self._clock()
            self._cancelled.append(key)
            self._news.notify()

    def close(self) -> None:
        """Let `run` return after its turn."""
        with self._news:
            self._is_closing = True
            self._news.notify()

    @property
    def is_busy(self) -> bool:
        """True while something is left to do."""
        return bool(self._new or self._cancelled or self._scorings or self.engine.has_work)

    # The thread itself

    def run(self) -> None:
        """Turn after turn, until closed. Raises what `turn` raises."""
        while True:
            with self._news:
                while not self.is_busy and not self._is_closing:
                    self._news.wait()
                self.last_beat = self._clock()
                if self._is_closing:
                    return
            self.turn()

    def turn(self) -> None:
        """Take what is new, make one step, score one batch."""
        self.last_beat = self._clock()
        told: list[tuple[Hashable, Outcome]] = []
        self._take(told)
        self._faults.hit("step")
        if self.engine.has_work:
            for event in self.engine.step():
                key = self._keys[event.request_id]
                if event.stop_reason is not None:
                    del self._keys[event.request_id], self._numbers[key]
                told.append((key, event))
            self.num_steps += 1
        if self._scorings:
            self._score(told)
        if told:
            self._tell(told)
        self.last_beat = self._clock()

    def _take(self, told: list[tuple[Hashable, Outcome]]) -> None:
        with self._news:
            new, self._new = self._new, deque()
            cancelled, self._cancelled = self._cancelled, []
        for key, prepared in new:
            if isinstance(prepared, PreparedScore):
                self._scorings.append(_Scoring(key=key, prepared=prepared))
                continue
            try:
                number = self.engine.add(prepared.request)
            except Exception as error:  # of this request alone, such as a grammar's own
                told.append((key, error))
            else:
                self._keys[number] = key
                self._numbers[key] = number
        for key in cancelled:
            if (known := self._numbers.get(key)) is not None:
                self.engine.cancel(known)
            for scoring in [one for one in self._scorings if one.key == key]:
                self._scorings.remove(scoring)
                told.append((key, []))

    def _score(self, told: list[tuple[Hashable, Outcome]]) -> None:
        """One batch of the first; whoever has more stands behind the others then."""
        scoring = self._scorings.popleft()
        prepared = scoring.prepared
        try:
            self._faults.hit("score")
            image_tokens = None
            if prepared.images:
                images = [image.image for image in prepared.images]
                image_tokens = self.engine.image_tokens(images)
            inputs = prepared.batches[scoring.num_done]
            self.engine.select_adapters([prepared.adapter] * len(inputs.token_ids))
            scoring.scores += score(self.engine.model, inputs, image_tokens=image_tokens)
        except Exception as error:
            told.append((scoring.key, error))
            return
        scoring.num_done += 1
        if scoring.num_done == len(prepared.batches):
            told.append((scoring.key, scoring.scores))
        else:
            self._scorings.append(scoring)


def is_end(outcome: Outcome) -> bool:
    """Whether nothing comes after it."""
    return not isinstance(outcome, Event) or outcome.stop_reason is not None
