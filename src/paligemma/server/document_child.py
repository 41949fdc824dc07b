"""A process that reads one document or video of a stranger: the program, and how to talk to it.

Readers of PDF, TIFF and video files are large programs in C, and some files crash or exhaust them.
In a process of its own that is harmless: it has limits on memory, CPU time and open files, can
write no files, and inherits no keys, sockets or other documents. It gets the file through its
standard input, so that nothing is written to a disk, and ends with it.

    python -m paligemma.server.document_child '{"video": false, "memory_bytes": ..., ...}'

Both directions are frames: the lengths of two parts, then JSON, then bytes. Neither side unpickles
anything.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from types import SimpleNamespace
from typing import IO, Any

LENGTHS = struct.Struct(">II")
MAX_WORDS = 100_000
"""Words per page; more are not sent."""
MAX_ATTACHMENTS = 1000
_MAX_PAGES = 10_000
_WATCH_SECONDS = 1.0
_IDLE_SECONDS = 600.0  # without a document, after which the process ends by itself
_MAX_MESSAGE = 500  # characters
_OPEN_FILES = 64  # the fonts of the system


def frame(header: object, payload: bytes = b"") -> bytes:
    """JSON and bytes as they are sent.

    >>> frame({"ok": 1}, b"ab")
    b'\\x00\\x00\\x00\\x08\\x00\\x00\\x00\\x02{"ok":1}ab'
    """
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return LENGTHS.pack(len(text), len(payload)) + text + payload


def main(options: str) -> None:
    """Read documents for the process at the other end of the standard input and output."""
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what a library prints is no frame
    limits = json.loads(options)
    reader: _Reader | _VideoReader = _VideoReader() if limits.pop("video") else _Reader()
    _limit(**limits)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    _send(target, frame({"ready": True}))
    if not select.select([source], [], [], _IDLE_SECONDS)[0]:
        return
    while (request := _receive(source)) is not None:
        _send(target, reader.answer(*request))


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    """Everything is imported by now: what follows needs little."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))
    os.nice(5)


def _end_with_parent(parent: int) -> None:
    """A server that was killed must not leave a process behind that still reads a page."""
    while os.getppid() == parent:
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


class _File(io.BytesIO):
    name = "the document"  # what errors call it


def _answer(call: Callable[[], bytes], errors: tuple[type[Exception], ...]) -> bytes:
    """What the call returns, or its error as a frame."""
    try:
        return call()
    except MemoryError:
        error, message = "memory", ""
    except errors as problem:
        error, message = "input", str(problem)
    except Exception:
        error, message = "damaged", ""
    return frame({"error": error, "message": message[:_MAX_MESSAGE]})


class _VideoReader:
    """Answers requests about one video."""

    def __init__(self) -> None:
        # Imported before the limits are set.
        with suppress(ImportError):  # reported when a video is opened
            import av  # noqa: F401

        from paligemma.errors import InputError, MissingExtraError
        from paligemma.video import clip, decoding, orientation, windows  # noqa: F401

        self._opening = clip
        self._limits_type = decoding.ClipLimits
        self._reduced = windows.reduced
        self._errors = (InputError, MissingExtraError)
        self._clip: Any = None
        self._frames: Any = None

    def answer(self, request: dict[str, Any], payload: bytes) -> bytes:
        return _answer(lambda: self._call(request, payload), self._errors)

    def _call(self, request: dict[str, Any], payload: bytes) -> bytes:
        call = request["call"]
        if call == "open":
            self._clip = self._opening.open_clip(payload, self._limits_type(**request["limits"]))
            return frame({"info": asdict(self._clip.info), **self._state()})
        if call == "frames":
            if self._frames is not None:
                self._frames.close()
            self._frames = self._clip.frames(**request["which"])
            return frame({})
        found = next(self._frames, None)
        if found is None:
            return frame({"is_end": True, **self._state()})
        image = self._reduced(found.image, request["resolution"])
        about = {"index": found.index, "time_s": found.time_s, "size_wh": image.size}
        return frame({**about, **self._state()}, image.tobytes())

    def _state(self) -> dict[str, Any]:
        return {"problems": self._clip.problems, "is_damaged": self._clip.is_damaged}


class _Reader:
    """Answers requests about one document."""

    def __init__(self) -> None:
        # Imported before the limits are set.
        import PIL.TiffImagePlugin  # noqa: F401

        from paligemma.documents import open as opening
        from paligemma.documents import page
        from paligemma.errors import InputError, MissingExtraError

        with suppress(ImportError):  # without the extra "docs": TIFF files and images alone
            import pypdfium2  # noqa: F401
        self._opening = opening
        self._limits_type = page.DocumentLimits
        self._errors = (InputError, MissingExtraError)
        self._document: Any = None

    def answer(self, request: dict[str, Any], payload: bytes) -> bytes:
        return _answer(lambda: self._answer(request, payload), self._errors)

    def _answer(self, request: dict[str, Any], payload: bytes) -> bytes:
        call = request["call"]
        if call == "open":
            return self._open(request, payload)
        source = self._document.source
        if call == "attachments":
            names = [each.name for each in source.attachments()[:MAX_ATTACHMENTS]]
            return frame({"names": names})
        if call == "searchable":
            return frame({}, self._searchable(json.loads(payload)))
        index = request["index"]
        if call == "attachment":
            return frame({}, source.attachments()[index].data())
        if call == "size":
            return frame({"size_wh": source.size_wh(index)})
        if call == "words":
            return self._words(index)
        image = source.render(index, tuple(request["box_xyxy"]), tuple(request["size_wh"]))
        return frame({"size_wh": image.size}, image.tobytes())

    def _open(self, request: dict[str, Any], payload: bytes) -> bytes:
        # How many pages may be read is checked by the other process, which knows which are meant.
        limits = self._limits_type(strict=True, max_pages=_MAX_PAGES, **request["limits"])
        self._document = self._opening.open_document(
            _File(payload), password=request["password"], limits=limits
        )
        source = self._document.source
        return frame({"num_pages": source.num_pages, "unit": source.unit})

    def _searchable(self, pages: list[dict[str, Any]]) -> bytes:
        from paligemma.documents.searchable import to_searchable_pdf

        texts = [
            SimpleNamespace(
                **{**page, "lines": [SimpleNamespace(**line) for line in page["lines"]]}
            )
            for page in pages
        ]
        # Not as the classes of the text: they need the model's package.
        return to_searchable_pdf(self._document, SimpleNamespace(pages=texts))  # type: ignore[arg-type]

    def _words(self, index: int) -> bytes:
        words, turn = self._document.source.words(index)
        rows = [
            [word.text, *word.box_xyxy, word.x_height, word.turn, word.is_filled_in]
            for word in words[:MAX_WORDS]
        ]
        return frame({"words": rows, "turn": turn})


if __name__ == "__main__":
    main(sys.argv[1])
