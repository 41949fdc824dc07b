"""The service's statistics: current values, totals, and a record of each job that has ended.

Nothing here is derived from what a client wrote, so all of it may be used in metrics and logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paligemma.answering import Usage

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

    kind: str
    """"caption", "detect", "prompt", "score", ...: never text that a client wrote."""
    outcome: HowEnded
    first_token_seconds: float | None
    seconds: float
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Current values, and totals since the start."""

    state: State
    waiting: int
    """Jobs that are accepted and have no token yet."""
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
    heartbeat_age: float
    """Seconds since the engine's thread last finished a step; 0 without work."""
