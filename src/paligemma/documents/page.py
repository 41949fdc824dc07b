"""Documents and their pages, whatever file they come from.

Boxes are in points (1/72 inch) for PDF files and in pixels for images, with the origin at the top
left of the upright page. Pages count from 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, Self, overload

import numpy as np
from PIL import Image

from paligemma.documents.geometry import Box, Turn, add_turns, turn_box, turned_size
from paligemma.documents.ink import (
    InkLine,
    deskew_angle,
    ink_mask,
    lines_of_ink,
    x_height_of_ink,
)
from paligemma.errors import DocumentError, OptionError

Unit = Literal["pt", "px"]

_INK_PIXELS = 1_500_000  # of an image in which print is measured
_BLANK_SIDE = 400  # pixels of an image in which ink is looked for
_LINE_X_HEIGHT = 6.0  # pixels in the image in which lines are looked for
_LINE_PIXELS = 6_000_000  # of that image, at most


@dataclass(frozen=True, kw_only=True)
class DocumentLimits:
    """What a document may take."""

    max_pages: int = 1000
    max_pixels: int = 50_000_000
    """Of one image of a page."""
    max_seconds_per_page: float = 30.0
    max_file_bytes: int = 512 * 2**20
    max_memory_bytes: int = 2 * 2**30
    """Of the process that reads a PDF file."""
    strict: bool = False
    """For files of strangers: of images, only JPEG, PNG, WebP, GIF, BMP and TIFF."""


@dataclass(frozen=True)
class Word:
    """A word of the text layer, or of what was filled into a form field."""

    text: str
    box_xyxy: Box
    x_height: float | None = field(default=None, kw_only=True, compare=False, repr=False)
    """Height of a small letter in page units, where the word has letters that tell."""
    turn: Turn = field(default=0, kw_only=True, compare=False, repr=False)
    """How far to turn it, clockwise, to be upright: 90 where it runs upwards on the page."""
    slant: float = field(default=0.0, kw_only=True, compare=False, repr=False)
    """Degrees, counterclockwise, by which its line rises on the page that it is upright on."""
    is_filled_in: bool = field(default=False, kw_only=True, compare=False, repr=False)
    """Whether it stands in a form field, or in a comment typed onto the page."""


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A file inside a PDF file, such as the XML of an electronic invoice."""

    name: str
    """As the document says: no path, and nothing to write to."""
    read: Callable[[], bytes] = field(repr=False, compare=False)

    def data(self) -> bytes:
        """The contents. Raises DocumentError where they are damaged or larger than 64 MiB."""
        return self.read()


def has_text_layer(words: Iterable[Word]) -> bool:
    """Whether any of the words of a page is printed, and not filled into a form field."""
    return any(not word.is_filled_in for word in words)


UNNAMED = "the document"


def at_start(name: str) -> str:
    """The name of a document as a sentence begins with it."""
    return "The document" if name == UNNAMED else name


class PageSource(Protocol):
    """A file that has pages, as displayed before any turning. Indices count from 0."""

    @property
    def unit(self) -> Unit: ...
    @property
    def num_pages(self) -> int: ...
    def size_wh(self, index: int) -> tuple[float, float]: ...
    def render(self, index: int, box_xyxy: Box, size_wh: tuple[int, int]) -> Image.Image: ...
    def words(self, index: int) -> tuple[tuple[Word, ...], Turn]: ...
    def attachments(self) -> tuple[Attachment, ...]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """A page of a document, upright as far as its text layer tells.

    What is not known yet is read from the file when it is first needed.
    """

    document_name: str
    number: int
    """From 1, in the file."""
    source: PageSource = field(repr=False)
    limits: DocumentLimits = field(default=DocumentLimits(), repr=False)
    turned_by_hand: Turn | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """How errors call the page."""
        return f"page {self.number} of {self.document_name}"

    @property
    def unit(self) -> Unit:
        """pt: points, 1/72 inch. px: pixels of the image."""
        return self.source.unit

    @functools.cached_property
    def turned(self) -> Turn:
        """How far the page as displayed was turned, clockwise, to be upright."""
        return self._text[1] if self.turned_by_hand is None else self.turned_by_hand

    @functools.cached_property
    def size_wh(self) -> tuple[float, float]:
        """Width and height of the upright page, in page units."""
        return turned_size(self.source.size_wh(self.number - 1), self.turned)

    @functools.cached_property
    def words(self) -> tuple[Word, ...]:
        """The text layer, in the order of the file, and what was filled into form fields; ()
        where there is neither."""
        size_wh = self.source.size_wh(self.number - 1)
        return tuple(
            replace(
                word,
                box_xyxy=turn_box(word.box_xyxy, size_wh, self.turned),
                turn=add_turns(word.turn, -self.turned),
            )
            for word in self._text[0]
        )

    @property
    def has_text_layer(self) -> bool:
        """Whether the file says what is printed. Of a scan with form fields it does not."""
        return has_text_layer(self._text[0])

    @functools.cached_property
    def _text(self) -> tuple[tuple[Word, ...], Turn]:
        return self.source.words(self.number - 1)

    def turn(self, degrees: int) -> Page:
        """The page turned further, clockwise. Raises OptionError unless by a quarter turn."""
        if degrees % 90:
            raise OptionError(f"A page can be turned by 90, 180 or 270 degrees, not {degrees}.")
        return replace(self, turned_by_hand=add_turns(self.turned, degrees))

    def render(self, box_xyxy: Box | None = None, *, size_wh: tuple[int, int]) -> Image.Image:
        """The page, or a part of it, as an RGB image of exactly this size.

        Raises DocumentError for a page that is damaged, OptionError for a box without area or an
        image of more pixels than the limit.
        """
        box = self.clamp(box_xyxy) if box_xyxy is not None else (0.0, 0.0, *self.size_wh)
        width, height = size_wh
        if width < 1 or height < 1 or width * height > self.limits.max_pixels:
            raise OptionError(
                f"An image of {width} x {height} pixels was asked for of {self.name}; expected at "
                f"least one pixel and at most {self.limits.max_pixels / 1e6:g} megapixels."
            )
        back = add_turns(-self.turned, 0)
        image = self.source.render(
            self.number - 1,
            turn_box(box, self.size_wh, back),
            (width, height) if back in (0, 180) else (height, width),
        )
        transpose = _TRANSPOSE.get(self.turned)
        return image if transpose is None else image.transpose(transpose)

    def clamp(self, box_xyxy: Box) -> Box:
        """The part of a box that is on the page. Raises OptionError where there is none."""
        width, height = self.size_wh
        x0, y0 = max(0.0, box_xyxy[0]), max(0.0, box_xyxy[1])
        x1, y1 = min(width, box_xyxy[2]), min(height, box_xyxy[3])
        if not (x1 > x0 and y1 > y0):
            raise OptionError(
                f"The box {box_xyxy} has no area on {self.name}, which measures "
                f"{width:g} x {height:g} {self.unit}. Give x1, y1, x2, y2 with x1 < x2 and y1 < y2."
            )
        return x0, y0, x1, y1

    def thumbnail(self, num_pixels: int) -> Image.Image:
        """The whole page in about this many pixels; of an image, never more than it has."""
        width, height = self.size_wh
        scale = (min(num_pixels, self.limits.max_pixels) / (width * height)) ** 0.5
        if self.unit == "px":
            scale = min(scale, 1.0)
        return self.render(size_wh=(max(1, int(width * scale)), max(1, int(height * scale))))

    @functools.cached_property
    def is_blank(self) -> bool:
        """Whether the page has neither text nor ink."""
        if self.words or ink_mask(self.thumbnail(_BLANK_SIDE**2)).any():
            return False
        # Faint print is lost in a small image.
        return not lines_of_ink(self.thumbnail(_INK_PIXELS))

    def print_height(self) -> float | None:
        """The x-height of the page's small print, in page units: from the text layer, else from
        the ink. None where neither tells."""
        return self._print_height

    @functools.cached_property
    def _print_height(self) -> float | None:
        heights = [
            word.x_height for word in self.words if word.x_height for _ in range(len(word.text))
        ]
        if heights:
            # A few letters, such as a footnote's mark, do not decide.
            return float(np.percentile(heights, 10))
        return self._slant_and_ink_height[1]

    @functools.cached_property
    def ink_lines(self) -> tuple[InkLine, ...]:
        """The lines of print that the ink shows, in page units."""
        width, height = self.size_wh
        scale = _LINE_X_HEIGHT / (self.print_height() or 0.006 * min(width, height))
        image = self.thumbnail(max(1, min(_LINE_PIXELS, int(width * height * scale**2))))
        factor_x, factor_y = width / image.width, height / image.height
        return tuple(
            InkLine(
                (
                    line.box[0] * factor_x,
                    line.box[1] * factor_y,
                    line.box[2] * factor_x,
                    line.box[3] * factor_y,
                ),
                line.x_height * factor_y,
            )
            for line in lines_of_ink(image)
        )

    @property
    def slant(self) -> float:
        """Degrees, counterclockwise, by which to rotate the page so that its lines run level.

        Between -5 and 5, by the ink; 0.0 where no slant is seen.
        """
        return self._slant_and_ink_height[0]

    @functools.cached_property
    def _slant_and_ink_height(self) -> tuple[float, float | None]:
        image = self.thumbnail(_INK_PIXELS)
        angle = deskew_angle(image)
        pixels = x_height_of_ink(image, angle)
        return angle, None if pixels is None else pixels * self.size_wh[0] / image.width


_TRANSPOSE = {
    90: Image.Transpose.ROTATE_270,  # which Pillow counts counterclockwise
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


class Pages(Sequence[Page]):
    """The pages of a document, made when they are asked for, so that none is kept."""

    def __init__(
        self, source: PageSource, name: str, numbers: Sequence[int], limits: DocumentLimits
    ) -> None:
        self._source = source
        self._name = name
        self._numbers = numbers
        self._limits = limits

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Page: ...
    @overload
    def __getitem__(self, index: slice) -> Pages: ...
    def __getitem__(self, index: int | slice) -> Page | Pages:
        if isinstance(index, slice):
            return Pages(self._source, self._name, self._numbers[index], self._limits)
        return Page(
            document_name=self._name,
            number=self._numbers[index],
            source=self._source,
            limits=self._limits,
        )

    def __iter__(self) -> Iterator[Page]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """A PDF file, a TIFF file or an image, as a sequence of pages.

    A context manager: leaving it closes the file.

    >>> with open_document("letter.pdf") as document:
    ...     print(document.num_pages, document.pages[0].size_wh)
    2 (595.0, 842.0)
    """

    name: str
    num_pages: int
    """Of the whole file; `pages` may have been limited to some of them."""
    pages: Sequence[Page] = field(repr=False)
    source: PageSource = field(repr=False)
    owns_source: bool = field(default=True, repr=False)

    @functools.cached_property
    def attachments(self) -> tuple[Attachment, ...]:
        """The files inside a PDF file, which are read only where they are asked for."""
        return self.source.attachments()

    def page(self, number: int) -> Page:
        """The page of this number, which counts from 1. Raises DocumentError if there is none."""
        for page in self.pages:
            if page.number == number:
                return page
        raise DocumentError(f"{at_start(self.name)} has no page {number}.")

    def close(self) -> None:
        """Close the file. Its pages cannot be used afterwards."""
        if self.owns_source:
            self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
