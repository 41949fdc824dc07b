"""Every limit of the server, with its default.

`middleware.py`, `handler.py` and `images.py` enforce the limits on bytes and headers, `jobs.py`
those on a single job, and `service.py` those on all jobs together.
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
    """Sizes are in bytes where the name says so, times in seconds.

    Raises OptionError for a value that is not above 0, except where 0 is documented.

    >>> Limits(max_queued=8).to_dict()["max_queued"]
    8
    """

    # Requests

    max_header_bytes: int = 16 * 1024
    max_headers: int = 100
    max_body_bytes: int = 32 * _MIB
    """Size of a request's body."""
    body_seconds: float = 30.0
    """Time to receive a whole body."""
    idle_seconds: float = 10.0
    """Time between two parts of a body, and for a connection without a request."""
    fetch_seconds: float = 10.0
    """Time to fetch an image from an address, where that is allowed."""

    # One job

    max_image_bytes: int = 16 * _MIB
    max_images: int = 1
    max_pixels: int = 50_000_000
    max_side: int = 20_000
    max_mask_pixels: int = 256_000_000
    """Total size of one answer's masks: each has one byte per pixel of the image."""
    max_prompt_characters: int = 16_384
    max_prompt_tokens: int = 1024
    """Long prompts take memory that several short ones could use."""
    max_tokens: int = 1024
    """New tokens per answer."""
    max_n: int = 8
    """Answers per prompt, and prompts per request."""
    max_stops: int = 4
    max_stop_characters: int = 64
    max_logprobs: int = 20
    max_suffixes: int = 32
    """Texts to score per request."""

    # All jobs together

    max_running: int = 32
    """Fewer jobs run at a time if `kv_cache_bytes` has no room for this many."""
    max_queued: int = 64
    """Accepted jobs that are not running yet; further ones are refused at once."""
    kv_cache_bytes: int = 2048 * _MIB
    image_cache_bytes: int = 256 * _MIB
    """Cache of decoded images and of their image tokens; 0 disables it."""
    prefix_cache_bytes: int = 256 * _MIB
    """Cache of images with prompts that the model has read; 0 disables it."""
    max_waiting_image_bytes: int = 128 * _MIB
    """Total size of accepted images that are not decoded yet."""
    num_decoders: int = 2
    """Threads that decode images."""
    streams_per_client: int = 32
    """Accepted requests per client."""
    queue_seconds: float = 30.0
    """Time from acceptance to the first token."""
    request_seconds: float = 120.0
    """Time from acceptance to the end."""
    stall_seconds: float = 60.0
    """A model step that takes longer counts as hung."""
    drain_seconds: float = 30.0
    """Time to finish accepted requests before shutting down."""

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
        """Name -> value."""
        return dataclasses.asdict(self)


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
