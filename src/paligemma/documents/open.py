"""Open a document: by what the file contains, not by its name."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paligemma.documents.apart import CAN_READ_APART, open_apart
from paligemma.documents.image_pages import ImagePage, TiffFile
from paligemma.documents.page import (
    UNNAMED,
    Document,
    DocumentLimits,
    Pages,
    PageSource,
    at_start,
)
from paligemma.documents.pdf import PdfFile
from paligemma.errors import DocumentError, OptionError, counted
from paligemma.processor.image import ImageSource, LoadedImage, load_image

DocumentInput = ImageSource | LoadedImage | Document
"""A path, the bytes of a file, an open file, an image, or a document that is open already."""

PageNumbers = str | Sequence[int]
"""Pages counted from 1: "1-3,7,9-" or [1, 2, 3]."""

_PDF = re.compile(rb"[\s\S]{0,1023}?%PDF-")  # readers accept up to 1 kB of anything before it
_TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")


def open_document(
    source: DocumentInput,
    *,
    password: str | None = None,
    pages: PageNumbers | None = None,
    limits: DocumentLimits = DocumentLimits(),  # noqa: B008 - immutable
) -> Document:
    """Open a PDF file, a TIFF file or an image, from a path, bytes, an open file or a PIL image.

    PDF files need `pip install "paligemma[docs]"`. With `pages`, only these are there, in the
    file's order. A document that is open already is returned as it is, and stays open when the
    returned one is closed.

    Raises DocumentError for a file that is missing, empty, damaged, encrypted without its password
    or beyond the limits, and ImageError for images as `load_image` does.

    >>> with open_document("scan.tiff") as document:
    ...     print(len(document.pages))
    12
    """
    if isinstance(source, Document):
        document = replace(source, owns_source=False)
        return document if pages is None else _limited(document, pages, limits)
    document = _opened(source, password, limits, open_apart if CAN_READ_APART else PdfFile)
    try:
        return _limited(document, pages, limits)
    except Exception:
        document.close()
        raise


def open_here(
    source: ImageSource | LoadedImage, password: str | None, limits: DocumentLimits
) -> Document:
    """As `open_document`, in a process that was started to read this document."""
    return _opened(source, password, limits, PdfFile)


def document_of(source: PageSource, name: str, limits: DocumentLimits) -> Document:
    """All pages of a source."""
    pages = Pages(source, name, range(1, source.num_pages + 1), limits)
    return Document(name=name, num_pages=source.num_pages, pages=pages, source=source)


def _opened(
    source: ImageSource | LoadedImage,
    password: str | None,
    limits: DocumentLimits,
    read_pdf: Callable[[bytes | Path, str, str | None, DocumentLimits], PageSource],
) -> Document:
    data, name = _contents(source, limits)
    if data is not None and is_pdf(first := _first_bytes(data)):
        return document_of(read_pdf(data, name, password, limits), name, limits)
    if data is not None and _TIFF.match(first):
        return document_of(TiffFile(data, name, limits), name, limits)
    image = load_image(source if data is None else data, strict=limits.strict)
    return document_of(ImagePage(image), name or image.name, limits)


def is_pdf(first_bytes: bytes) -> bool:
    """Whether a file that begins like this is a PDF file."""
    return _PDF.match(first_bytes[:1024]) is not None


def is_document(first_bytes: bytes) -> bool:
    """Whether a file that begins like this may have pages: PDF and TIFF."""
    return is_pdf(first_bytes) or _TIFF.match(first_bytes) is not None


def page_numbers(pages: PageNumbers, num_pages: int) -> list[int]:
    """The pages meant by "1-3,7,9-" or [1, 2], in ascending order, each once.

    Raises OptionError for pages that do not exist, and for anything that is no such list.

    >>> page_numbers("2,4-", 5)
    [2, 4, 5]
    """
    numbers: set[int] = set()
    for part in pages.split(",") if isinstance(pages, str) else map(str, pages):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:(-)\s*(\d{0,9})\s*)?", part, re.ASCII)
        if match is None:
            raise OptionError(
                f"The pages are {pages!r}; expected numbers and ranges, such as 1-3,7,9-."
            )
        first = int(match[1])
        last = first if match[2] is None else int(match[3]) if match[3] else num_pages
        if not 1 <= first <= last <= num_pages:
            raise OptionError(
                f"The pages are {pages!r}, and the document has {counted(num_pages, 'page')}, "
                "which count from 1."
            )
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def _limited(document: Document, pages: PageNumbers | None, limits: DocumentLimits) -> Document:
    """The document with these pages alone. Raises DocumentError for more than the limit."""
    if document.num_pages < 1:
        raise DocumentError(f"{at_start(document.name)} has no pages.")
    if pages is not None:
        numbers = page_numbers(pages, document.num_pages)
        source = document.source
        document = replace(document, pages=Pages(source, document.name, numbers, limits))
    if len(document.pages) > limits.max_pages:
        raise DocumentError(
            f"{at_start(document.name)} has {counted(len(document.pages), 'page')}; the limit is "
            f"{limits.max_pages}. Choose some of them with the option pages, such as "
            f"1-{limits.max_pages}, or raise the limit."
        )
    return document


def _contents(source: Any, limits: DocumentLimits) -> tuple[bytes | Path | None, str]:
    """A file's bytes or path, with its name; None for what is an image already, or no file."""
    if isinstance(source, LoadedImage):
        return None, source.name
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        _check_size(len(data), "The document", limits)
        return data, UNNAMED
    if isinstance(source, str | os.PathLike) and not re.match(r"\w[\w+.-]+:", os.fsdecode(source)):
        return _path(Path(os.fsdecode(source)).expanduser(), limits)
    if hasattr(source, "read"):
        if getattr(source, "seekable", lambda: False)():
            source.seek(0)
        data = source.read(limits.max_file_bytes + 1)
        if not isinstance(data, bytes):
            raise DocumentError('The open file is a text file. Open it in binary mode, "rb".')
        _check_size(len(data), "The document", limits)
        return data, Path(str(getattr(source, "name", UNNAMED))).name
    return None, ""  # a PIL image, an array, an address: as `load_image` says


def _path(path: Path, limits: DocumentLimits) -> tuple[Path, str]:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DocumentError(f"The file {str(path)!r} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DocumentError(f"The file {str(path)!r} cannot be opened: {reason}.") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise DocumentError(f"{str(path)!r} is {kind}. Pass the path of a file.")
    _check_size(status.st_size, repr(path.name), limits)
    return path, path.name


def _check_size(num_bytes: int, name: str, limits: DocumentLimits) -> None:
    if not num_bytes:
        raise DocumentError(f"{name} is empty (0 bytes).")
    if num_bytes > limits.max_file_bytes:
        raise DocumentError(
            f"{name} is larger than {limits.max_file_bytes // 2**20} MiB, which is the limit."
        )


def _first_bytes(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data[:1024]
    try:
        with data.open("rb") as file:
            return file.read(1024)
    except OSError as error:
        raise DocumentError(f"{data.name!r} cannot be opened: {error.strerror}.") from error
