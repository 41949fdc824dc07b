"""What an operator decides: limits, keys, host names, where pictures may be fetched from.

Keys come from a file or the environment, never from the command line, and only their SHA-256
stays in memory. Knows no HTTP.
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
    """Everything about the server that is not the model."""

    limits: Limits = field(default_factory=Limits)
    keys: KeyRing | None = None
    """None: no key is asked for."""
    hosts: tuple[str, ...] = LOOPBACK_HOSTS
    """What may stand in the Host header, in small letters, without a port."""
    open_readiness: bool = False
    """Tell whether it is ready without a key and under any name, as probes ask."""
    image_domains: tuple[str, ...] = ()
    """Where pictures may be fetched from: "example.com", or "*.example.com" for what is under it.
    Empty: nothing is fetched."""


class KeyRing:
    """Some API keys, of which only the digests are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises OptionError for a key that is too short, or no visible ASCII."""
        self._digests: list[bytes] = []
        for number, key in enumerate(keys, start=1):
            if not (key.isascii() and key.isprintable()) or " " in key:
                raise OptionError(f"API key {number} holds a space or is not visible ASCII.")
            if not _MIN_KEY_CHARACTERS <= len(key) <= _MAX_KEY_CHARACTERS:
                raise OptionError(
                    f"API key {number} has {len(key)} characters; {_MIN_KEY_CHARACTERS} to "
                    f"{_MAX_KEY_CHARACTERS} are expected. Make one with: openssl rand -hex 24"
                )
            self._digests.append(hashlib.sha256(key.encode()).digest())
        if not self._digests:
            raise OptionError("There are no API keys. Give one a line, or leave the option out.")

    def name_of(self, key: bytes) -> str | None:
        """A short name for the owner of this key, fit for logs; None when it is not one of ours.

        All digests are compared, each in constant time: how long it takes says nothing.
        """
        digest = hashlib.sha256(key).digest()
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return f"key-{digest.hex()[:8]}" if any(found) else None


def served_name(model: str) -> str:
    """What clients call a model by default: of a folder its last part alone.

    A path is this machine's own. Raises CheckpointError or HubError for what is no model's name.
    """
    if model != MINI and isinstance(folder := resolve(model), Path):
        return Path(os.path.abspath(folder)).name or "model"
    return model


def limits_without_keys(limits: Limits) -> Limits:
    """One client may have all there is: without keys it is an address, and a proxy has one."""
    return replace(limits, streams_per_client=limits.max_running + limits.max_queued)


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> KeyRing | None:
    """The keys of a file (one a line, # begins a remark) or of $PALIGEMMA_API_KEYS (by commas).

    None where neither is given. Raises OptionError for a file that cannot be used.
    """
    if file is not None:
        try:
            if file.stat().st_size > _MAX_KEY_FILE_BYTES:
                raise OptionError(f"The key file {str(file)!r} is too large to be one.")
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(
                f"The key file {str(file)!r} cannot be read. Give a text file with a key a line."
            ) from error
        return KeyRing(key for line in lines if (key := line.split("#", 1)[0].strip()))
    if keys := environment.get(KEYS_VARIABLE):
        return KeyRing(key.strip() for key in keys.split(",") if key.strip())
    return None
