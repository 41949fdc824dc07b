"""PDF files, read by pdfium: pages as images, the text layer, attachments.

pdfium is not safe to use from several threads, so every call is made under one lock of the process,
which is one that reads documents alone, where the system has such (`apart.py`).
Scripts never run: the builds of pypdfium2 have no JavaScript engine, and no action of a document is
triggered here.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from paligemma.documents.direction import direction_of, word_as_read
from paligemma.documents.geometry import (
    Box,
    Turn,
    add_turns,
    is_turned,
    turn_box,
    turn_by_direction,
)
from paligemma.documents.page import Attachment, DocumentLimits, Word, at_start
from paligemma.errors import DocumentError, MissingExtraError

_PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD
_MAX_ATTACHMENT_BYTES = 64 * 2**20
_MAX_FIELDS = 5_000  # of a page
_MAX_FIELD_BYTES = 64 * 2**10
_PASSWORD_FIELD = 1 << 13  # of a text field's flags (ISO 32000-1, table 228)
_LINE_END_HYPHENS = (0x2, 0xFFFE)  # what pdfium reports for a hyphen that divides a word
_X_HEIGHT_LETTERS = frozenset("acemnorsuvwxzаеосмптивкшгαεικνορστυω")
_LETTER_GAP = 1.0
"""The widest gap between two letters of a word, in the longer side of a letter's box."""
_TOUCHING = 0.1
"""The widest gap between letters that are one word whatever pdfium says, in their height."""
_TALL_TO_X_HEIGHT = 0.72
"""The x-height of a usual typeface, as a share of the height of its capitals and digits."""

_lock = threading.RLock()
_retired: deque[Any] = deque()  # documents that nobody refers to, to be closed under the lock


@contextmanager
def pdfium_lock() -> Iterator[Any]:
    """The raw API of pdfium, for this thread alone. Raises MissingExtraError."""
    try:
        import pypdfium2.raw as raw
    except ImportError:
        raise MissingExtraError("pypdfium2", "docs", "Reading PDF files") from None
    with _lock:
        while _retired:
            _retired.popleft().close()
        yield raw


@dataclass(frozen=True)
class _Geometry:
    """How pdfium's coordinates of a page, which start at the lower left, become those of the page
    as it is displayed."""

    bounds: tuple[float, float, float, float]  # left, bottom, right, top
    rotation: int  # quarter turns, clockwise

    def box(self, left: float, bottom: float, right: float, top: float) -> Box:
        x0, y0, x1, y1 = self.bounds
        match self.rotation:
            case 0:
                return left - x0, y1 - top, right - x0, y1 - bottom
            case 1:
                return bottom - y0, left - x0, top - y0, right - x0
            case 2:
                return x1 - right, bottom - y0, x1 - left, top - y0
            case _:
                return y1 - top, x1 - right, y1 - bottom, x1 - left


class PdfFile:
    """The pages of one PDF file, as displayed (with /Rotate applied)."""

    unit: Literal["pt"] = "pt"

    def __init__(
        self, data: bytes | Path, name: str, password: str | None, limits: DocumentLimits
    ) -> None:
        self._name = name
        self._limits = limits
        self._page: tuple[int, Any] | None = None  # the one page that is open
        self._is_closed = False
        with pdfium_lock():
            import pypdfium2

            try:
                self._pdf = pypdfium2.PdfDocument(data, password=password)
                self._pdf.init_forms()
            except pypdfium2.PdfiumError as error:
                raise _open_error(name, getattr(error, "err_code", None), password) from error
            except OSError as error:
                raise DocumentError(
                    f"{at_start(name)} cannot be opened: {error.strerror}."
                ) from error
            # pypdfium2 would close it wherever the garbage collector runs, without the lock.
            weakref.finalize(self, _retired.append, self._pdf)
            self.num_pages = len(self._pdf)

    def close(self) -> None:
        if not self._is_closed:
            with pdfium_lock() as raw:
                self._leave_page(raw)
                self._pdf.close()
                self._is_closed = True

    def size_wh(self, index: int) -> tuple[float, float]:
        with pdfium_lock() as raw:
            page = self._open_page(raw, index)
            size_wh = raw.FPDF_GetPageWidthF(page), raw.FPDF_GetPageHeightF(page)
        if not all(math.isfinite(side) and side > 0 for side in size_wh):
            raise DocumentError(f"Page {index + 1} of {self._name} has no area.")
        return size_wh

    def render(self, index: int, box_xyxy: Box, size_wh: tuple[int, int]) -> Image.Image:
        """Part of the page as displayed, at this size."""
        width, height = size_wh
        page_wh = self.size_wh(index)
        x0, y0, x1, y1 = box_xyxy
        scale_x, scale_y = width / (x1 - x0), height / (y1 - y0)
        area = (
            round(-x0 * scale_x),
            round(-y0 * scale_y),
            max(1, round(page_wh[0] * scale_x)),
            max(1, round(page_wh[1] * scale_y)),
        )
        if max(map(abs, area)) >= 2**30:
            raise DocumentError(
                f"The part {_shown(box_xyxy)} of page {index + 1} of {self._name} is too small to "
                "be shown. Choose a larger part."
            )
        with pdfium_lock() as raw:
            page = self._open_page(raw, index)
            bitmap = raw.FPDFBitmap_Create(width, height, 0)
            if not bitmap:
                raise DocumentError(
                    f"There is no memory to show page {index + 1} of {self._name} at "
                    f"{width} x {height} pixels."
                )
            try:
                raw.FPDFBitmap_FillRect(bitmap, 0, 0, width, height, 0xFFFFFFFF)
                self._draw(raw, page, bitmap, area, index)
                stride = raw.FPDFBitmap_GetStride(bitmap)
                pointer = raw.FPDFBitmap_GetBuffer(bitmap)
                pixels = ctypes.string_at(pointer, stride * height)
            finally:
                raw.FPDFBitmap_Destroy(bitmap)
        return Image.frombuffer("RGB", size_wh, pixels, "raw", "BGRX", stride, 1).copy()

    def _draw(
        self, raw: Any, page: Any, bitmap: Any, area: tuple[int, int, int, int], index: int
    ) -> None:
        deadline = time.monotonic() + self._limits.max_seconds_per_page
        pause = raw.IFSDK_PAUSE(version=1)
        pause.NeedToPauseNow = type(pause.NeedToPauseNow)(lambda _: time.monotonic() > deadline)
        flags = raw.FPDF_ANNOT | raw.FPDF_RENDER_LIMITEDIMAGECACHE
        status = raw.FPDF_RenderPageBitmap_Start(bitmap, page, *area, 0, flags, pause)
        raw.FPDF_RenderPage_Close(page)
        if status == raw.FPDF_RENDER_TOBECONTINUED:
            raise self._took_too_long(index)
        if status != raw.FPDF_RENDER_DONE:
            raise self._damaged(index)
        if self._pdf.formenv:
            raw.FPDF_FFLDraw(self._pdf.formenv.raw, bitmap, page, *area, 0, flags)

    def words(self, index: int) -> tuple[tuple[Word, ...], Turn]:
        """The text layer and what was filled into form fields, and how far the page as displayed
        must be turned to be read."""
        with pdfium_lock() as raw:
            page = self._open_page(raw, index)
            geometry = self._geometry(raw, page)
            text = raw.FPDFText_LoadPage(page)
            if not text:
                raise self._damaged(index)
            try:
                letters = list(self._letters(raw, text, geometry, index))
            finally:
                raw.FPDFText_ClosePage(text)
            turn = turn_by_direction([each.direction for each in letters])
            in_fields = tuple(self._field_words(raw, page, geometry, turn, index))
        size_wh = self.size_wh(index)
        words = (*_words_of(letters), *in_fields)
        return tuple(word for word in words if _is_on_page(word, size_wh)), turn

    def _field_words(
        self, raw: Any, page: Any, geometry: _Geometry, turn: Turn, index: int
    ) -> Iterator[Word]:
        """What was filled into the form fields of a page that must be turned to be read, or typed
        onto it as a comment: each word with the box of its field."""
        form = self._pdf.formenv.raw if self._pdf.formenv else None
        rect = raw.FS_RECTF()
        deadline = time.monotonic() + self._limits.max_seconds_per_page
        for number in range(min(raw.FPDFPage_GetAnnotCount(page), _MAX_FIELDS)):
            if time.monotonic() > deadline:
                raise self._took_too_long(index)
            field = raw.FPDFPage_GetAnnot(page, number)
            try:
                text = _field_text(raw, form, field)
                if text and raw.FPDFAnnot_GetRect(field, rect):
                    box = geometry.box(
                        *(min(rect.left, rect.right), min(rect.bottom, rect.top)),
                        *(max(rect.left, rect.right), max(rect.bottom, rect.top)),
                    )
                    for word in text.split():
                        yield Word(word, box, turn=turn, is_filled_in=True)
            finally:
                raw.FPDFPage_CloseAnnot(field)

    def _letters(self, raw: Any, text: Any, geometry: _Geometry, index: int) -> Iterator[_Letter]:
        deadline = time.monotonic() + self._limits.max_seconds_per_page
        rect, matrix = raw.FS_RECTF(), raw.FS_MATRIX()
        left, right, bottom, top = (ctypes.c_double() for _ in range(4))
        high = 0
        for number in range(raw.FPDFText_CountChars(text)):
            if number % 1024 == 0 and time.monotonic() > deadline:
                raise self._took_too_long(index)
            code = raw.FPDFText_GetUnicode(text, number)
            if 0xD800 <= code < 0xDC00:  # the first half of a letter
                high = code
                continue
            if 0xDC00 <= code < 0xE000 and high:
                code = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00)
            high = 0
            letter = "-" if code in _LINE_END_HYPHENS else chr(code) if 0 < code < 0x110000 else ""
            if not letter or letter.isspace() or not letter.isprintable():
                is_guessed = raw.FPDFText_IsGenerated(text, number) == 1
                yield replace(_SPACE, is_guessed=is_guessed)
                continue
            raw.FPDFText_GetLooseCharBox(text, number, rect)
            raw.FPDFText_GetCharBox(text, number, left, right, bottom, top)
            raw.FPDFText_GetMatrix(text, number, matrix)
            yield _Letter(
                letter,
                geometry.box(rect.left, rect.bottom, rect.right, rect.top),
                _angle(matrix.a, matrix.b, geometry.rotation),
                _x_height(letter, matrix, top.value - bottom.value, right.value - left.value),
            )

    def _geometry(self, raw: Any, page: Any) -> _Geometry:
        rect = raw.FS_RECTF()
        raw.FPDF_GetPageBoundingBox(page, rect)
        bounds = (rect.left, rect.bottom, rect.right, rect.top)
        return _Geometry(bounds, raw.FPDFPage_GetRotation(page) % 4)

    def attachments(self) -> tuple[Attachment, ...]:
        with pdfium_lock() as raw:
            count = min(raw.FPDFDoc_GetAttachmentCount(self._pdf.raw), self._limits.max_pages)
            names = [self._attachment_name(raw, number) for number in range(count)]
        return tuple(
            Attachment(name=name, read=_Reader(self, number)) for number, name in enumerate(names)
        )

    def _attachment_name(self, raw: Any, number: int) -> str:
        attachment = raw.FPDFDoc_GetAttachment(self._pdf.raw, number)
        length = raw.FPDFAttachment_GetName(attachment, None, 0)
        buffer = ctypes.create_string_buffer(max(2, length))
        pointer = ctypes.cast(buffer, ctypes.POINTER(raw.FPDF_WCHAR))
        raw.FPDFAttachment_GetName(attachment, pointer, length)
        return buffer.raw[: max(0, length - 2)].decode("utf-16-le", errors="replace")

    def read_attachment(self, number: int) -> bytes:
        with pdfium_lock() as raw:
            attachment = raw.FPDFDoc_GetAttachment(self._pdf.raw, number)
            length = ctypes.c_ulong()
            raw.FPDFAttachment_GetFile(attachment, None, 0, length)
            if length.value > _MAX_ATTACHMENT_BYTES:
                raise DocumentError(
                    f"An attachment of {self._name} is larger than "
                    f"{_MAX_ATTACHMENT_BYTES // 2**20} MiB."
                )
            buffer = ctypes.create_string_buffer(max(1, length.value))
            if not raw.FPDFAttachment_GetFile(attachment, buffer, length.value, length):
                raise DocumentError(f"An attachment of {self._name} is damaged.")
        return buffer.raw[: length.value]

    @property
    def document(self) -> Any:
        """pdfium's handle. For use under the lock."""
        return self._pdf.raw

    @contextmanager
    def page(self, raw: Any, index: int) -> Iterator[Any]:
        """pdfium's handle of a page, to change it. For use under the lock."""
        try:
            yield self._open_page(raw, index)
        finally:
            self._leave_page(raw)

    def _open_page(self, raw: Any, index: int) -> Any:
        if self._is_closed:
            raise DocumentError(
                f"{at_start(self._name)} is closed. Use its pages inside of the `with` block that "
                "opened it."
            )
        if self._page is not None and self._page[0] == index:
            return self._page[1]
        self._leave_page(raw)
        page = raw.FPDF_LoadPage(self._pdf.raw, index)
        if not page:
            raise self._damaged(index)
        if self._pdf.formenv:
            raw.FORM_OnAfterLoadPage(page, self._pdf.formenv.raw)
        self._page = index, page
        return page

    def _leave_page(self, raw: Any) -> None:
        if self._page is not None:
            if self._pdf.formenv:
                raw.FORM_OnBeforeClosePage(self._page[1], self._pdf.formenv.raw)
            raw.FPDF_ClosePage(self._page[1])
            self._page = None

    def _damaged(self, index: int) -> DocumentError:
        return DocumentError(
            f"Page {index + 1} of {self._name} is damaged. Get an intact copy, or leave it out "
            "with the option for pages."
        )

    def _took_too_long(self, index: int) -> DocumentError:
        return DocumentError(
            f"Page {index + 1} of {self._name} took longer than "
            f"{self._limits.max_seconds_per_page:g} s to read, which is the limit."
        )


@dataclass(frozen=True)
class _Reader:
    """Reads an attachment of a file."""

    file: PdfFile
    number: int

    def __call__(self) -> bytes:
        return self.file.read_attachment(self.number)


@dataclass(frozen=True)
class _Letter:
    """A letter as displayed; white space has no text."""

    text: str
    box: Box
    angle: float | None
    """Degrees, counterclockwise, by which its line rises."""
    x_height: float
    is_guessed: bool = False
    """Whether pdfium has put it in, between what it takes for words and lines."""

    @property
    def direction(self) -> Turn | None:
        """The turn that would make it upright."""
        return None if self.angle is None else add_turns(90 * round(self.angle / 90), 0)


_SPACE = _Letter("", (0.0, 0.0, 0.0, 0.0), None, 0.0)


def page_matrix(raw: Any, page: Any, *, rotated: bool) -> tuple[float, ...]:
    """From the page as displayed, with the origin at the top left, to pdfium's coordinates.

    Without `rotated`, as displayed without the page's /Rotate.
    """
    rect = raw.FS_RECTF()
    raw.FPDF_GetPageBoundingBox(page, rect)
    rotation = raw.FPDFPage_GetRotation(page) % 4 if rotated else 0
    return (
        (1.0, 0.0, 0.0, -1.0, rect.left, rect.top),
        (0.0, 1.0, 1.0, 0.0, rect.left, rect.bottom),
        (-1.0, 0.0, 0.0, 1.0, rect.right, rect.bottom),
        (0.0, -1.0, -1.0, 0.0, rect.right, rect.top),
    )[rotation]


def _field_text(raw: Any, form: Any, field: Any) -> str:
    """The text that a form field or a typed comment shows; "" for other annotations, hidden ones
    and passwords."""
    if raw.FPDFAnnot_GetFlags(field) & (
        raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW | raw.FPDF_ANNOT_FLAG_INVISIBLE
    ):
        return ""

    def value(buffer: Any, length: int) -> int:
        if is_comment:
            return int(raw.FPDFAnnot_GetStringValue(field, b"Contents", buffer, length))
        return int(raw.FPDFAnnot_GetFormFieldValue(form, field, buffer, length))

    subtype = raw.FPDFAnnot_GetSubtype(field)
    is_comment = subtype == raw.FPDF_ANNOT_FREETEXT
    is_field = subtype == raw.FPDF_ANNOT_WIDGET and form is not None
    if not is_comment and not (is_field and _shows_text(raw, form, field)):
        return ""
    length = min(value(None, 0), _MAX_FIELD_BYTES)
    buffer = ctypes.create_string_buffer(max(2, length))
    if value(ctypes.cast(buffer, ctypes.POINTER(raw.FPDF_WCHAR)), length) > length:
        return ""
    text = buffer.raw[: max(0, length - 2)].decode("utf-16-le", errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _shows_text(raw: Any, form: Any, field: Any) -> bool:
    """Whether a form field has a text that is displayed, unlike a button or a password."""
    if raw.FPDFAnnot_GetFormFieldFlags(form, field) & _PASSWORD_FIELD:
        return False
    return raw.FPDFAnnot_GetFormFieldType(form, field) in (
        raw.FPDF_FORMFIELD_TEXTFIELD, raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX
    )  # fmt: skip


def _angle(a: float, b: float, rotation: int) -> float | None:
    """By how many degrees a line rises as displayed whose baseline runs along (a, b)."""
    if not (math.isfinite(a) and math.isfinite(b)) or (a == 0 and b == 0):
        return None
    # Counterclockwise on the page, less the page's own rotation, which is clockwise.
    return math.degrees(math.atan2(b, a)) - 90 * rotation


def _x_height(letter: str, matrix: Any, height: float, width: float) -> float:
    if abs(matrix.b) > abs(matrix.a):  # runs upwards or downwards
        height = width
    if letter in _X_HEIGHT_LETTERS:
        return height
    if letter.isdigit() or letter.isupper():
        return height * _TALL_TO_X_HEIGHT
    return height * _TALL_TO_X_HEIGHT if ord(letter) > 0x2E80 else 0.0


def _words_of(letters: Sequence[_Letter]) -> tuple[Word, ...]:
    """Letters up to white space, or up to a gap or a change of line that has none.

    pdfium puts white space where it takes letters for lines of their own, as in text that runs
    upwards and in files that browsers print: it ends a word only where there is a gap.
    """
    words: list[Word] = []
    current: list[_Letter] = []
    is_guess = False
    for letter in (*letters, _SPACE):
        if current and letter.is_guessed:
            is_guess = True
            continue
        goes_on = _touches if is_guess else _continues
        if current and not (letter.text and goes_on(current[-1], letter)):
            words.append(_word(current))
            current = []
        if letter.text:
            current.append(letter)
        is_guess = False
    return tuple(words)


def _continues(last: _Letter, letter: _Letter) -> bool:
    """Whether a letter stands next to the last one, in whatever direction the text runs."""
    if last.angle is not None and letter.angle is not None and is_turned(last.angle - letter.angle):
        return False
    gap_x = max(letter.box[0] - last.box[2], last.box[0] - letter.box[2])
    gap_y = max(letter.box[1] - last.box[3], last.box[1] - letter.box[3])
    size = max(last.box[2] - last.box[0], last.box[3] - last.box[1])
    return max(gap_x, gap_y) <= _LETTER_GAP * size


def _touches(last: _Letter, letter: _Letter) -> bool:
    """Whether a letter goes on in the line of the last one, without a gap."""
    if not _continues(last, letter):
        return False
    first, second = (turn_box(each.box, (0.0, 0.0), last.direction or 0) for each in (last, letter))
    height = min(first[3] - first[1], second[3] - second[1])
    shared = min(first[3], second[3]) - max(first[1], second[1])
    gap = max(second[0] - first[2], first[0] - second[2])
    return shared > 0.5 * height and abs(gap) <= _TOUCHING * height


def _word(letters: Sequence[_Letter]) -> Word:
    boxes = [each.box for each in letters]
    text = "".join(each.text for each in letters)
    turn = turn_by_direction([each.direction for each in letters])
    angle = next((each.angle for each in letters if each.angle is not None), 0.0)
    heights = sorted(each.x_height for each in letters if each.x_height > 0)
    return Word(
        text=word_as_read(text) if _is_reversed(letters, turn) else text,
        box_xyxy=(
            min(box[0] for box in boxes),
            min(box[1] for box in boxes),
            max(box[2] for box in boxes),
            max(box[3] for box in boxes),
        ),
        x_height=heights[len(heights) // 2] if heights else None,
        turn=turn,
        slant=angle - 90 * round(angle / 90),
    )


def _is_reversed(letters: Sequence[_Letter], turn: Turn) -> bool:
    """Whether letters that run from right to left are given from left to right, as pdfium does
    where it takes them for the other direction."""
    along = [
        turn_box(each.box, (0.0, 0.0), turn)[0]
        for each in letters
        if direction_of(each.text) == "R"
    ]
    steps = [second - first for first, second in itertools.pairwise(along)]
    return sum(step > 0 for step in steps) > sum(step < 0 for step in steps)


def _open_error(name: str, code: int | None, password: str | None) -> DocumentError:
    if code == _PASSWORD_ERROR:
        if password:
            return DocumentError(f"The password of {name} is wrong. Check --password.")
        return DocumentError(f"{at_start(name)} needs a password: --password, or password=...")
    return DocumentError(
        f"{at_start(name)} is no PDF file that can be read: it is damaged or cut short. Get an "
        "intact copy."
    )


def _is_on_page(word: Word, size_wh: tuple[float, float]) -> bool:
    """Whether any of a word is displayed: the page may be cut from a larger sheet."""
    x0, y0, x1, y1 = word.box_xyxy
    return x1 > 0 and y1 > 0 and x0 < size_wh[0] and y0 < size_wh[1]


def _shown(box: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"
