"""The server's settings: limits, API keys, host names, and domains to fetch images from.

`middleware.py`, `handler.py` and `images.py` enforce the limits on bytes and headers, `jobs.py`
those on a single job, and `service.py` those on all jobs together. Keys are read from a file or
the environment, never from the command line, and only their SHA-256 is kept in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from paligemma.checkpoints.hub import resolve
from paligemma.errors import OptionError
from paligemma.loading import MINI

KEYS_VARIABLE = "PALIGEMMA_API_KEYS"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")

_MIN_KEY_CHARACTERS = 16
_MAX_KEY_CHARACTERS = 512
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

    # One document

    max_document_bytes: int = 20 * _MIB
    """Of a PDF file, a TIFF file or an image that is read as a document."""
    max_document_pages: int = 50
    """Pages that one request may read."""
    max_document_questions: int = 5000
    """Questions that the model is asked about one document."""
    document_seconds: float = 900.0
    """Time from acceptance to the end, in place of `request_seconds`."""
    document_page_seconds: float = 20.0
    """Time to draw one page, or to find its words."""
    document_memory_bytes: int = 1024 * _MIB
    """Memory of the process that reads a document's file."""
    max_documents: int = 4
    """Documents that are read at a time; further ones are refused at once."""
    documents_per_client: int = 2
    """The same for one client."""

    # One video, where videos are allowed; otherwise as for documents

    max_video_bytes: int = 30 * _MIB
    """Of a video file; a body is held to `max_body_bytes`, too."""
    max_video_seconds: float = 3600.0
    """Length of a video."""
    max_video_frames: int = 200_000
    """Frames that are decoded for one request."""

    # All jobs together

    max_running: int = 32
    """Fewer jobs run at a time if `kv_cache_bytes` has no room for this many."""
    max_queued: int = 64
    """Accepted jobs that are not running yet; further ones are refused at once."""
    max_wait_seconds: float = 1.5
    """Requests are refused at once when the time to their first token is expected to be longer."""
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
        for entry in fields(self):
            value = getattr(self, entry.name)
            is_whole = entry.type == "int"
            allowed = int if is_whole else int | float
            is_positive = isinstance(value, allowed) and math.isfinite(value) and value > 0
            if isinstance(value, bool) or not is_positive:
                is_cache = entry.name in ("image_cache_bytes", "prefix_cache_bytes")
                if is_cache and value == 0 and value is not False:
                    continue
                kind = "a whole number" if is_whole else "a number of seconds"
                raise OptionError(f"{entry.name} is {value!r}; it must be {kind} above 0.")

    def to_dict(self) -> dict[str, Any]:
        """Name -> value."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of the server except the model."""

    limits: Limits = field(default_factory=Limits)
    keys: KeyRing | None = None
    """None: no key is required."""
    hosts: tuple[str, ...] = LOOPBACK_HOSTS
    """Allowed values of the Host header, in lower case and without a port."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may call the server, in lower case: "http://localhost:3000"."""
    open_readiness: bool = False
    """Answer /health/ready without a key and for any Host header, for probes."""
    allow_video: bool = False
    """Serve /v1/video, which decodes the videos of clients in processes of their own."""
    question_prefix: str | None = None
    """What a plain question to /v1/chat/completions begins with, such as "answer en"; "" sends it
    unchanged. None: "answer en" for mini and mix checkpoints, which were trained with it."""
    image_domains: tuple[str, ...] = ()
    """Domains that images may be fetched from: "example.com", or "*.example.com" for its
    subdomains. Empty: images are not fetched."""
    private_image_hosts: tuple[str, ...] = ()
    """Hosts, with their ports, that images may be fetched from over http and https although their
    addresses are private: "minio:9000". In lower case."""


class KeyRing:
    """API keys, of which only the digests are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises OptionError for a key that is too short or is not visible ASCII."""
        self._digests: list[bytes] = []
        for number, key in enumerate(keys, start=1):
            if not (key.isascii() and key.isprintable()) or " " in key:
                raise OptionError(f"API key {number} contains a space or is not visible ASCII.")
            if not _MIN_KEY_CHARACTERS <= len(key) <= _MAX_KEY_CHARACTERS:
                raise OptionError(
                    f"API key {number} has {len(key)} characters; {_MIN_KEY_CHARACTERS} to "
                    f"{_MAX_KEY_CHARACTERS} are expected. Create one with: openssl rand -hex 24"
                )
            self._digests.append(hashlib.sha256(key.encode()).digest())
        if not self._digests:
            raise OptionError("No API keys. Give one per line, or omit the option.")

    def name_of(self, key: bytes) -> str | None:
        """A short name for the owner of this key, for logs; None for an unknown key.

        All digests are compared, each in constant time, so that the time reveals nothing.
        """
        digest = hashlib.sha256(key).digest()
        matches = [hmac.compare_digest(digest, other) for other in self._digests]
        return f"key-{digest.hex()[:8]}" if any(matches) else None


def served_name(model: str) -> str:
    """The default name of a model for clients; for a folder, only its last part.

    Raises CheckpointError or HubError if the model does not exist.
    """
    if model != MINI and isinstance(folder := resolve(model), Path):
        return Path(os.path.abspath(folder)).name or "model"
    return model


def limits_without_keys(limits: Limits, changed: Collection[str] = ()) -> Limits:
    """Limits for a server without keys, where one client may use all of them, unless changed.

    Clients are then told apart by their address, and all clients of a proxy share one.
    """
    per_client = {
        "streams_per_client": limits.max_running + limits.max_queued,
        "documents_per_client": limits.max_documents,
    }
    return replace(limits, **{name: per_client[name] for name in per_client.keys() - changed})


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> KeyRing | None:
    """The keys in a file (one per line, # for comments) or in $PALIGEMMA_API_KEYS (with commas).

    None if neither is given. Raises OptionError for an unusable file.
    """
    if file is not None:
        try:
            if file.stat().st_size > _MIB:
                raise OptionError(f"The key file {str(file)!r} is larger than 1 MiB.")
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(
                f"Cannot read the key file {str(file)!r}. Give a text file with one key per line."
            ) from error
        return KeyRing(key for line in lines if (key := line.split("#", 1)[0].strip()))
    if keys := environment.get(KEYS_VARIABLE):
        return KeyRing(key.strip() for key in keys.split(",") if key.strip())
    return None
