"""Every bound of the server, with its default: what is refused is refused by one of these.

Knows numbers only. Whoever reads a request enforces the limits on bytes and headers; `jobs.py`
those on questions; `service.py` those on how much goes on at a time.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from paligemma.errors import OptionError

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes in bytes where the name says so, times in seconds.

    Raises OptionError for a value that is not above 0; those that may be None or 0 say so.

    >>> Limits(max_queued=8).to_dict()["max_queued"]
    8
    """

    # What comes in

    max_header_bytes: int = 16 * 1024
    max_headers: int = 100
    max_body_bytes: int = 32 * _MIB
    """Counted while reading."""
    body_seconds: float = 30.0
    """To send a whole body."""
    idle_seconds: float = 10.0
    """Between two pieces of a body, and of a connection without a request."""
    fetch_seconds: float = 10.0
    """To fetch a picture from an address, where that is allowed."""

    # One question

    max_image_bytes: int = 16 * _MIB
    max_images: int = 1
    max_pixels: int = 50_000_000
    max_side: int = 20_000
    max_mask_pixels: int = 256_000_000
    """Of all masks of one answer together, each as large as its picture, a byte a pixel."""
    max_prompt_characters: int = 16_384
    max_prompt_tokens: int = 1024
    """A long prompt takes room in the cache that short ones would share."""
    max_tokens: int = 1024
    """New tokens of one answer."""
    max_n: int = 8
    """Answers to one question, and questions in one request."""
    max_stops: int = 4
    max_stop_characters: int = 64
    max_logprobs: int = 20
    max_suffixes: int = 32
    """Texts to score in one request."""

    # All together

    max_running: int = 32
    """Fewer run where `kv_cache_bytes` has no room for so many."""
    max_queued: int = 64
    """Accepted, and not running yet: behind them everybody is sent away at once."""
    kv_cache_bytes: int = 2048 * _MIB
    image_cache_bytes: int = 256 * _MIB
    """What the model has seen, and pictures ready for it; 0 keeps nothing."""
    prefix_cache_bytes: int = 256 * _MIB
    """What pictures with their prompts left in the model, for who asks the same; 0 keeps none."""
    max_waiting_image_bytes: int = 128 * _MIB
    """Of pictures accepted and not decoded yet, all together."""
    num_decoders: int = 2
    """Threads that decode pictures."""
    streams_per_client: int = 32
    """Requests that one client may have accepted at a time."""
    queue_seconds: float = 30.0
    """From acceptance to the first token."""
    request_seconds: float = 120.0
    """From acceptance to the end."""
    stall_seconds: float = 60.0
    """A step of the model that takes longer counts as hung."""
    drain_seconds: float = 30.0
    """To finish what was accepted before shutting down."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_whole = field.type == "int"
            allowed = int if is_whole else int | float
            if isinstance(value, bool) or not isinstance(value, allowed) or not _is_positive(value):
                is_cache = field.name in ("image_cache_bytes", "prefix_cache_bytes")
                if is_cache and value == 0 and value is not False:
                    continue
                kind = "a whole number" if is_whole else "a number of seconds"
                raise OptionError(f"{field.name} is {value!r}; it must be {kind} above 0.")

    def to_dict(self) -> dict[str, Any]:
        """Name -> value, for people and programs that ask."""
        return dataclasses.asdict(self)


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
