"""The process that reads: it sets its own limits, and answers requests from its standard input."""

from __future__ import annotations

import json
import os
import resource
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Protocol

from paligemma.process_memory import peak_bytes
from paligemma.sandbox.frames import LENGTHS, frame

_WATCH_SECONDS = 0.5
_IDLE_SECONDS = 600.0  # without a file, after which the process ends by itself
_MAX_MESSAGE = 500  # characters
_OPEN_FILES = 64  # the fonts of the system


class FileReader(Protocol):
    """Answers requests about files."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """Whose messages are for the user."""

    def answer(self, request: dict[str, Any], payload: bytes) -> bytes: ...


def serve(make_reader: Callable[[], FileReader], options: str) -> None:
    """Answer the process at the other end of the standard input and output until it has ended.

    `make_reader` imports everything: what follows has limits. `options`: JSON of `_limit`.
    """
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what a library prints is no frame
    reader = make_reader()
    limits = json.loads(options)
    _limit(**limits)
    watched = (os.getppid(), limits["memory_bytes"])
    threading.Thread(target=_watch, args=watched, daemon=True).start()
    _send(target, frame({"ready": True}))
    if not select.select([source], [], [], _IDLE_SECONDS)[0]:
        return
    while (request := _receive(source)) is not None:
        _send(target, _answer(reader, *request))


def _limit(memory_bytes: int, cpu_seconds: int | None, niceness: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    if cpu_seconds is not None:
        limits[resource.RLIMIT_CPU] = cpu_seconds
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS: `_watch` is left
            resource.setrlimit(kind, (most, most))
    os.nice(niceness)


def _watch(parent: int, memory_bytes: int) -> None:
    """End this process with its parent, which must not leave it behind with a page that it still
    reads, and where it has taken more memory than it may although the system did not limit it."""
    while os.getppid() == parent and peak_bytes() <= memory_bytes:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _receive(source: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next request; None when the other process has closed the pipe."""
    lengths = source.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    num_header, num_payload = LENGTHS.unpack(lengths)
    header = source.read(num_header)
    payload = source.read(num_payload)
    if len(header) < num_header or len(payload) < num_payload:
        return None
    return json.loads(header), payload


def _send(target: IO[bytes], data: bytes) -> None:
    target.write(data)
    target.flush()


def _answer(reader: FileReader, request: dict[str, Any], payload: bytes) -> bytes:
    """What the reader answers, or its error as a frame."""
    try:
        return reader.answer(request, payload)
    except MemoryError:
        error, message = "memory", ""
    except reader.errors as problem:
        error, message = "input", str(problem)
    except Exception:
        error, message = "damaged", ""
    return frame({"error": error, "message": message[:_MAX_MESSAGE]})
