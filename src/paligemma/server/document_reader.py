"""Documents of strangers: pages that are read by a process of their own, one per document.

    ReaderPool.open(data) -> Document whose source is RemotePages -> ReaderProcess -> pages

`Document` and `Page` are those of `paligemma.documents`, so reading and extraction do not notice.
A process that crashes, hangs or needs too much memory ends one request, with an error of the
client's; so does whatever it answers that does not have the expected form.
"""

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import dataclass

from paligemma.documents.open import PageNumbers, document_of, open_document
from paligemma.documents.page import Document, DocumentLimits
from paligemma.documents.remote import CRASHED, MODULE, RemotePages
from paligemma.errors import DocumentError, OptionError, UnavailableError, counted
from paligemma.sandbox.process import FileMessages, ReaderProcess
from paligemma.server.settings import Limits

_NICENESS = 5  # the model goes first
NAME = "the document"  # for errors: the name that a client gives is text of the client

DOCUMENTS = FileMessages(
    error=DocumentError,
    crashed=CRASHED,
    slow="A page of the document took too long to read. Leave it out with `pages`, or print the "
    "document to a new PDF file.",
    memory="A page of the document needs more memory than this server gives it. Scale it down "
    "first.",
    damaged="The document cannot be read: it is damaged. Get an intact copy.",
    rewording={
        "--password, or password=...": "the field `password`",
        "Check --password.": "Check the field `password`.",
    },
)


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

    def take(self, module: str = MODULE, messages: FileMessages = DOCUMENTS) -> ReaderProcess:
        """A process without a file. Raises UnavailableError if none can be started."""
        with self._lock:
            process = self._spare.pop() if self._spare and module == MODULE else None
        if process is not None and not process.is_running:  # after a long time without documents
            process.close()
            process = None
        process = process or self._start(module, messages)
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
                "strict": True,
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
        document = document_of(source, NAME, page_limits)
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

    def _start(self, module: str = MODULE, messages: FileMessages = DOCUMENTS) -> ReaderProcess:
        limits = self._limits
        try:
            return ReaderProcess(
                module,
                messages,
                memory_bytes=limits.document_memory_bytes,
                cpu_seconds=math.ceil(limits.document_seconds),
                niceness=_NICENESS,
            )
        except OSError:
            raise UnavailableError("No process to read documents could be started.") from None


def _end_all(processes: list[ReaderProcess]) -> None:
    while processes:
        processes.pop().close()
