"""The process that asks: starts one that reads, and ends it when it takes too long."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paligemma.errors import CancelledError, ImageError, UnavailableError
from paligemma.sandbox.frames import LENGTHS, frame

_START_SECONDS = 60.0
_EXTRA_SECONDS = 5.0  # for a call, beyond the limit that the process itself keeps
_MAX_HEADER_BYTES = 32 * 2**20
_PIECE_BYTES = 2**20
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@dataclass(frozen=True, kw_only=True)
class FileMessages:
    """The error for files of one kind, and what it says when a process could not read one."""

    error: type[ImageError]
    crashed: str
    slow: str
    memory: str
    damaged: str
    rewording: Mapping[str, str] = field(default_factory=dict)
    """What is written otherwise in messages of the process."""

    def of(self, header: Mapping[str, object]) -> ImageError:
        """The error that a process reports."""
        if header["error"] == "memory":
            return self.error(self.memory)
        message = str(header.get("message", ""))
        if header["error"] != "input" or not message:
            return self.error(self.damaged)
        for words, others in self.rewording.items():
            message = message.replace(words, others)
        return self.error(message)


class ReaderProcess:
    """One process, for one file. Calls come from one thread; `end` may come from any."""

    def __init__(
        self,
        module: str,
        messages: FileMessages,
        *,
        memory_bytes: int,
        cpu_seconds: int | None = None,
        niceness: int = 0,
    ) -> None:
        """Run `python -m module`, which calls `serve`. Raises OSError."""
        self._messages = messages
        options = {
            "memory_bytes": memory_bytes,
            "cpu_seconds": cpu_seconds,
            "niceness": niceness,
        }
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",  # or each thread would reserve memory
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # which may quote the document
            bufsize=0,
            env=environment,
            cwd="/",
            start_new_session=True,  # a signal of the terminal is for its parent alone
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        os.set_blocking(self._to.fileno(), False)
        os.set_blocking(self._from.fileno(), False)
        self._lock = threading.Lock()
        self._has_started = False
        self._is_cancelled = False
        self.failure: ImageError | None = None
        """Why the process was ended in the middle of its work."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """False when the process has ended by itself."""
        return self._process.poll() is None

    def wait_until_started(self) -> None:
        """Raises UnavailableError if the process cannot be started."""
        if self._has_started:
            return
        try:
            header, _ = self._receive(time.monotonic() + _START_SECONDS, 0)
        except self._messages.error:
            raise UnavailableError("No process to read files could be started.") from None
        self._has_started = bool(header.get("ready"))

    def call(
        self, request: dict[str, object], payload: bytes = b"", *, most: int = 0, seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        """The answer: JSON, and bytes, at most so many.

        Raises the error of `FileMessages` for whatever goes wrong, CancelledError after `cancel`.
        """
        deadline = time.monotonic() + seconds + _EXTRA_SECONDS
        try:
            with self._lock:
                self._send(frame(request, payload), deadline)
                header, data = self._receive(deadline, most)
        except self._messages.error as error:
            self.end()
            if self._is_cancelled:
                raise CancelledError("The request was cancelled.") from None
            self.failure = self.failure or error
            raise self.failure from None
        except BaseException:  # such as Ctrl-C: what it answers now would be taken for another's
            self.end()
            raise
        if "error" in header:
            raise self._messages.of(header)
        return header, data

    def cancel(self) -> None:
        """Make the call that runs, and any later one, raise CancelledError."""
        self._is_cancelled = True
        self._process.kill()

    def end(self) -> None:
        """End the process at once. Does nothing when it has ended."""
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Leave the process to the one that started it, of which this one is a copy."""
        self._process.returncode = 0
        self._to.close()
        self._from.close()

    def close(self) -> None:
        """End the process and free its pipes."""
        self.end()
        with self._lock:
            self._to.close()
            self._from.close()

    def _send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._to.fileno(), select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._to.fileno(), rest[:_PIECE_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._messages.error(self._messages.crashed) from None

    def _receive(self, deadline: float, most: int) -> tuple[dict[str, Any], bytes]:
        num_header, num_payload = LENGTHS.unpack(self._read(LENGTHS.size, deadline))
        if num_header > _MAX_HEADER_BYTES or num_payload > most:
            raise self._messages.error(self._messages.crashed)
        text = self._read(num_header, deadline)
        payload = self._read(num_payload, deadline)
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            raise self._messages.error(self._messages.crashed) from None
        if not isinstance(header, dict):
            raise self._messages.error(self._messages.crashed)
        return header, payload

    def _read(self, num_bytes: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while num_bytes:
            self._wait(self._from.fileno(), select.POLLIN, deadline)
            try:
                part = os.read(self._from.fileno(), min(num_bytes, _PIECE_BYTES))
            except BlockingIOError:
                continue
            if not part:
                raise self._messages.error(self._messages.crashed)
            parts.append(part)
            num_bytes -= len(part)
        return b"".join(parts)

    def _wait(self, file: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(file, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise self._messages.error(self._messages.slow)
