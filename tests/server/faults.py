"""Faults that tests plant in a service: a named point raises, sleeps or returns NaN.

`FaultyService` is the service with these points; the package has none. As a process:

    python -m tests.server.faults 'step@3=sleep:0.5;decode=raise' serve --model mini
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from paligemma.predictor import Predictor
from paligemma.server import service as service_module
from paligemma.server.service import Loaded, Service

Point = Literal["load", "decode", "tokenize", "step", "forward", "row", "detok", "score"]
"""load: before the model is loaded. decode: before an image is decoded. tokenize: before a prompt
is tokenized. step: before a turn of the engine's thread, outside of the engine. forward: in the
engine's step, before the model. row: the logits of one row. detok: before a token becomes text.
score: before a score is computed."""

Action = Literal["raise", "oom", "sleep", "nan"]


class PlantedFaultError(Exception):
    """The error of a planted "raise". Like a bug, it is none of the package's errors."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens at a point: at its `at`-th hit (from 0) and `times` - 1 more, or at all hits.

    `seconds` is for "sleep". `key` limits the fault to hits with this key, such as a prompt;
    only these are counted then.
    """

    point: Point
    action: Action
    at: int = 0
    times: int | None = 1
    seconds: float = 0.0
    key: str | None = None

    def __post_init__(self) -> None:
        if self.point not in get_args(Point) or self.action not in get_args(Action):
            raise ValueError(f"Unknown fault {self.action!r} at {self.point!r}.")


class Faults:
    """The faults of one service; `hits` counts how often each point was passed."""

    def __init__(self, plan: str = "") -> None:
        """`plan`: POINT[@HIT][*TIMES]=ACTION[:SECONDS], separated by ";". *0 means always."""
        self.hits: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._planted: list[tuple[Fault, list[int]]] = []
        for text in filter(None, plan.split(";")):
            self.plant(_parse(text))

    def plant(self, fault: Fault) -> None:
        with self._lock:
            self._planted.append((fault, [0]))

    @property
    def is_planted(self) -> bool:
        """True if there is any fault."""
        return bool(self._planted)

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._planted.clear()

    def hit(self, point: Point, key: str | None = None) -> bool:
        """Pass a point. Returns True if the caller shall make its numbers NaN.

        Raises what was planted there: PlantedFaultError, or torch.OutOfMemoryError.
        """
        makes_nan = False
        for fault in self._due(point, key):
            if fault.action == "raise":
                raise PlantedFaultError(f"planted at {point}")
            if fault.action == "oom":
                raise torch.OutOfMemoryError(f"planted at {point}")
            if fault.action == "sleep":
                time.sleep(fault.seconds)
            makes_nan |= fault.action == "nan"
        return makes_nan

    def _due(self, point: Point, key: str | None) -> list[Fault]:
        due = []
        with self._lock:
            self.hits[point] += 1
            for fault, count in self._planted:
                if fault.point != point or (fault.key is not None and fault.key != key):
                    continue
                number = count[0] - fault.at
                count[0] += 1
                if number >= 0 and (fault.times is None or number < fault.times):
                    due.append(fault)
        return due


def _parse(text: str) -> Fault:
    where, _, action = text.strip().partition("=")
    where, _, times = where.partition("*")
    point, _, at = where.partition("@")
    name, _, seconds = action.partition(":")
    try:
        return Fault(
            point=point,  # type: ignore[arg-type]
            action=name,  # type: ignore[arg-type]
            at=int(at or 0),
            times=int(times or 1) or None,
            seconds=float(seconds or 0),
        )
    except ValueError as error:
        raise ValueError(f"Not a fault: {text!r}. {error}") from error


class _Wrapper:
    """Passes everything on to the wrapped object."""

    def __init__(self, wrapped: Any, faults: Faults) -> None:
        self._wrapped = wrapped
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


class FaultyModel(_Wrapper):
    """Passes "forward" before each pass, and "row" for each of its rows, keyed "0", "1", ..."""

    def prefix_state(self, *args: Any, **kwargs: Any) -> Tensor:
        self._faults.hit("forward", "prefill")
        return self._with_nan(self._wrapped.prefix_state(*args, **kwargs))

    def decode_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self._faults.hit("forward", "decode")
        return self._with_nan(self._wrapped.decode_step(*args, **kwargs))

    def hidden_states(self, *args: Any, **kwargs: Any) -> Tensor:
        """Called from outside of the model for scores only."""
        self._faults.hit("score")
        return self._wrapped.hidden_states(*args, **kwargs)

    def _with_nan(self, rows: Tensor) -> Tensor:
        for row in range(len(rows)):
            if self._faults.hit("row", str(row)):
                rows = rows.clone()
                rows[row] = torch.nan
        return rows


class FaultyProcessor(_Wrapper):
    def load(self, *args: Any, **kwargs: Any) -> Any:
        self._faults.hit("decode")
        return self._wrapped.load(*args, **kwargs)


class FaultyService(Service):
    """A service with faults at its points."""

    def __init__(
        self,
        load: Callable[[], Loaded | Predictor],
        *,
        faults: Faults | None = None,
        **options: Any,
    ) -> None:
        self.faults = faults or Faults()
        self._has_points = False
        super().__init__(lambda: self._load_with_faults(load), **options)

    def state(self) -> Any:
        state = super().state()
        return "loading" if state == "ready" and not self._has_points else state

    def _load_with_faults(self, load: Callable[[], Loaded | Predictor]) -> Loaded:
        self.faults.hit("load")
        loaded = load()
        if isinstance(loaded, Predictor):
            loaded = Loaded(predictor=loaded)
        model: Any = FaultyModel(loaded.predictor.model, self.faults)
        processor: Any = FaultyProcessor(loaded.predictor.processor, self.faults)
        predictor = dataclasses.replace(loaded.predictor, model=model, processor=processor)
        return dataclasses.replace(loaded, predictor=predictor)

    def _open_engine(self, loaded: Loaded) -> None:
        super()._open_engine(loaded)
        loop, preprocessor = self._loop, self._preprocessor
        assert loop is not None
        assert preprocessor is not None
        turn, answer, score = loop.turn, preprocessor.answer, preprocessor.score

        def faulty_turn() -> None:
            self.faults.hit("step")
            turn()

        def faulty_answer(job: Any, *rest: Any) -> Any:
            self.faults.hit("tokenize", job.prompt)
            prepared = answer(job, *rest)
            push = prepared.push

            def faulty_push(event: Any) -> Any:
                self.faults.hit("detok")
                return push(event)

            setattr(prepared, "push", faulty_push)  # noqa: B010
            return prepared

        def faulty_score(job: Any, *rest: Any) -> Any:
            self.faults.hit("tokenize", job.prompt)
            return score(job, *rest)

        for owner, name, faulty in (
            (loop, "turn", faulty_turn),
            (preprocessor, "answer", faulty_answer),
            (preprocessor, "score", faulty_score),
        ):
            setattr(owner, name, faulty)
        self._has_points = True


def plan_faults(plan: str) -> None:
    """Every service of this process has these faults."""

    class PlannedService(FaultyService):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, faults=Faults(plan), **options)

    service_module.Service = PlannedService  # type: ignore[misc]


if __name__ == "__main__":
    from paligemma.cli.main import main

    plan_faults(sys.argv[1])
    main(sys.argv[2:])
