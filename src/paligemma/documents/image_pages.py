"""Images and TIFF files of several pages as sources of pages."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image

from paligemma.documents.geometry import Box, Turn
from paligemma.documents.page import Attachment, DocumentLimits, Word, at_start
from paligemma.errors import DocumentError, ImageError
from paligemma.processor.image import LoadedImage, load_image

_LARGEST_PIXELS = 150_000_000


class _Pixels:
    """What pages made of pixels have in common."""

    unit: Literal["px"] = "px"

    def words(self, index: int) -> tuple[tuple[Word, ...], Turn]:
        return (), 0

    def attachments(self) -> tuple[Attachment, ...]:
        return ()


class ImagePage(_Pixels):
    """One image as a document of one page."""

    num_pages = 1

    def __init__(self, image: LoadedImage) -> None:
        self._image = image

    def size_wh(self, index: int) -> tuple[float, float]:
        width, height = self._image.size_wh
        return float(width), float(height)

    def dots_per_inch(self, index: int) -> tuple[float, float] | None:
        return self._image.dots_per_inch

    def render(self, index: int, box_xyxy: Box, size_wh: tuple[int, int]) -> Image.Image:
        return _part(self._image, box_xyxy, size_wh)

    def close(self) -> None: ...


class TiffFile(_Pixels):
    """The pages of a TIFF file. Only the last page used is kept decoded."""

    def __init__(self, data: bytes | Path, name: str, limits: DocumentLimits) -> None:
        from PIL.TiffImagePlugin import TiffImageFile

        self._name = name
        self._limits = limits
        self._decoded: tuple[int, LoadedImage] | None = None
        self._damaged: set[int] = set()
        self._tiff: Any = None
        try:
            self._file: BinaryIO = io.BytesIO(data) if isinstance(data, bytes) else data.open("rb")
        except OSError as error:
            raise DocumentError(f"{at_start(name)} cannot be opened: {error.strerror}.") from error
        try:
            self._tiff = TiffImageFile(self._file)
            self.num_pages = _count_pages(self._file, 100 * limits.max_pages)
        except (MemoryError, RecursionError):
            raise
        except Image.DecompressionBombError as error:
            self._file.close()
            raise DocumentError(
                f"{at_start(name)} has a page that is too large. {_SCALE_DOWN}"
            ) from error
        except Exception as error:  # Pillow raises arbitrary exceptions on damaged files
            self._file.close()
            raise DocumentError(
                f"{at_start(name)} is no TIFF file that can be read: it is damaged or cut short. "
                "Get an intact copy."
            ) from error

    def size_wh(self, index: int) -> tuple[float, float]:
        width, height = self._page(index).size_wh
        return float(width), float(height)

    def dots_per_inch(self, index: int) -> tuple[float, float] | None:
        return self._page(index).dots_per_inch

    def render(self, index: int, box_xyxy: Box, size_wh: tuple[int, int]) -> Image.Image:
        return _part(self._page(index), box_xyxy, size_wh)

    def _page(self, index: int) -> LoadedImage:
        if self._tiff is None:
            raise DocumentError(
                f"{at_start(self._name)} is closed. Use its pages inside of the `with` block that "
                "opened it."
            )
        if self._decoded is None or self._decoded[0] != index:
            self._decoded = None  # frees its memory first
            self._decoded = index, self._decode(index)
        return self._decoded[1]

    def _decode(self, index: int) -> LoadedImage:
        subject = f"Page {index + 1} of {self._name}"
        damaged = f"{subject} is damaged or cut short. Get an intact copy."
        if index in self._damaged:
            # Pillow would go on with the pixels that it has, which are black.
            raise DocumentError(damaged)
        try:
            self._tiff.seek(index)
            width, height = self._tiff.size
            if width * height > min(_LARGEST_PIXELS, 3 * self._limits.max_pixels):
                raise DocumentError(f"{subject} is {width} x {height}. {_SCALE_DOWN}")
            return load_image(self._tiff)
        except (MemoryError, RecursionError, DocumentError):
            raise
        except Image.DecompressionBombError as error:
            raise DocumentError(f"{subject} is too large. {_SCALE_DOWN}") from error
        except Exception as error:  # decoders raise arbitrary exceptions on damaged data
            if isinstance(error, ImageError) and error.__cause__ is None:
                raise DocumentError(f"{subject} cannot be read. {error}") from error
            self._damaged.add(index)
            raise DocumentError(damaged) from error

    def close(self) -> None:
        self._tiff = self._decoded = None
        self._file.close()


def _count_pages(file: BinaryIO, most: int) -> int:
    """As far as page after page can be found: their list may be cut, or run in a circle.

    Reads no more than where each page says that the next one is, which takes a microsecond; Pillow
    reads all that a page says of itself.
    """
    file.seek(0)
    first = file.read(16)
    order = "<" if first[:2] == b"II" else ">"
    is_big = struct.unpack(order + "H", first[2:4])[0] == 43  # BigTIFF
    offset = struct.Struct(order + ("Q" if is_big else "I"))
    counter = struct.Struct(order + ("Q" if is_big else "H"))
    (place,) = offset.unpack_from(first, 8 if is_big else 4)
    seen: set[int] = set()
    while 0 < place < 2**62 and place not in seen and len(seen) <= most:
        file.seek(place)
        head = file.read(counter.size)
        if len(head) < counter.size or (num_entries := counter.unpack(head)[0]) > 0xFFFF:
            break
        seen.add(place)
        file.seek(place + counter.size + (20 if is_big else 12) * num_entries)
        after = file.read(offset.size)
        place = offset.unpack(after)[0] if len(after) == offset.size else 0
    return len(seen)


def num_tiff_pages(data: bytes | Path) -> int:
    """The pages of a TIFF file, at most 2; 0 for one that cannot be read."""
    try:
        file = TiffFile(data, "", DocumentLimits())
    except ImageError:
        return 0
    file.close()
    return min(file.num_pages, 2)


_SCALE_DOWN = "Scale it down first."


def _part(image: LoadedImage, box: Box, size_wh: tuple[int, int]) -> Image.Image:
    """Part of an image, resized with antialiasing. The box is in pixels of its full size."""
    factor_x = image.rgb.width / image.size_wh[0]
    factor_y = image.rgb.height / image.size_wh[1]
    scaled = (box[0] * factor_x, box[1] * factor_y, box[2] * factor_x, box[3] * factor_y)
    if scaled == (0, 0, *size_wh) and image.rgb.size == size_wh:
        return image.rgb.copy()
    try:
        return image.rgb.resize(size_wh, Image.Resampling.BICUBIC, box=scaled)
    except ValueError as error:
        raise ImageError(f"The part {box} of {image.name} cannot be cut out.") from error
