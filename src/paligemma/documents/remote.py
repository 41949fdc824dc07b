"""Pages of a document that another process reads.

What it answers is checked: the document may have taken the process over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from PIL import Image

from paligemma.documents.geometry import Box, Turn
from paligemma.documents.page import Attachment, Word
from paligemma.errors import DocumentError, PaliGemmaError

if TYPE_CHECKING:
    from paligemma.documents.read import DocumentText

Parameters = ParamSpec("Parameters")
ValueT = TypeVar("ValueT")

MODULE = "paligemma.documents.child"
"""The program of the process."""
MAX_WORDS = 100_000
"""Of a page."""
MAX_ATTACHMENTS = 1000
_MAX_ATTACHMENT_BYTES = 64 * 2**20
_MAX_PAGES = 10_000_000

CRASHED = (
    "The document cannot be read: it crashes the program that reads it. Get an intact copy, or "
    "print it to a new PDF file."
)


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
            raise DocumentError(CRASHED) from None

    return checked


class Caller(Protocol):
    """Another process that has opened a document."""

    def call(
        self, request: dict[str, object], payload: bytes = b"", *, most: int = 0, seconds: float
    ) -> tuple[dict[str, Any], bytes]: ...
    def close(self) -> None: ...


class RemotePages:
    """A `PageSource` whose file is in another process."""

    def __init__(
        self,
        process: Caller,
        header: dict[str, Any],
        seconds: float,
        *,
        most_file_bytes: int = 128 * 2**20,
    ) -> None:
        """`header`: the answer to its opening. Calls take so many seconds, and a searchable PDF
        file so many bytes, at most."""
        self._process = process
        self._seconds = seconds
        self._most_file_bytes = most_file_bytes
        self._sizes: dict[int, tuple[float, float]] = {}
        if header.get("unit") not in ("pt", "px"):
            raise DocumentError(CRASHED)
        self.unit: Literal["pt", "px"] = header["unit"]
        self.num_pages = _whole(header.get("num_pages"), 0, _MAX_PAGES)

    @_checked
    def size_wh(self, index: int) -> tuple[float, float]:
        if index not in self._sizes:
            header, _ = self._call("size", index)
            width, height = map(_number, header.get("size_wh", ()))
            if width <= 0 or height <= 0:
                raise DocumentError(CRASHED)
            self._sizes[index] = width, height
        return self._sizes[index]

    def render(self, index: int, box_xyxy: Box, size_wh: tuple[int, int]) -> Image.Image:
        width, height = size_wh
        num_bytes = 3 * width * height
        _, data = self._call("render", index, most=num_bytes, box_xyxy=box_xyxy, size_wh=size_wh)
        if len(data) != num_bytes:
            raise DocumentError(CRASHED)
        return Image.frombytes("RGB", size_wh, data)

    @_checked
    def words(self, index: int) -> tuple[tuple[Word, ...], Turn]:
        header, _ = self._call("words", index)
        rows = header.get("words", ())
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
            most=self._most_file_bytes,
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
    *box, x_height, turn, slant, is_filled_in = about
    x0, y0, x1, y1 = map(_number, box)
    if not isinstance(text, str) or not isinstance(is_filled_in, bool):
        raise TypeError
    text.encode()  # a lone surrogate is a ValueError
    return Word(
        text,
        (x0, y0, x1, y1),
        x_height=None if x_height is None else _number(x_height),
        turn=_turn(turn),
        slant=_number(slant),
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
        raise DocumentError(CRASHED)
    return value
