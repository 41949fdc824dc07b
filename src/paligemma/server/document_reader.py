"""Documents of strangers: pages that are read by a process of their own, one per document.

    ReaderPool.open(data) -> Document whose source is RemotePages -> ReaderProcess -> pages

`Document` and `Page` are those of `paligemma.documents`, so reading and extraction do not notice.
A process that crashes, hangs or needs too much memory ends one request, with an error of the
client's; so does whatever it answers that does not have the expected form.
"""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from PIL import Image

from paligemma.documents.geometry import Box, Turn
from paligemma.documents.open import PageNumbers, open_document
from paligemma.documents.page import Attachment, Document, DocumentLimits, Pages, Word
from paligemma.documents.read import DocumentText
from paligemma.errors import (
    CancelledError,
    DocumentError,
    ImageError,
    OptionError,
    PaliGemmaError,
    UnavailableError,
    VideoError,
    counted,
)
from paligemma.server.document_child import LENGTHS, MAX_ATTACHMENTS, MAX_WORDS, frame
from paligemma.server.settings import Limits

Parameters = ParamSpec("Parameters")
ValueT = TypeVar("ValueT")

NAME = "the document"  # for errors: the name that a client gives is text of the client

_START_SECONDS = 60.0
_EXTRA_SECONDS = 5.0  # for a call, beyond the limit that the process itself keeps
_MAX_HEADER_BYTES = 32 * 2**20
_MAX_ATTACHMENT_BYTES = 64 * 2**20
_MAX_FILE_BYTES = 128 * 2**20
_MAX_PAGES = 10_000_000
_PIECE_BYTES = 2**20
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

_CRASHED = (
    "The document cannot be read: it crashes the program that reads it. Get an intact copy, or "
    "print it to a new PDF file."
)


@dataclass(frozen=True, kw_only=True)
class FileMessages:
    """The error for files of one kind, and what it says when a process could not read one."""

    error: type[ImageError]
    crashed: str
    slow: str
    memory: str
    damaged: str


DOCUMENTS = FileMessages(
    error=DocumentError,
    crashed=_CRASHED,
    slow="A page of the document took too long to read. Leave it out with `pages`, or print the "
    "document to a new PDF file.",
    memory="A page of the document needs more memory than this server gives it. Scale it down "
    "first.",
    damaged="The document cannot be read: it is damaged. Get an intact copy.",
)


class ReaderProcess:
    """One process, for one file. Calls come from one thread; `end` may come from any."""

    def __init__(self, limits: Limits, messages: FileMessages = DOCUMENTS) -> None:
        self._messages = messages
        options = {
            "memory_bytes": limits.document_memory_bytes,
            "cpu_seconds": math.ceil(limits.document_seconds),
            "video": messages.error is VideoError,
        }
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",  # or each thread would reserve memory
        }
        module = "paligemma.server.document_child"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # which may quote the document
            bufsize=0,
            env=environment,
            cwd="/",
            start_new_session=True,  # a signal of the terminal is for the server alone
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
            raise UnavailableError("No process to read documents could be started.") from None
        self._has_started = bool(header.get("ready"))

    def call(
        self, request: dict[str, object], payload: bytes = b"", *, most: int = 0, seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        """The answer: JSON, and bytes, at most so many.

        Raises DocumentError or VideoError for whatever goes wrong, CancelledError after `cancel`.
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
        if "error" in header:
            raise _error(header, self._messages)
        return header, data

    def cancel(self) -> None:
        """Make the call that runs, and any later one, raise CancelledError."""
        self._is_cancelled = True
        self._process.kill()

    def end(self) -> None:
        """End the process at once. Does nothing when it has ended."""
        self._process.kill()
        self._process.wait()

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


def _error(header: dict[str, Any], messages: FileMessages) -> ImageError:
    """The error that a process reports. Its messages name neither files nor values."""
    if header["error"] == "memory":
        return messages.error(messages.memory)
    message = str(header.get("message", ""))
    if header["error"] != "input" or not message:
        message = messages.damaged
    message = message.replace("--password, or password=...", "the field `password`")
    message = message.replace("Check --password.", "Check the field `password`.")
    return messages.error(message[:1].upper() + message[1:])


def _checked(
    method: Callable[Concatenate[RemotePages, Parameters], ValueT],
) -> Callable[Concatenate[RemotePages, Parameters], ValueT]:
    """An answer of another form than expected is an error of the document."""

    def checked(
        self: RemotePages, /, *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> ValueT:
        try:
            return method(self, *arguments, **options)
        except PaliGemmaError:
            raise
        except (LookupError, TypeError, ValueError, OverflowError):
            raise DocumentError(_CRASHED) from None

    return checked


class RemotePages:
    """A `PageSource` whose file is in another process."""

    def __init__(self, process: ReaderProcess, header: dict[str, Any], seconds: float) -> None:
        self._process = process
        self._seconds = seconds
        self._sizes: dict[int, tuple[float, float]] = {}
        if header.get("unit") not in ("pt", "px"):
            raise DocumentError(_CRASHED)
        self.unit: Literal["pt", "px"] = header["unit"]
        self.num_pages = _whole(header.get("num_pages"), 1, _MAX_PAGES)

    @_checked
    def size_wh(self, index: int) -> tuple[float, float]:
        if index not in self._sizes:
            header, _ = self._call("size", index)
            width, height = map(_number, header.get("size_wh", ()))
            if width <= 0 or height <= 0:
                raise DocumentError(_CRASHED)
            self._sizes[index] = width, height
        return self._sizes[index]

    def render(self, index: int, box_xyxy: Box, size_wh: tuple[int, int]) -> Image.Image:
        width, height = size_wh
        num_bytes = 3 * width * height
        _, data = self._call("render", index, most=num_bytes, box_xyxy=box_xyxy, size_wh=size_wh)
        if len(data) != num_bytes:
            raise DocumentError(_CRASHED)
        return Image.frombytes("RGB", size_wh, data)

    @_checked
    def words(self, index: int) -> tuple[tuple[Word, ...], Turn]:
        header, _ = self._call("words", index)
        rows = header.get("words", ())[:MAX_WORDS]
        return tuple(_word(*row) for row in rows), _turn(header.get("turn"))

    @_checked
    def attachments(self) -> tuple[Attachment, ...]:
        header, _ = self._process.call({"call": "attachments"}, seconds=self._seconds)
        names = header.get("names", ())[:MAX_ATTACHMENTS]
        return tuple(
            Attachment(name=str(name), read=partial(self._attachment, number))
            for number, name in enumerate(names)
        )

    def _attachment(self, number: int) -> bytes:
        return self._call("attachment", number, most=_MAX_ATTACHMENT_BYTES)[1]

    def searchable_pdf(self, text: DocumentText) -> bytes:
        """As `to_searchable_pdf`."""
        pages = json.dumps([page.to_dict() for page in text.pages], allow_nan=False).encode()
        _, data = self._process.call(
            {"call": "searchable"},
            pages,
            most=_MAX_FILE_BYTES,
            seconds=self._seconds * max(1, len(text.pages)),
        )
        return data

    def close(self) -> None:
        self._process.close()

    def _call(
        self, call: str, index: int, *, most: int = 0, **request: object
    ) -> tuple[dict[str, Any], bytes]:
        request |= {"call": call, "index": index}
        return self._process.call(request, most=most, seconds=self._seconds)


def _word(text: object, *about: object) -> Word:
    *box, x_height, turn, is_filled_in = about
    x0, y0, x1, y1 = map(_number, box)
    if not isinstance(text, str) or not isinstance(is_filled_in, bool):
        raise TypeError
    text.encode()  # a lone surrogate is a ValueError
    return Word(
        text,
        (x0, y0, x1, y1),
        x_height=None if x_height is None else _number(x_height),
        turn=_turn(turn),
        is_filled_in=is_filled_in,
    )


def _turn(value: object) -> Turn:
    if value not in (0, 90, 180, 270) or isinstance(value, bool):
        raise TypeError
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _whole(value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise DocumentError(_CRASHED)
    return value


@dataclass(frozen=True, kw_only=True)
class DocumentFile:
    """A document that a client sent."""

    data: bytes
    password: str | None = None
    pages: PageNumbers | None = None


class ReaderPool:
    """Starts a process for each document. After the first, one is kept ready for the next."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._spare: list[ReaderProcess] = []
        weakref.finalize(self, _end_all, self._spare)

    def take(self, messages: FileMessages = DOCUMENTS) -> ReaderProcess:
        """A process without a file. Raises UnavailableError if none can be started."""
        with self._lock:
            process = self._spare.pop() if self._spare and messages is DOCUMENTS else None
        if process is not None and not process.is_running:  # after a long time without documents
            process.close()
            process = None
        process = process or self._start(messages)
        try:
            process.wait_until_started()
        except BaseException:
            process.close()
            raise
        return process

    def open(self, process: ReaderProcess, file: DocumentFile) -> Document:
        """The document, read by this process. Raises DocumentError and OptionError."""
        limits = self._limits
        seconds = limits.document_page_seconds
        request: dict[str, object] = {
            "call": "open",
            "password": file.password,
            "limits": {
                "max_pixels": limits.max_pixels,
                "max_seconds_per_page": seconds,
                "max_file_bytes": limits.max_document_bytes,
            },
        }
        header, _ = process.call(request, file.data, seconds=seconds)
        source = RemotePages(process, header, seconds)
        page_limits = DocumentLimits(
            max_pages=limits.max_document_pages,
            max_pixels=limits.max_pixels,
            max_seconds_per_page=seconds,
            strict=True,
        )
        document = Document(
            name=NAME,
            num_pages=source.num_pages,
            pages=Pages(source, NAME, range(1, source.num_pages + 1), page_limits),
            source=source,
        )
        try:
            return open_document(document, pages=file.pages or "1-", limits=page_limits)
        except OptionError:
            number = counted(source.num_pages, "page")
            raise OptionError(
                f"The document has {number}, and not those that were asked for. Pages count from "
                "1: 1-3,7,9-."
            ) from None

    def keep_ready(self) -> None:
        """Start a process for the next document, unless one waits already."""
        with self._lock:
            if not self._spare:
                self._spare.append(self._start())

    def close(self) -> None:
        """End the process that waits."""
        with self._lock:
            _end_all(self._spare)

    def _start(self, messages: FileMessages = DOCUMENTS) -> ReaderProcess:
        try:
            return ReaderProcess(self._limits, messages)
        except OSError:
            raise UnavailableError("No process to read documents could be started.") from None


def _end_all(processes: list[ReaderProcess]) -> None:
    while processes:
        processes.pop().close()
