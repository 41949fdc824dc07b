"""A service around a predictor, for tests that need no HTTP; each ends with a look at what is left.

Reliability rows say "alive": afterwards the service is ready, nothing is under way, and a question
of before gets the same answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

import paligemma
from paligemma.predictor import Predictor
from paligemma.server.jobs import Job, JobOptions, Ticket
from paligemma.server.service import Loaded, Service
from paligemma.server.settings import Limits
from paligemma.tasks.text import CaptionTask
from tests.server.faults import Fault, Faults, FaultyService


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def png(seed: int, size_wh: tuple[int, int] = (40, 30)) -> bytes:
    """A picture of noise, as a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def prompt(text: str = "ab", max_tokens: int = 4, **fields: Any) -> Job:
    """A cheap question; it ends with its last token, as a random model seldom says EOS."""
    options = fields.pop("options", JobOptions(max_new_tokens=max_tokens))
    return Job(prompt=text, options=options, **fields)


def endless(**fields: Any) -> Job:
    """A question that any model answers at length: at this temperature, EOS is one token of all."""
    return prompt(options=JobOptions(max_new_tokens=500, temperature=20.0, seed=1), **fields)


def long_answer(**fields: Any) -> dict[str, Any]:
    """What a request about "caption en" without an image has in addition, so that mini writes at
    least 100 tokens."""
    return {"temperature": 2.0, "seed": _long_seed(), "max_tokens": 1000, **fields}


@functools.cache
def _long_seed() -> int:
    """A request cannot be hotter than 2, so it depends on weights and seed when EOS comes."""
    model = paligemma.load("mini")
    options: dict[str, Any] = {"temperature": 2.0, "max_new_tokens": 100}
    for seed in range(200):
        if model.generate((), "caption en", seed=seed, **options).stop_reason == "length":
            return seed
    raise AssertionError("mini ends its answer before 100 tokens, with each of 200 seeds")


def slow(seconds: float = 0.02) -> Faults:
    """Each turn of the engine takes so long."""
    faults = Faults()
    faults.plant(Fault(point="step", action="sleep", seconds=seconds, times=None))
    return faults


def patient(limits: Limits | None) -> Limits:
    """The limits, unless a test sets another wait, without refusing work on a slow machine."""
    limits = limits or Limits()
    if limits.max_wait_seconds != Limits().max_wait_seconds:
        return limits
    return replace(limits, max_wait_seconds=60.0)


@contextlib.asynccontextmanager
async def serving(
    served: Predictor | Loaded,
    limits: Limits | None = None,
    *,
    faults: Faults | None = None,
    clock: Callable[[], float] = time.monotonic,
    must_be_alive: bool = True,
    **options: Any,
) -> AsyncIterator[FaultyService]:
    """A service that is ready; at its end, the alive check."""
    threads_before = threading.active_count()
    faults = faults or Faults()
    service = FaultyService(
        lambda: served, name="tiny", limits=patient(limits), faults=faults, clock=clock, **options
    )
    service.start()
    try:
        await service.wait_until_ready()
        short = JobOptions(max_new_tokens=3)
        known_good = Job(task=CaptionTask(), images=(png(99),), options=short)
        before = None
        if must_be_alive and faults.hits["load"] and not faults.is_planted:
            before = await service.submit(known_good).wait()
        yield service
        if must_be_alive:
            faults.clear()
            await settle(service)
            assert service.state() == "ready"
            after = await service.submit(known_good).wait()
            assert before is None or after.token_ids == before.token_ids
            await settle(service)
    finally:
        service.close()
    await asyncio.sleep(0)
    deadline = time.monotonic() + 5
    while threading.active_count() > threads_before and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert threading.active_count() <= threads_before


async def settle(service: Service) -> None:
    """Wait until nothing is under way."""
    await until(lambda: service.stats().waiting + service.stats().running == 0)


async def until(
    condition: Callable[[], bool], seconds: float = 30.0, what: str = "a condition"
) -> None:
    """Wait until it holds, in small steps."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        await asyncio.sleep(0.005)


async def outcome(ticket: Ticket) -> Any:
    """Its result, or the error that it ended with."""
    try:
        return await ticket.wait()
    except Exception as error:
        return error
