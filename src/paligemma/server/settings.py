"""The server's settings: limits, API keys, host names, and domains to fetch images from.

Keys are read from a file or the environment, never from the command line, and only their SHA-256
is kept in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from paligemma.checkpoints.hub import resolve
from paligemma.errors import OptionError
from paligemma.loading import MINI
from paligemma.server.limits import Limits

KEYS_VARIABLE = "PALIGEMMA_API_KEYS"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")

_MIN_KEY_CHARACTERS = 16
_MAX_KEY_CHARACTERS = 512
_MAX_KEY_FILE_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of the server except the model."""

    limits: Limits = field(default_factory=Limits)
    keys: KeyRing | None = None
    """None: no key is required."""
    hosts: tuple[str, ...] = LOOPBACK_HOSTS
    """Allowed values of the Host header, in lower case and without a port."""
    open_readiness: bool = False
    """Answer /health/ready without a key and for any Host header, for probes."""
    image_domains: tuple[str, ...] = ()
    """Domains that images may be fetched from: "example.com", or "*.example.com" for its
    subdomains. Empty: images are not fetched."""


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


def limits_without_keys(limits: Limits) -> Limits:
    """Limits for a server without keys, where one client may use all of them.

    Clients are then told apart by their address, and all clients of a proxy share one.
    """
    return replace(limits, streams_per_client=limits.max_running + limits.max_queued)


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> KeyRing | None:
    """The keys in a file (one per line, # for comments) or in $PALIGEMMA_API_KEYS (with commas).

    None if neither is given. Raises OptionError for an unusable file.
    """
    if file is not None:
        try:
            if file.stat().st_size > _MAX_KEY_FILE_BYTES:
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
