"""Searchable PDF files: the pages as they were, with the text that was read, invisible, above them.

The text is written in a font of which every character is a box, half as wide as high, that is not
drawn. It is stretched to the line's box, so that a viewer marks the words where they stand.
"""

from __future__ import annotations

import ctypes
import functools
import io
import re
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from PIL import Image

from paligemma.documents.direction import text_on_page
from paligemma.documents.geometry import Box, Turn, add_turns, turn_box
from paligemma.documents.image_pages import ImagePage, TiffFile
from paligemma.documents.open import DocumentInput, open_document
from paligemma.documents.page import (
    Document,
    DocumentLimits,
    Page,
    PageSource,
    has_text_layer,
)
from paligemma.documents.pdf import PdfFile, page_matrix, pdfium_lock
from paligemma.documents.remote import RemotePages
from paligemma.errors import DocumentError

if TYPE_CHECKING:
    from paligemma.documents.read import DocumentText, PageText

_INVISIBLE = 3  # FPDF_TEXTRENDERMODE_INVISIBLE
_ADVANCE = 0.5  # width of every character, in its height
_IMAGE_DPI = 200
"""Of images that do not say how large they were on paper."""
_LIKELY_DPI = (90, 1200)
"""Of scans and faxes. Cameras and programs write 72 where nothing is known."""
_JPEG_QUALITY = 90


def unsearchable(pages: Iterable[Page]) -> list[Page]:
    """The pages whose text is to be read, so that it can be found: those without a text layer."""

    def is_searchable(page: Page) -> bool:
        try:
            return page.has_text_layer
        except DocumentError:  # reported when it is read
            return False

    return [page for page in pages if not is_searchable(page)]


def to_searchable_pdf(
    source: DocumentInput,
    text: DocumentText,
    *,
    password: str | None = None,
    limits: DocumentLimits = DocumentLimits(),  # noqa: B008 - immutable
) -> bytes:
    """The document as a PDF file in which the text that was read can be found and copied.

    The pages of a PDF file stay as they are, and those that have a text layer already get none;
    of images, a page is made of each. Pages that were not read are left out of images, and stay in
    PDF files.
    """
    with open_document(source, password=password, limits=limits) as document:
        if isinstance(document.source, RemotePages):
            return document.source.searchable_pdf(text)
        if isinstance(document.source, PdfFile):
            return _with_text(document.source, text)
        return _of_images(document, text)


def _with_text(file: PdfFile, text: DocumentText) -> bytes:
    with pdfium_lock() as raw:
        font = _font(raw, file.document)
        try:
            for page_text in text.pages:
                if page_text.lines and not has_text_layer(file.words(page_text.page - 1)[0]):
                    with file.page(raw, page_text.page - 1) as page:
                        _add_lines(raw, file.document, font, page, page_text)
            return _saved(raw, file.document)
        finally:
            raw.FPDFFont_Close(font)


def _of_images(document: Document, text: DocumentText) -> bytes:
    with pdfium_lock() as raw:
        target = raw.FPDF_CreateNewDocument()
        font = _font(raw, target)
        try:
            for index, page_text in enumerate(text.pages):
                if not page_text.error:
                    page = document.page(page_text.page)
                    scale = _points_per_pixel(document.source, page_text.page - 1)
                    _add_image_page(raw, target, font, page, page_text, index, scale)
            return _saved(raw, target)
        finally:
            raw.FPDFFont_Close(font)
            raw.FPDF_CloseDocument(target)


def _points_per_pixel(source: PageSource, index: int) -> tuple[float, float]:
    """Across and down: a fax may have twice as many pixels per inch across."""
    found = source.dots_per_inch(index) if isinstance(source, ImagePage | TiffFile) else None
    if found is None or not all(_LIKELY_DPI[0] <= each <= _LIKELY_DPI[1] for each in found):
        found = (_IMAGE_DPI, _IMAGE_DPI)
    return 72 / found[0], 72 / found[1]


def _add_image_page(
    raw: Any,
    target: Any,
    font: Any,
    page: Page,
    page_text: PageText,
    index: int,
    scale: tuple[float, float],
) -> None:
    displayed = page.turn(-page.turned)
    width, height = (round(side) for side in displayed.size_wh)
    while width * height > page.limits.max_pixels:
        width, height = width // 2, height // 2
    image = displayed.render(size_wh=(width, height))
    size = displayed.size_wh[0] * scale[0], displayed.size_wh[1] * scale[1]
    made = raw.FPDFPage_New(target, index, *size)
    try:
        image_object = raw.FPDFPageObj_NewImageObj(target)
        data = _jpeg(image)
        access, keep = _file_access(raw, data)
        if not raw.FPDFImageObj_LoadJpegFileInline(None, 0, image_object, access):
            raise DocumentError(f"{page.name} cannot be written to a PDF file.")
        del keep
        raw.FPDFImageObj_SetMatrix(image_object, size[0], 0, 0, size[1], 0, 0)
        raw.FPDFPage_InsertObject(made, image_object)
        raw.FPDFPage_SetRotation(made, page_text.turned // 90)
        _add_lines(raw, target, font, made, page_text, scale=scale)
    finally:
        raw.FPDF_ClosePage(made)


def _add_lines(
    raw: Any,
    document: Any,
    font: Any,
    page: Any,
    text: PageText,
    *,
    scale: tuple[float, float] | None = None,
) -> None:
    """Add the lines to a page and write its contents. `scale`: of a new page, that of an image.

    Text of a page that was turned to be read runs along its own direction.
    """
    back = add_turns(-text.turned, 0)
    for line in text.lines:
        codes = _codes(line.text)
        if not codes:
            continue
        displayed = turn_box(line.box_xyxy, text.size_wh, back)
        if scale is not None:
            x0, y0, x1, y1 = displayed
            displayed = x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1]
        matrix = _text_matrix(
            raw, page, displayed, text.turned, len(codes), is_new=scale is not None
        )
        text_object = raw.FPDFPageObj_CreateTextObj(document, font, 1.0)
        array = (ctypes.c_uint32 * len(codes))(*codes)
        raw.FPDFText_SetCharcodes(text_object, array, len(codes))
        raw.FPDFTextObj_SetTextRenderMode(text_object, _INVISIBLE)
        raw.FPDFPageObj_SetMatrix(text_object, raw.FS_MATRIX(*matrix))
        raw.FPDFPage_InsertObject(page, text_object)
    if not raw.FPDFPage_GenerateContent(page):
        raise DocumentError(f"Page {text.page} cannot be written to a PDF file.")


def _text_matrix(
    raw: Any, page: Any, box: Box, turned: Turn, num_codes: int, *, is_new: bool
) -> tuple[float, ...]:
    """From the space of the text, one high and half as wide per character, to the page's own.

    `box` is on the page as displayed, which has the origin at the top left.
    """
    x0, y0, x1, y1 = box
    # Lower left corner of the upright text, its direction and its up, on the displayed page.
    origin, along, up = {
        0: ((x0, y1), (x1 - x0, 0.0), (0.0, y0 - y1)),
        90: ((x1, y1), (0.0, y0 - y1), (x0 - x1, 0.0)),
        180: ((x1, y0), (x0 - x1, 0.0), (0.0, y1 - y0)),
        270: ((x0, y0), (0.0, y1 - y0), (x1 - x0, 0.0)),
    }[turned]
    length = _ADVANCE * num_codes
    a, b, c, d, e, f = page_matrix(raw, page, rotated=not is_new)

    def moved(vector: tuple[float, float], factor: float) -> tuple[float, float]:
        return (
            (a * vector[0] + c * vector[1]) * factor,
            (b * vector[0] + d * vector[1]) * factor,
        )

    start = moved(origin, 1.0)
    return (*moved(along, 1 / length), *moved(up, 1.0), start[0] + e, start[1] + f)


def _codes(text: str) -> list[int]:
    """The text from left to right as UTF-16, which is how the font numbers its characters."""
    clean = text_on_page(re.sub(r"\s+", " ", text).strip())
    data = clean.encode("utf-16-be", errors="replace")
    return list(struct.unpack(f">{len(data) // 2}H", data))


def _font(raw: Any, document: Any) -> Any:
    data, to_unicode, glyphs = font_of_boxes(), _to_unicode(), bytes(2 * 0x10000)
    font = raw.FPDFText_LoadCidType2Font(
        document,
        (ctypes.c_uint8 * len(data)).from_buffer_copy(data),
        len(data),
        to_unicode,
        (ctypes.c_uint8 * len(glyphs)).from_buffer_copy(glyphs),
        len(glyphs),
    )
    if not font:
        raise DocumentError("The text cannot be written to a PDF file: its font is not accepted.")
    return font


@functools.cache
def _to_unicode() -> bytes:
    """Every character code is a code unit of UTF-16. A range may not cross a first byte."""
    ranges = [f"<{high:02X}00> <{high:02X}FF> <{high:02X}00>" for high in range(256)]
    blocks = []
    for start in range(0, 256, 100):
        part = ranges[start : start + 100]
        blocks.append(f"{len(part)} beginbfrange\n" + "\n".join(part) + "\nendbfrange\n")
    return (
        "/CIDInit /ProcSet findresource begin\n12 dict begin\nbegincmap\n"
        "/CIDSystemInfo << /Registry (Adobe) /Ordering (UCS) /Supplement 0 >> def\n"
        "/CMapName /Adobe-Identity-UCS def\n/CMapType 2 def\n"
        "1 begincodespacerange\n<0000> <FFFF>\nendcodespacerange\n"
        + "".join(blocks)
        + "endcmap\nCMapName currentdict /CMap defineresource pop\nend\nend\n"
    ).encode()


@functools.cache
def font_of_boxes() -> bytes:
    """A TrueType font of one glyph, a box half as wide as high.

    An empty glyph would do for most readers; pdfium skips vertical text without extent.
    """
    units = 1000
    width = int(units * _ADVANCE)
    tables = {
        b"OS/2": struct.pack(
            ">HhHHH11h10s4I4sHHHhhhHH",
            *(0, width, 400, 5, 0, *(0,) * 11, bytes(10), *(0,) * 4, b"    ", 0x40, 32, 0xFFFF),
            *(units, 0, 0, units, 0),
        ),
        # One segment: all characters are glyph 0.
        b"cmap": struct.pack(">HHHHI", 0, 1, 3, 1, 12)
        + struct.pack(">7H5H", 4, 24, 0, 2, 2, 0, 0, 0xFFFF, 0, 0xFFFF, 1, 0),
        b"glyf": struct.pack(">hhhhhHH4B", 1, 0, 0, width, units, 3, 0, *(1,) * 4)
        + struct.pack(">8h", 0, width, 0, -width, 0, 0, units, 0)
        + b"\0\0",
        b"head": struct.pack(
            ">IIIIHHqqhhhhHHhhh",
            *(0x10000, 0x10000, 0, 0x5F0F3CF5, 0, units, 0, 0, 0, 0, width, units, 0, 8, 2, 0, 0),
        ),
        b"hhea": struct.pack(
            ">IhhhHhhhhhhhhhhhH", 0x10000, units, 0, 0, width, *(0,) * 3, 1, *(0,) * 7, 1
        ),
        b"hmtx": struct.pack(">Hh", width, 0),
        b"loca": struct.pack(">HH", 0, 18),
        b"maxp": struct.pack(">IH13H", 0x10000, 1, 4, 1, *(0,) * 11),
        b"name": struct.pack(">HHH", 0, 1, 18)
        + struct.pack(">HHHHHH", 3, 1, 0x409, 6, 18, 0)
        + "Glyphless".encode("utf-16-be"),
        b"post": struct.pack(">IIhhIIIII", 0x30000, 0, 0, 0, 1, 0, 0, 0, 0),
    }
    offset = 12 + 16 * len(tables)
    directory, body = [], b""
    for tag, table in sorted(tables.items()):
        padded = table + bytes(-len(table) % 4)
        total = sum(struct.unpack(f">{len(padded) // 4}I", padded)) % 2**32
        directory.append(struct.pack(">4sIII", tag, total, offset + len(body), len(table)))
        body += padded
    header = struct.pack(">IHHHH", 0x10000, len(tables), 128, 3, 16 * len(tables) - 128)
    font = header + b"".join(directory) + body
    checksum = (0xB1B0AFBA - sum(struct.unpack(f">{len(font) // 4}I", font))) % 2**32
    at = font.index(struct.pack(">III", 0x10000, 0x10000, 0)) + 8
    return font[:at] + struct.pack(">I", checksum) + font[at + 4 :]


def _jpeg(image: Image.Image) -> bytes:
    gray = image.convert("L")
    is_gray = image.mode == "RGB" and gray.convert("RGB").tobytes() == image.tobytes()
    file = io.BytesIO()
    (gray if is_gray else image).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _file_access(raw: Any, data: bytes) -> tuple[Any, Any]:
    """What pdfium reads bytes through, and what must live as long."""
    access = raw.FPDF_FILEACCESS()
    access.m_FileLen = len(data)

    def read(_: Any, position: int, buffer: Any, size: int) -> int:
        ctypes.memmove(buffer, data[position : position + size], size)
        return 1

    access.m_GetBlock = type(access.m_GetBlock)(read)
    return access, (read, data)


def _saved(raw: Any, document: Any) -> bytes:
    data = bytearray()
    writer = raw.FPDF_FILEWRITE(version=1)

    def write(_: Any, pointer: Any, size: int) -> int:
        data.extend(ctypes.string_at(pointer, size))
        return 1

    writer.WriteBlock = type(writer.WriteBlock)(write)
    if not raw.FPDF_SaveAsCopy(document, writer, raw.FPDF_NO_INCREMENTAL):
        raise DocumentError("The PDF file cannot be written.")
    return bytes(data)
