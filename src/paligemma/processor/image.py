"""Load images from files, bytes, PIL images and arrays as RGB, and turn them into pixel values.

How each kind of image is handled:

    orientation (EXIF)   applied; boxes refer to the upright image
    alpha, transparency  composited onto white
    1, L, P, CMYK, YCbCr converted by Pillow
    I;16, I              16-bit gray, divided by 257
    16-bit color PNG     the high byte of each channel, as Pillow decodes it
    F                    gray in [0, 1], times 255
    animation            the first frame
    color profile (ICC)  ignored, as in the training of the model

The resize equals that of transformers' SiglipImageProcessor.
"""

from __future__ import annotations

import io
import math
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from paligemma.processor.fetch import fetch_image_bytes

MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000
MAX_FILE_BYTES = 64 * 2**20

ImageSource = str | Path | bytes | Image.Image | NDArray[Any]
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
_REFUSED_FORMATS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF"),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "EPS"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"SIMPLE"), "FITS"),
    (re.compile(rb"\0\0[\1\2]\0"), "ICO"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "HEIC or AVIF"),
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
_WHITE = (255, 255, 255)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedImage:
    """An upright RGB image. Compared by identity, so that it can be a dict key."""

    rgb: Image.Image
    name: str
    """The file name, the URL, or the kind of object it was loaded from."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels, after applying the orientation."""
        return self.rgb.size


def load_image(
    source: ImageSource, *, allow_urls: bool = False, max_pixels: int = MAX_PIXELS
) -> LoadedImage:
    """Load an image from a path, bytes, a PIL image, an array or (if allowed) a URL.

    Files: JPEG, PNG, WebP, GIF and BMP of at most 64 MiB. Arrays: uint8, bool, or float in [0, 1],
    of shape (H, W), (H, W, 3) or (H, W, 4); rows from top to bottom, channels RGB or RGBA. The
    limits are `max_pixels` in all and 20,000 per side, checked in the header before decoding.

    Raises ImageError for an image that is missing, damaged, truncated, too large, or in an
    unsupported format.

    >>> load_image(np.zeros((2, 3), np.uint8)).size_wh
    (3, 2)
    """
    subject = _subject(source)
    if isinstance(source, np.ndarray):
        name = "array"
        image = _from_array(source, max_pixels)
    elif isinstance(source, Image.Image):
        name = "PIL image"
        image = source
    elif isinstance(source, bytes):
        name = "bytes"
        image = _open(source, subject, max_pixels)
    elif isinstance(source, str | Path):
        data, name = _read(source, allow_urls)
        image = _open(data, subject, max_pixels)
    else:
        raise ImageError(
            f"An image cannot be read from {type(source).__name__}. Pass a path, the bytes of a "
            "file, a PIL image or a numpy array."
        )
    _check_size(image.size, subject, max_pixels)
    try:
        image.load()
        rgb = _to_rgb(image, subject)
        transpose = _UPRIGHT.get(_orientation(image))
        upright = rgb if transpose is None else rgb.transpose(transpose)
        upright.info.clear()  # else loading the result again would apply the orientation twice
    except (ImageError, MemoryError, RecursionError):
        raise
    except Exception as error:  # decoders raise arbitrary exceptions on damaged data
        raise _damaged(subject) from error
    return LoadedImage(rgb=upright, name=name)


def check_first_bytes(data: bytes, subject: str) -> None:
    """Raise ImageError unless a file that begins like this may be an image that can be read."""
    if not any(signature.match(data) for signature, _ in _PARSERS):
        raise _refused(data, subject)


def read_size_wh(source: ImageSource) -> tuple[int, int]:
    """Read the width and height of the upright image, from the header where possible.

    Raises ImageError as `load_image` does, except for damage after the header.
    """
    if not isinstance(source, str | Path | bytes):
        return load_image(source).size_wh
    data = source if isinstance(source, bytes) else _read(source, False)[0]
    image = _open(data, _subject(source), MAX_PIXELS)
    # Reading the orientation of a PNG decodes it, and few PNGs have one.
    may_rotate = not isinstance(image, PngImageFile) or b"eXIf" in data or b"Raw profile" in data
    width, height = image.size
    return (height, width) if may_rotate and _orientation(image) >= 5 else (width, height)


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
    pixels = np.asarray(resize_to_square(rgb, transform), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / np.float32(127.5) - np.float32(1)


def _read(source: str | Path, allow_urls: bool) -> tuple[bytes, str]:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.\-]+)://|(data):", str(source), re.IGNORECASE)
    if isinstance(source, Path) or scheme is None:
        return _read_file(Path(source)), Path(source).name or str(source)
    if (scheme[1] or scheme[2]).lower() not in ("http", "https"):
        raise ImageError(
            f"{_quoted(str(source))} is neither a path nor an http(s) URL. Pass a path, or the "
            "bytes of the image."
        )
    if not allow_urls:
        raise ImageError(
            f"{_quoted(str(source))} is a URL, and URLs are not fetched by default. Load it with "
            "load_image(url, allow_urls=True) and pass the result, or download the image and pass "
            "the file."
        )
    return fetch_image_bytes(str(source)), str(source)


def _read_file(path: Path) -> bytes:
    name = _quoted(str(path))
    try:
        # Checked before opening, because opening a named pipe blocks until a writer appears.
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
            with path.open("rb") as file:
                return file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ImageError(f"The file {name} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(
            f"The file {name} cannot be opened. Check the path and its permissions."
        ) from error
    if stat.S_ISREG(status.st_mode):
        raise _too_many_bytes(f"The image {name}")
    kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
    raise ImageError(f"{name} is {kind}, not an image. Pass the path of a file.")


def _too_many_bytes(subject: str) -> ImageError:
    return ImageError(
        f"{subject} is larger than {MAX_FILE_BYTES // 2**20} MiB. Compress it or scale it down."
    )


def _open(data: bytes, subject: str, max_pixels: int) -> Image.Image:
    """Parse the header only; pixels are decoded later."""
    if len(data) > MAX_FILE_BYTES:
        raise _too_many_bytes(subject)
    parser = next((parser for signature, parser in _PARSERS if signature.match(data)), None)
    if parser is None:
        raise _refused(data, subject)
    try:
        with _pillow_quiet():
            return parser(io.BytesIO(data))
    except (MemoryError, RecursionError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{subject} is too large; the limit is {max_pixels / 1e6:g} megapixels. "
            "Scale it down first."
        ) from error
    except Exception as error:  # parsers raise arbitrary exceptions on damaged data
        raise _damaged(subject) from error


def _refused(data: bytes, subject: str) -> ImageError:
    if not data:
        return ImageError(f"{subject} is empty (0 bytes).")
    format_name = next((n for signature, n in _REFUSED_FORMATS if signature.match(data)), None)
    problem = f"looks like {format_name}" if format_name else "has an unknown format"
    return ImageError(
        f"{subject} {problem}. Convert it first: JPEG, PNG, WebP, GIF and BMP are supported."
    )


def _damaged(subject: str) -> ImageError:
    return ImageError(
        f"{subject} is damaged or truncated and cannot be decoded. Get an intact copy."
    )


def _check_size(size_wh: tuple[int, int], subject: str, max_pixels: int) -> None:
    width, height = size_wh
    if width < 1 or height < 1:
        raise ImageError(f"{subject} is {width} x {height}: it has no pixels.")
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
    elif max(width, height) > MAX_SIDE:
        limit = f"{MAX_SIDE} pixels per side"
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
        return _unit_to_image(np.asarray(image), subject).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, _WHITE)
        rgb.paste(rgba, mask=rgba.getchannel("A"))
        return rgb
    # For RGB this returns a copy, so later changes of the caller's image have no effect.
    return image.convert("RGB")


def _gray16_to_rgb(image: Image.Image, subject: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{subject} has gray values from {values.min()} to {values.max()}; "
            "expected 0 to 65535. Scale them first."
        )
    gray = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _unit_to_image(values: NDArray[Any], subject: str) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= 1):
        raise ImageError(
            f"{subject} has values from {low:g} to {high:g}; floats must lie in [0, 1]. "
            "Scale them, or pass uint8."
        )
    return Image.fromarray(np.rint(values.astype(np.float32) * 255).astype(np.uint8))


def _from_array(array: NDArray[Any], max_pixels: int) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(
            f"The array has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4). "
            "Channels come last: try numpy.moveaxis(array, 0, -1)."
        )
    _check_size((array.shape[1], array.shape[0]), _subject(array), max_pixels)
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == np.bool_:
        return Image.fromarray(array.astype(np.uint8) * np.uint8(255))
    if array.dtype.kind == "f":
        return _unit_to_image(array, _subject(array))
    raise ImageError(
        f"The array has dtype {array.dtype}; expected uint8, bool or floats in [0, 1]. "
        "Convert it first."
    )


def _reordered(box: Sequence[float], order: BoxOrder) -> tuple[float, float, float, float]:
    if len(box) != 4:
        raise OptionError(f"The box has {len(box)} numbers; expected 4.")
    a, b, c, d = (float(value) for value in box)
    return (a, b, c, d) if order == "xyxy" else (b, a, d, c)


def _subject(source: object) -> str:
    """How an error message begins: the file's name where there is one."""
    if isinstance(source, str | Path):
        return f"The image {_quoted(str(source))}"
    return "The array" if isinstance(source, np.ndarray) else "The image"


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 200 else name[:200] + "...")
