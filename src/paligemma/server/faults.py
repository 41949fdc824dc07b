"""Places where a test breaks the server on purpose; without the switch they do nothing.

A fault is planted for a named point and does one thing there: raise, sleep, kill the process, or
give NaN. Planting is refused unless $PALIGEMMA_FAULTS is "test" when the process starts, so that
no request and no bug can break a server that people use.

    PALIGEMMA_FAULTS=test  PALIGEMMA_FAULT_PLAN='step@3=sleep:0.5;decode=raise'  paligemma serve

Knows no model and no HTTP.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from paligemma.errors import OptionError

SWITCH = "PALIGEMMA_FAULTS"
PLAN = "PALIGEMMA_FAULT_PLAN"

Point = Literal[
    "load", "fetch", "decode", "tokenize", "step", "forward", "row", "detok", "score", "send"
]
"""load: before the model is read. fetch: before a picture is fetched from an address. decode,
tokenize: before a picture is decoded, a prompt tokenized. step: before a turn of the engine's
thread, outside of the engine. forward: inside of the engine's step, before the model. row: the
logits of one row. detok: before a token becomes text. score: before a score is computed. send:
before a piece of an answer is written to the client."""

Action = Literal["raise", "oom", "sleep", "kill", "nan"]


class PlantedFaultError(Exception):
    """What a planted "raise" raises: none of the package's family, as a bug would be."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens at a point: at its `at`-th hit (from 0) and `times` - 1 more, or each time.

    `seconds` is for "sleep". `key` limits it to hits that carry this key, such as a prompt; hits
    are counted among those.
    """

    point: Point
    action: Action
    at: int = 0
    times: int | None = 1
    seconds: float = 0.0
    key: str | None = None

    def __post_init__(self) -> None:
        if self.point not in get_args(Point) or self.action not in get_args(Action):
            raise OptionError(
                f"There is no fault {self.action!r} at {self.point!r}. Points: "
                f"{', '.join(get_args(Point))}. Actions: {', '.join(get_args(Action))}."
            )


class Faults:
    """The faults of one server; `hits` counts how often each point was passed."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Raises OptionError for a plan that cannot be read."""
        self.are_allowed = environment.get(SWITCH) == "test"
        self.hits: Counter[str] = Counter()
        self._planted: list[tuple[Fault, list[int]]] = []
        self._lock = threading.Lock()
        if self.are_allowed:
            for text in filter(None, environment.get(PLAN, "").split(";")):
                self.plant(_parse(text))

    def plant(self, fault: Fault) -> None:
        """Raises OptionError unless the switch is set."""
        if not self.are_allowed:
            raise OptionError(f"Faults are for tests: they need {SWITCH}=test.")
        with self._lock:
            self._planted.append((fault, [0]))

    @property
    def is_planted(self) -> bool:
        """True while there is any fault."""
        return bool(self._planted)

    def clear(self) -> None:
        """Pull out all faults."""
        with self._lock:
            self._planted.clear()

    def hit(self, point: Point, key: str | None = None) -> bool:
        """Pass a point; True when the caller shall make NaN of its numbers.

        Raises what was planted there: PlantedFaultError, or torch.OutOfMemoryError.
        """
        if not self.are_allowed:
            return False
        gives_nan = False
        for fault in self._due(point, key):
            if fault.action == "raise":
                raise PlantedFaultError(f"planted at {point}")
            if fault.action == "oom":
                raise torch.OutOfMemoryError(f"planted at {point}")
            if fault.action == "sleep":
                time.sleep(fault.seconds)
            elif fault.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            gives_nan |= fault.action == "nan"
        return gives_nan

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
    """POINT[@HIT][*TIMES]=ACTION[:SECONDS], such as step@3=sleep:0.5; *0 is each time from there.

    Raises OptionError for anything else.
    """
    place, _, action = text.strip().partition("=")
    place, _, times = place.partition("*")
    point, _, at = place.partition("@")
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
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"The fault {text!r} is not POINT@HIT*TIMES=ACTION:SECONDS.") from error
