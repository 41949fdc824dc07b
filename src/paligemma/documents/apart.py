"""PDF files, read in processes of their own, which have limits on memory and time.

In some PDF files a drawing draws itself, twice, forty levels deep: pdfium takes all memory for it,
and ends the process when there is none left. It cannot be interrupted, and does not show what the
file says, so that another process is the one way to be safe from it.

A process reads one file at a time, and is used again for the next one. Which process reads a file
does not matter: any one opens it where it has not done so yet, such as after a page that ended the
last one, in a copy of this process (`os.fork`), or where many files are open at once.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paligemma.documents.page import DocumentLimits, at_start
from paligemma.documents.remote import MODULE, RemotePages
from paligemma.errors import DocumentError, MissingExtraError, UnavailableError
from paligemma.sandbox.process import FileMessages, ReaderProcess

CAN_READ_APART = os.name == "posix" and not getattr(sys, "frozen", False)
"""Elsewhere processes have no such limits, and a program packed into one file (PyInstaller) cannot
start Python: PDF files are read in this process there."""
_MOST_PROCESSES = 4


def open_apart(
    data: bytes | Path, name: str, password: str | None, limits: DocumentLimits
) -> RemotePages:
    """The pages of a PDF file. Raises DocumentError, MissingExtraError and UnavailableError."""
    if importlib.util.find_spec("pypdfium2") is None:
        raise MissingExtraError("pypdfium2", "docs", "Reading PDF files")
    file = _File(data, name, password, limits)
    seconds, most = limits.max_seconds_per_page, 2 * limits.max_file_bytes
    return RemotePages(file, file.open(), seconds, most_file_bytes=most)


class _Process(ReaderProcess):
    """A process, and which file it has open."""

    def __init__(self, memory_bytes: int) -> None:
        size = f"{memory_bytes / 2**30:.3g} GiB of memory"
        advice = "Leave it out with the option for pages, or print it to a new PDF file."
        messages = FileMessages(
            error=DocumentError,
            crashed=f"takes more than {size} to read, or crashes the program that does. {advice}",
            slow=f"took too long to read. {advice}",
            memory=f"A page of the document takes more than {size} to read. {advice}",
            damaged="The document cannot be read: it is damaged. Get an intact copy.",
        )
        super().__init__(MODULE, messages, memory_bytes=memory_bytes)
        self.memory_bytes = memory_bytes
        self.file: object = None


class _Pool:
    """Some processes, of which each reads for one thread at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[_Process] = []  # the one that has waited longest first
        self._num_busy = 0

    @contextmanager
    def process(self, file: object, memory_bytes: int) -> Iterator[_Process]:
        """A process for this thread alone: the one that has the file open, if any."""
        process = self._take(file, memory_bytes)
        try:
            if process is None:
                process = _started(memory_bytes)
            yield process
        finally:
            with self._changed:
                self._num_busy -= 1
                if process is not None and process.is_running:
                    self._idle.append(process)
                elif process is not None:
                    process.close()
                self._changed.notify()

    def _take(self, file: object, memory_bytes: int) -> _Process | None:
        """None where a process has to be started."""
        with self._changed:
            while not self._idle and self._num_busy >= _MOST_PROCESSES:
                self._changed.wait()
            self._num_busy += 1
            is_full = len(self._idle) + self._num_busy > _MOST_PROCESSES
            found = [each for each in self._idle if each.file is file]
            found += [each for each in self._idle if each.file is None or is_full]
            if not found:
                return None
            process = found[0]
            self._idle.remove(process)
        if process.is_running and process.memory_bytes == memory_bytes:
            return process
        process.close()
        return None

    def let_go(self, file: object) -> None:
        """Close a file where it is open."""
        with self._changed:
            held = [each for each in self._idle if each.file is file]
        for process in held:
            with suppress(DocumentError), self.process(file, process.memory_bytes) as process:
                process.file = None
                process.call({"call": "close"}, seconds=1.0)

    def forget(self) -> None:
        """Start anew in a copy of this process, which shares the pipes of the processes."""
        self._changed = threading.Condition()
        for process in self._idle:
            process.forget()
        self._idle = []
        self._num_busy = 0

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _started(memory_bytes: int) -> _Process:
    try:
        process = _Process(memory_bytes)
    except OSError as error:
        raise UnavailableError(
            f"No process to read PDF files could be started: {error.strerror}."
        ) from None
    try:
        process.wait_until_started()
    except BaseException:
        process.close()
        raise
    return process


_pool = _Pool()
atexit.register(_pool.close)
if CAN_READ_APART:
    os.register_at_fork(after_in_child=_pool.forget)


class _File:
    """A file, for whichever process has time to read it."""

    def __init__(
        self, data: bytes | Path, name: str, password: str | None, limits: DocumentLimits
    ) -> None:
        self._name = name
        self._limits = limits
        self._key = object()  # by which processes know it, without keeping it
        self._is_closed = False
        self._failures: dict[object, str] = {}  # of pages that ended a process
        self._request: dict[str, object] = {
            "call": "open",
            "name": name,
            "password": password,
            "limits": asdict(limits),
        }
        self._path: Path | None = None
        self._data = b""
        if isinstance(data, bytes):
            self._data = data
        else:
            self._path = data.resolve()  # /dev/stdin is another file there
            self._request["path"] = str(self._path)
            self._version = _version(self._path)

    def open(self) -> dict[str, Any]:
        """What the file is."""
        return self._answer({}, b"", 0, self._limits.max_seconds_per_page)[0]

    def call(
        self, request: dict[str, object], payload: bytes = b"", *, most: int = 0, seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        """As `ReaderProcess.call`. A page that has ended a process is not tried again."""
        page = request.get("index")
        if self._is_closed:
            raise DocumentError(
                f"{at_start(self._name)} is closed. Use its pages inside of the `with` block that "
                "opened it."
            )
        if page not in self._failures:
            return self._answer(request, payload, most, seconds)
        raise DocumentError(self._failures[page])

    def close(self) -> None:
        self._is_closed = True
        _pool.let_go(self._key)

    def _answer(
        self, request: dict[str, object], payload: bytes, most: int, seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a request, or without one to the opening of the file."""
        with _pool.process(self._key, self._limits.max_memory_bytes) as process:
            try:
                opened: tuple[dict[str, Any], bytes] = {}, b""
                if process.file is not self._key:
                    opened = self._opened(process)
                if not request:
                    return opened
                return process.call(request, payload, most=most, seconds=seconds)
            except DocumentError:
                if process.failure is None:  # what is wrong with the file
                    raise
                page = request.get("index")
                where = at_start(self._name)
                if isinstance(page, int):
                    where = f"Page {page + 1} of {self._name}"
                message = f"{where} {process.failure}"
                if page is not None:
                    self._failures[page] = message
                raise DocumentError(message) from None

    def _opened(self, process: _Process) -> tuple[dict[str, Any], bytes]:
        process.file = None
        if self._path is not None and _version(self._path) != self._version:
            raise DocumentError(f"{at_start(self._name)} was changed while it was read.")
        seconds = self._limits.max_seconds_per_page
        answer = process.call(self._request, self._data, seconds=seconds)
        process.file = self._key
        return answer


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:  # reported when it is opened
        return None
    return status.st_mtime_ns, status.st_size
