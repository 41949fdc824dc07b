"""Load images from files, bytes, PIL images and arrays as RGB, and turn them into pixel values.

How each kind of image is handled:

    orientation (EXIF)   applied; boxes refer to the upright image
    alpha, transparency  composited onto white
    1, L, P, CMYK, YCbCr converted by Pillow
    I;16, I              16-bit gray, divided by 257 (see `arrays.py` for the exceptions)
    16-bit color PNG     the high byte of each channel, as Pillow decodes it
    F                    gray in [0, 1], times 255
    animation, pages     the first one
    color profile (ICC)  ignored, as in the training of the model

The resize equals that of transformers' SiglipImageProcessor.
"""

from __future__ import annotations

import binascii
import importlib
import io
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from paligemma.errors import ImageError, OptionError
from paligemma.processor.arrays import (
    array_to_image,
    integers_to_bytes,
    tensor_to_array,
    unit_to_bytes,
)
from paligemma.processor.fetch import fetch_image_bytes
from paligemma.processor.films import film_format

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 50_000_000
"""Pixels that are kept; larger images are scaled down while they are read."""
MAX_SIDE = 20_000
"""Longest side of an image of a stranger."""
MAX_FILE_BYTES = 64 * 2**20
"""Size of the largest file of a stranger."""
OWN_FILE_BYTES = 512 * 2**20
LARGEST_PIXELS = 250_000_000
"""Pixels of the largest JPEG file that is read; it is scaled down by its decoder."""
_LARGEST_DECODED_PIXELS = 150_000_000
"""The same for images that have to be decoded in full."""
_LARGEST_SIDE = 65_535

if TYPE_CHECKING:
    ImageSource = (
        str
        | os.PathLike[str]
        | bytes
        | bytearray
        | memoryview
        | IO[bytes]
        | Image.Image
        | NDArray[Any]
        | torch.Tensor
    )
else:
    ImageSource = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | NDArray[Any]
Resize = Literal["squash", "pad"]
BoxOrder = Literal["yxyx", "xyxy"]

# The parser is chosen by the file's first bytes and called directly, so no other parser of Pillow
# ever sees the bytes, and Pillow's own global size limit does not apply.
_PARSERS: tuple[tuple[re.Pattern[bytes], type[ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
)
# For one's own files only: signature, name, module and class of the parser. Imported when needed.
_MORE_PARSERS: tuple[tuple[re.Pattern[bytes], str, str, str], ...] = (
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", "PIL.TiffImagePlugin", "TiffImageFile"),
    (
        re.compile(rb".{4}ftyp(?:avi[fs]|.{8,64}avif)", re.DOTALL),
        "AVIF",
        "PIL.AvifImagePlugin",
        "AvifImageFile",
    ),
    (
        re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL),
        "HEIC",
        "pi_heif.as_plugin",
        "HeifImageFile",
    ),
    (re.compile(rb"P[1-6]\s"), "PPM", "PIL.PpmImagePlugin", "PpmImageFile"),
)
_REFUSED_FORMATS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    *((signature, name) for signature, name, _, _ in _MORE_PARSERS),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "EPS"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"SIMPLE"), "FITS"),
    (re.compile(rb"\0\0[\1\2]\0[^\0]"), "ICO"),  # and its number of images: TGA has 0 there
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\s*<"), "SVG or HTML"),
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = tuple(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
_WHITE = (255, 255, 255)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedImage:
    """An upright RGB image. Compared by identity, so that it can be a dict key."""

    rgb: Image.Image
    """At most 50 megapixels: a larger image is scaled down."""
    name: str
    """The file name, the URL, or the kind of object it was loaded from."""
    full_size_wh: tuple[int, int] | None = None
    """The size before scaling down, where that was needed."""
    dots_per_inch: tuple[float, float] | None = None
    """Across and down, as far as the file says; of photos often no more than a default."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels, after applying the orientation, before scaling down."""
        return self.full_size_wh or self.rgb.size


@dataclass(frozen=True, kw_only=True)
class _Rules:
    """What is accepted, and whether it is scaled down."""

    max_pixels: int
    max_decoded_pixels: int
    max_side: int
    max_file_bytes: int
    all_formats: bool
    scales: bool


_OWN = _Rules(
    max_pixels=LARGEST_PIXELS,
    max_decoded_pixels=_LARGEST_DECODED_PIXELS,
    max_side=_LARGEST_SIDE,
    max_file_bytes=OWN_FILE_BYTES,
    all_formats=True,
    scales=True,
)


def _rules(max_pixels: int | None, strict: bool) -> _Rules:
    if max_pixels is None and not strict:
        return _OWN
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    return _Rules(
        max_pixels=limit,
        max_decoded_pixels=limit,
        max_side=MAX_SIDE if strict else _LARGEST_SIDE,
        max_file_bytes=MAX_FILE_BYTES if strict else OWN_FILE_BYTES,
        all_formats=not strict,
        scales=False,
    )


def load_image(
    source: ImageSource | LoadedImage,
    *,
    allow_urls: bool = False,
    max_pixels: int | None = None,
    strict: bool = False,
) -> LoadedImage:
    """Load an image from a path, file, bytes, data URI, PIL image, array, tensor or allowed URL.

    Files of at most 512 MiB: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, PPM, and HEIC with
    `pip install "paligemma[formats]"`; of several pages or frames, the first. Arrays: (H, W),
    (H, W, 1), (H, W, 3) or (H, W, 4), RGB or RGBA, rows from top to bottom; torch tensors also
    (1, H, W) and (3, H, W). Values: uint8, bool, or floats in [0, 1]; other integers are 8-bit
    values if none is above 255, which a warning says, and 16-bit values otherwise.

    An image of more than 50 megapixels is scaled down while it is read; `size_wh` and boxes keep
    the size of the file. JPEG files may have up to 250 megapixels, other images 150. With
    `max_pixels`, larger images are refused instead. A JPEG file that lacks nothing but its end mark
    is read, with a warning.

    `strict` is for files of strangers: only JPEG, PNG, WebP, GIF and BMP, complete, of at most 64
    MiB, 50 megapixels and 20,000 pixels per side. Files from URLs are always held to these formats.

    Raises ImageError for an image that is missing, damaged, truncated, too large, or in an
    unsupported format.

    >>> load_image(np.zeros((2, 3), np.uint8)).size_wh
    (3, 2)
    """
    if isinstance(source, LoadedImage):
        return source
    subject = _subject(source)
    rules = _rules(max_pixels, strict)
    data: bytes | None = None
    if isinstance(source, Image.Image):
        name, image = "PIL image", source
    elif (array := _array_of(source)) is not None:
        name = "tensor" if _is_tensor(source) else "array"
        _check_size(_size_of(array), subject, rules)
        image = array_to_image(array, subject)
    else:
        data, name = _read(source, allow_urls, rules)
        if re.match(r"https?://", name, re.IGNORECASE):
            rules = _rules(max_pixels, True)
        image = _open(data, subject, rules)
    full_size_wh = image.size
    scales = rules.scales and full_size_wh[0] * full_size_wh[1] > MAX_PIXELS
    _check_size(full_size_wh, subject, rules, is_decoded=not isinstance(image, JpegImageFile))
    if scales and isinstance(image, JpegImageFile):
        image.draft(None, _scaled(full_size_wh))
    try:
        image = _decoded(image, data, subject, rules)
        rgb = _to_rgb(image, subject)
        if scales and rgb.size == full_size_wh:
            rgb = rgb.reduce(max(2, round(full_size_wh[0] / _scaled(full_size_wh)[0])))
        # TIFF files are turned while they are decoded, and HEIC files before.
        transpose = _UPRIGHT.get(_orientation(image))
        upright = rgb if transpose is None else rgb.transpose(transpose)
        upright.info.clear()  # else loading the result again would apply the orientation twice
    except (ImageError, MemoryError, RecursionError):
        raise
    except Exception as error:  # decoders raise arbitrary exceptions on damaged data
        if isinstance(source, Image.Image):
            raise ImageError(
                f"{subject} cannot be decoded: its file is damaged, or was closed before it was "
                "read. Open it again, and do not close it before."
            ) from error
        raise _damaged(subject) from error
    dots_per_inch = _dots_per_inch(image)
    if transpose is not None and transpose in _SIDEWAYS:
        full_size_wh = full_size_wh[::-1]
        dots_per_inch = None if dots_per_inch is None else dots_per_inch[::-1]
    return LoadedImage(
        rgb=upright,
        name=name,
        full_size_wh=full_size_wh if scales else None,
        dots_per_inch=dots_per_inch,
    )


def _dots_per_inch(image: Image.Image) -> tuple[float, float] | None:
    try:
        across, down = map(float, image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (across, down) if across > 0 and down > 0 else None


def check_first_bytes(data: bytes, subject: str) -> None:
    """Raise ImageError unless a file that begins like this may be an image that can be read."""
    is_common = any(signature.match(data) for signature, _ in _PARSERS)
    if not is_common and _other_parser(data, subject) is None:
        raise _refused(data, subject, _OWN)


def read_size_wh(source: ImageSource) -> tuple[int, int]:
    """Read the width and height of the upright image, from the header where possible.

    Raises ImageError as `load_image` does, except for damage after the header.
    """
    if isinstance(source, Image.Image) or _array_of(source) is not None:
        return load_image(source).size_wh
    data = _read(source, False, _OWN)[0]
    image = _open(data, _subject(source), _OWN)
    width, height = image.size
    if image.format in ("TIFF", "HEIF"):  # whose parsers turn the size already
        return width, height
    # Reading the orientation of a PNG decodes it, and few PNGs have one.
    may_rotate = not isinstance(image, PngImageFile) or b"eXIf" in data or b"Raw profile" in data
    return (height, width) if may_rotate and _orientation(image) >= 5 else (width, height)


def media_type(data: bytes) -> str:
    """The media type of a stranger's file, by its first bytes.

    Raises ImageError unless it is JPEG, PNG, WebP, GIF or BMP.
    """
    for signature, parser in _PARSERS:
        if signature.match(data):
            return f"image/{(parser.format or '').lower()}"
    raise _refused(data, "The image", _rules(None, True))


def num_pixels(data: bytes) -> int:
    """The pixels of a stranger's file by its header; 0 where it has no header that can be read."""
    try:
        width, height = _open(data, "The image", _rules(None, True)).size
    except ImageError:
        return 0
    return width * height


def _scaled(size_wh: tuple[int, int]) -> tuple[int, int]:
    """The size divided by the smallest power of two that leaves at most 50 megapixels."""
    factor = 2
    while size_wh[0] * size_wh[1] > MAX_PIXELS * factor**2:
        factor *= 2
    return max(1, size_wh[0] // factor), max(1, size_wh[1] // factor)


def _array_of(source: object) -> NDArray[Any] | None:
    """The values of an array, a tensor, or another library's array; None for other sources."""
    if isinstance(source, np.ndarray):
        return source
    if _is_tensor(source):
        return tensor_to_array(source)
    if hasattr(source, "__array__") and not hasattr(source, "read"):
        return np.asarray(source)
    return None


def _is_tensor(source: object) -> bool:
    """Whether this is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _size_of(array: NDArray[Any]) -> tuple[int, int]:
    return (array.shape[1], array.shape[0]) if array.ndim in (2, 3) else (1, 1)


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """How an image of size `source_wh` is fitted to the model's square input, and the inverse.

    `squash` stretches the image to the whole square. `pad` keeps the aspect ratio: the longer side
    fills the square, and white borders of equal size fill the rest.

    >>> t = ImageTransform(source_wh=(640, 480), resolution=224)
    >>> t.box_to_source((0.25, 0.5, 0.75, 1.0))  # y0 x0 y1 x1
    (320.0, 120.0, 640.0, 360.0)
    """

    source_wh: tuple[int, int]
    resolution: int
    resize: Resize = "squash"

    def __post_init__(self) -> None:
        if min(self.source_wh) < 1 or self.resolution < 1:
            raise OptionError(
                f"An image of size {self.source_wh} cannot be resized to a resolution of "
                f"{self.resolution}. All three numbers must be at least 1."
            )
        if self.resize not in ("squash", "pad"):
            raise OptionError(f"resize is {self.resize!r}; it must be 'squash' or 'pad'.")

    @property
    def content_xywh(self) -> tuple[int, int, int, int]:
        """The image's area in the square: left, top, width and height in pixels of the model.

        640 x 480 padded to 224: (0, 28, 224, 168).
        """
        side = self.resolution
        if self.resize == "squash":
            return 0, 0, side, side
        longest = max(self.source_wh)
        width, height = (max(1, round(side * length / longest)) for length in self.source_wh)
        return (side - width) // 2, (side - height) // 2, width, height

    def box_to_source(
        self, box: Sequence[float], *, order: BoxOrder = "yxyx", clamp: bool = True
    ) -> tuple[float, float, float, float]:
        """Map a box in fractions of the square to (x0, y0, x1, y1) in pixels of the source image.

        The result is clamped to the image, so a box inside the white border ends up without area
        at the image's edge. With `clamp=False` a box may extend beyond the image.
        """
        x0, y0, x1, y1 = _reordered(box, order)
        left, top, width, height = self.content_xywh
        source_w, source_h = self.source_wh

        def to_pixel(fraction: float, start: int, length: int, side: int) -> float:
            pixel = (fraction * self.resolution - start) / length * side
            return min(max(pixel, 0.0), float(side)) if clamp else pixel

        return (
            to_pixel(x0, left, width, source_w),
            to_pixel(y0, top, height, source_h),
            to_pixel(x1, left, width, source_w),
            to_pixel(y1, top, height, source_h),
        )

    def box_from_source(
        self, box_xyxy: Sequence[float], *, order: BoxOrder = "yxyx"
    ) -> tuple[float, float, float, float]:
        """Map (x0, y0, x1, y1) in pixels of the source image to fractions of the square."""
        x0, y0, x1, y1 = _reordered(box_xyxy, "xyxy")
        left, top, width, height = self.content_xywh
        source_w, source_h = self.source_wh
        x0, x1 = ((left + x / source_w * width) / self.resolution for x in (x0, x1))
        y0, y1 = ((top + y / source_h * height) / self.resolution for y in (y0, y1))
        return (x0, y0, x1, y1) if order == "xyxy" else (y0, x0, y1, x1)


def resize_to_square(rgb: Image.Image, transform: ImageTransform) -> Image.Image:
    """Resize an RGB image to the model's resolution with PIL's bicubic filter.

    `pad` resizes first and then adds the border, while PaliGemma 2 (arXiv 2412.03555, appendix B)
    pads first. The results differ by less than a pixel, and resizing first needs less memory.
    """
    left, top, width, height = transform.content_xywh
    content = rgb.resize((width, height), Image.Resampling.BICUBIC)
    if transform.resize == "squash":
        return content
    square = Image.new("RGB", (transform.resolution, transform.resolution), _WHITE)
    square.paste(content, (left, top))
    return square


def pixel_array(rgb: Image.Image, transform: ImageTransform) -> NDArray[np.float32]:
    """Turn an RGB image into float32[3, R, R] in [-1, 1]: resize as uint8, then x / 127.5 - 1."""
    pixels = np.asarray(resize_to_square(rgb, transform)).transpose(2, 0, 1)
    values = pixels.astype(np.float32, order="C")
    values /= np.float32(127.5)
    values -= np.float32(1)
    return values


def _read(source: Any, allow_urls: bool, rules: _Rules) -> tuple[bytes, str]:
    """The bytes of a file and its name."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), "bytes"
    if hasattr(source, "read"):
        return _read_open_file(source, rules)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"An image cannot be read from {type(source).__name__}. Pass a path, an open file, the "
            "bytes of a file, a PIL image, a numpy array or a torch tensor."
        )
    text = os.fspath(source)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text.strip():
        raise ImageError("The path of the image is empty. Pass the path of a file.")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.\-]+)://|(data):", text, re.IGNORECASE)
    if scheme is None or not isinstance(source, str):
        path = Path(text)
        return _read_file(path, rules), path.name or text
    kind = (scheme[1] or scheme[2]).lower()
    if kind == "data":
        return _read_data_uri(text, rules), "data URI"
    if kind == "file":
        path = Path(unquote(urlsplit(text).path))
        return _read_file(path, rules), path.name
    if kind not in ("http", "https"):
        raise ImageError(
            f"{_quoted(text)} is neither a path nor an http(s) URL. Pass a path, or the "
            "bytes of the image."
        )
    if not allow_urls:
        raise ImageError(
            f"{_quoted(text)} is a URL, and URLs are not fetched by default. Load it with "
            "paligemma.load_image(url, allow_urls=True) and pass the result, or download the image "
            "and pass the file."
        )
    return fetch_image_bytes(text), text


def _read_open_file(file: Any, rules: _Rules) -> tuple[bytes, str]:
    """The whole file, from its beginning where it can be rewound."""
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        data = file.read(rules.max_file_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise ImageError(f"The open file cannot be read: {error}. Open it again.") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(
            f"Reading the open file returned {type(data).__name__}, not bytes. Open it in binary "
            'mode, "rb".'
        )
    name = getattr(file, "name", None)
    return bytes(data), Path(name).name if isinstance(name, str) else "open file"


def _read_data_uri(text: str, rules: _Rules) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise ImageError(
            f"{_quoted(text)} is not a data URI: expected data:image/png;base64, and the data."
        )
    if len(body) > 2 * rules.max_file_bytes:
        raise _too_many_bytes("The image of the data URI", rules)
    data = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return data
    try:
        data = b"".join(data.split())
        return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)
    except ValueError as error:
        raise ImageError(f"{_quoted(text)} is a data URI whose base64 is damaged.") from error


def _read_file(path: Path, rules: _Rules) -> bytes:
    name = _quoted(str(path))
    try:
        if path.parts[:1] and path.parts[0].startswith("~") and not path.exists():
            path = Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown user
        # Checked before opening, because opening a named pipe blocks until a writer appears.
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= rules.max_file_bytes:
            with path.open("rb") as file:
                return file.read(rules.max_file_bytes + 1)
    except FileNotFoundError as error:
        raise ImageError(f"The file {name} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ImageError(
            f"The file {name} cannot be opened: {reason}. Check the path and its permissions."
        ) from error
    if stat.S_ISREG(status.st_mode):
        raise _too_many_bytes(f"The image {name}", rules)
    kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
    raise ImageError(f"{name} is {kind}, not an image. Pass the path of a file.")


def _too_many_bytes(subject: str, rules: _Rules) -> ImageError:
    return ImageError(
        f"{subject} is larger than {rules.max_file_bytes // 2**20} MiB. "
        "Compress it or scale it down."
    )


def _open(data: bytes, subject: str, rules: _Rules) -> Image.Image:
    """Parse the header only; pixels are decoded later."""
    if len(data) > rules.max_file_bytes:
        raise _too_many_bytes(subject, rules)
    parser = next((parser for signature, parser in _PARSERS if signature.match(data)), None)
    if parser is None and rules.all_formats:
        parser = _other_parser(data, subject)
    if parser is None:
        raise _refused(data, subject, rules)
    try:
        with _pillow_quiet():
            return parser(io.BytesIO(data))
    except (MemoryError, RecursionError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{subject} is too large; the limit is {rules.max_decoded_pixels / 1e6:g} megapixels. "
            "Scale it down first."
        ) from error
    except Exception as error:  # parsers raise arbitrary exceptions on damaged data
        raise _damaged(subject) from error


def _other_parser(data: bytes, subject: str) -> type[ImageFile] | None:
    """A parser of the formats that only one's own files may have."""
    for signature, name, module, parser in _MORE_PARSERS:
        if signature.match(data):
            try:
                return cast("type[ImageFile]", getattr(importlib.import_module(module), parser))
            except ImportError:
                raise ImageError(
                    f"{subject} is a {name} file. Install what reads it, pip install "
                    "'paligemma[formats]', or convert it to JPEG."
                ) from None
    return None


def _decoded(image: Image.Image, data: bytes | None, subject: str, rules: _Rules) -> Image.Image:
    """The image with its pixels decoded."""
    try:
        image.load()
    except OSError:
        if not rules.all_formats or data is None or not isinstance(image, JpegImageFile):
            raise
        if (whole := _without_end_mark(image, data)) is None:
            raise
        warnings.warn(
            f"{subject} lacks its end mark, as if a download had been cut short at the very end. "
            "All pixels were read.",
            stacklevel=3,
        )
        return whole
    return image


def _without_end_mark(image: Image.Image, data: bytes) -> Image.Image | None:
    """The image of a JPEG file that lacks its end mark; None where pixels are missing.

    The decoder fills missing pixels without a word. So the file is decoded with two different
    endings: what follows the last pixel changes nothing, what takes a pixel's place does.
    """
    if image.info.get("progressive"):
        return None
    endings = (b"\xff\xd9", b"\x5a\xc3\x96\x3c\xa5\x69" * 40 + b"\xff\xd9")
    decoded = []
    data = data.rstrip(b"\xff")  # half an end mark
    for ending in endings:
        with _pillow_quiet():
            decoded.append(JpegImageFile(io.BytesIO(data + ending)))
        decoded[-1].draft(None, image.size)
        decoded[-1].load()
    return decoded[0] if decoded[0].tobytes() == decoded[1].tobytes() else None


def _refused(data: bytes, subject: str, rules: _Rules) -> ImageError:
    if not data:
        return ImageError(f"{subject} is empty (0 bytes).")
    format_name = next((n for signature, n in _REFUSED_FORMATS if signature.match(data)), None)
    if format_name is None and film_format(data) is not None:
        format_name = "a video"
    problem = f"looks like {format_name}" if format_name else "has an unknown format"
    formats = (
        "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC and PPM"
        if rules.all_formats
        else "JPEG, PNG, WebP, GIF and BMP"
    )
    advice = "Convert it first"
    if format_name == "PDF" and rules.all_formats:
        problem += ", and images are expected here"
        advice = (
            "`paligemma ocr` and `paligemma extract` (model.read, model.extract) read PDF files; "
            "for anything else, convert the pages first"
        )
    if format_name == "a video" and rules.all_formats:
        problem += ", and images are expected here"
        advice = "`paligemma video` (model.video) reads videos; else save one of its frames"
    return ImageError(f"{subject} {problem}. {advice}: {formats} are supported.")


def _damaged(subject: str) -> ImageError:
    return ImageError(
        f"{subject} is damaged or truncated and cannot be decoded. Get an intact copy."
    )


def _check_size(
    size_wh: tuple[int, int], subject: str, rules: _Rules, *, is_decoded: bool = True
) -> None:
    width, height = size_wh
    max_pixels = rules.max_decoded_pixels if is_decoded else rules.max_pixels
    if width < 1 or height < 1:
        raise ImageError(f"{subject} is {width} x {height}: it has no pixels.")
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
    elif max(width, height) > rules.max_side:
        limit = f"{rules.max_side} pixels per side"
    else:
        return
    raise ImageError(f"{subject} is {width} x {height}; the limit is {limit}. Scale it down first.")


_quiet_lock = threading.Lock()


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Suppress Pillow's warnings about odd metadata.

    Warning filters are global to the process, hence the lock. Decoding happens outside of it.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8. Call after decoding: a PNG may store EXIF at its end."""
    try:
        with _pillow_quiet():
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # damaged metadata does not make the pixels unreadable
        return 1


def _to_rgb(image: Image.Image, subject: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _gray16_to_rgb(image, subject)
    if image.mode == "F":
        return Image.fromarray(unit_to_bytes(np.asarray(image), subject)).convert("RGB")
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, _WHITE)
        rgb.paste(rgba, mask=rgba.getchannel("A"))
        return rgb
    # For RGB this returns a copy, so later changes of the caller's image have no effect.
    return image.convert("RGB")


def _gray16_to_rgb(image: Image.Image, subject: str) -> Image.Image:
    values = np.asarray(image)
    gray = integers_to_bytes(values, subject)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def box_inside(box_xyxy: Sequence[float], size_wh: tuple[int, int]) -> tuple[float, ...]:
    """The part of a box that is in an image. Raises OptionError where there is none."""
    try:
        x0, y0, x1, y1 = () if isinstance(box_xyxy, str) else map(float, box_xyxy)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"The box is {box_xyxy!r}; expected four numbers: x1, y1, x2, y2 in pixels."
        ) from error
    width, height = size_wh
    inside = (max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1))
    is_box = x0 < x1 and y0 < y1  # not with NaN, which `max` and `min` pass over
    if not (is_box and inside[0] < inside[2] and inside[1] < inside[3]):
        raise OptionError(
            f"The box {(x0, y0, x1, y1)} has no area in the image, which measures {width} x "
            f"{height} pixels. Give x1, y1, x2, y2 in pixels, with x1 < x2 and y1 < y2."
        )
    return inside


def _reordered(box: Sequence[float], order: BoxOrder) -> tuple[float, float, float, float]:
    if len(box) != 4:
        raise OptionError(f"The box has {len(box)} numbers; expected 4.")
    a, b, c, d = (float(value) for value in box)
    return (a, b, c, d) if order == "xyxy" else (b, a, d, c)


def _subject(source: object) -> str:
    """How an error message begins: the file's name where there is one."""
    if isinstance(source, str | os.PathLike):
        return f"The image {_quoted(os.fsdecode(source))}"
    if _is_tensor(source):
        return "The tensor"
    return "The array" if isinstance(source, np.ndarray) else "The image"


def _quoted(name: str) -> str:
    length = 40 if name[:5].lower() == "data:" else 200
    return repr(name if len(name) <= length else name[:length] + "...")
