"""Draw results on their image: outlines, masks and labels."""

from __future__ import annotations

import bisect
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from paligemma.errors import ImageError, OptionError
from paligemma.fonts import Lettering
from paligemma.processor.image import ImageSource, LoadedImage, load_image
from paligemma.results import Detection, Objects, Segment, one_line
from paligemma.writing import write_whole

_Rgb = tuple[int, int, int]
_Rect = tuple[int, int, int, int]

# Okabe and Ito, "Color Universal Design", safe for color-blind people; without black, strong
# colors first.
PALETTE: tuple[_Rgb, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_MASK_OPACITY = 0.45


def draw_detections(
    image: ImageSource | LoadedImage,
    detections: Objects[Detection],
    *,
    scores: bool = True,
    font: str | Path | None = None,
    fine: bool = False,
) -> Image.Image:
    """Return the image as a new RGB image with each object's outline, mask, label and score.

    With `fine`, lines and letters are small, for pages of print.

    `image` is the image that was searched, in any form that `detect` takes; one of more than 50
    megapixels is drawn scaled down. A label has the same
    color in all images searched for the same phrases. Labels in Latin, Greek, Cyrillic, Hebrew and
    Arabic letters can always be drawn, others with `font` (the path of a font file) or a font of
    the system that has them; a warning names letters that no font has.

    Raises ImageError when the image cannot be read or differs in size from the result's, and
    OptionError for a font that cannot be read.
    """
    loaded = load_image(image)
    rects = _pixel_rects(loaded, detections)
    canvas = loaded.rgb.copy()
    names = detections.label_names
    colors = [PALETTE[names.index(label) % len(PALETTE)] for label in detections.labels]
    shorter = min(canvas.size)
    line = max(1, round(shorter / (600 if fine else 180)))
    for obj, color in zip(detections, colors, strict=True):
        if isinstance(obj, Segment):
            mask = obj.mask
            if canvas.size != detections.size_wh:
                mask = np.asarray(Image.fromarray(mask).resize(canvas.size)) > 0
            _draw_mask(canvas, mask, color, line)
    draw = ImageDraw.Draw(canvas)
    for rect, color in zip(rects, colors, strict=True):
        _draw_outline(draw, rect, color, line)
    lettering = Lettering(min(max(12.0, shorter / (90 if fine else 32)), 48.0), font)
    lettering.warn_about(detections.labels)
    taken: list[_Rect] = []
    for obj, rect, color in zip(detections, rects, colors, strict=True):
        score = f"{obj.score:.2f}" if scores and not math.isnan(obj.score) else ""
        text = f"{one_line(obj.label)} {score}".strip()
        taken.append(_draw_tag(canvas, text, rect, color, lettering, taken))
    return canvas


def write_drawing(drawing: Image.Image, path: Path) -> None:
    """Write an image file, whole or not at all, in the format that its suffix says.

    Raises OptionError where it cannot be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise OptionError(
            f"The drawing cannot be written to {str(path)!r}, whose name ends in no format of "
            "images. Choose a name such as drawing.png."
        )
    content = io.BytesIO()
    try:
        drawing.save(content, kind)
    except (KeyError, OSError, ValueError) as error:  # WebP is limited to 16383 pixels per side
        raise OptionError(
            f"The drawing cannot be written to {str(path)!r} as {kind} ({error}). Choose a name "
            "such as drawing.png."
        ) from error
    write_whole(path, content.getvalue())


def crop_objects(
    image: ImageSource | LoadedImage, detections: Objects[Detection]
) -> list[Image.Image]:
    """Cut each object's box out of the image. Raises ImageError as `draw_detections`."""
    loaded = load_image(image)
    return [
        loaded.rgb.crop((x1, y1, x2 + 1, y2 + 1))
        for x1, y1, x2, y2 in _pixel_rects(loaded, detections)
    ]


def _pixel_rects(image: LoadedImage, detections: Objects[Detection]) -> list[_Rect]:
    """The objects' boxes in the pixels of `image.rgb`, which may be scaled down."""
    width, height = image.size_wh
    if (width, height) != detections.size_wh:
        raise ImageError(
            f"The image is {width} x {height}, but the result belongs to an image of "
            f"{detections.size_wh[0]} x {detections.size_wh[1]}. Pass the original image, not a "
            "resized copy."
        )
    across, down = image.rgb.width / width, image.rgb.height / height
    rects = []
    for obj in detections:
        x1, y1, x2, y2 = obj.box_xyxy
        box = (x1 * across, y1 * down, x2 * across, y2 * down)
        rects.append(_pixel_rect(box, image.rgb.size))
    return rects


def _pixel_rect(box_xyxy: Sequence[float], size_wh: tuple[int, int]) -> _Rect:
    """Return the first and last pixel of the box: at least one pixel, inside the image."""
    width, height = size_wh
    x1, y1, x2, y2 = (round(edge) for edge in box_xyxy)
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return x1, y1, min(max(x2 - 1, x1), width - 1), min(max(y2 - 1, y1), height - 1)


def _draw_outline(draw: ImageDraw.ImageDraw, rect: _Rect, color: _Rgb, line: int) -> None:
    x1, y1, x2, y2 = rect
    # A thin dark rim keeps the line visible on a background of the same color.
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_BLACK, width=1)
    draw.rectangle(rect, outline=color, width=line)


def _draw_mask(canvas: Image.Image, mask: npt.NDArray[np.bool_], color: _Rgb, line: int) -> None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return
    # Only the part around the mask, with a margin that tells the mask's edge from the image's.
    left, top = max(0, columns[0] - line - 1), max(0, rows[0] - line - 1)
    right = min(canvas.width, columns[-1] + line + 2)
    bottom = min(canvas.height, rows[-1] + line + 2)
    mask = mask[top:bottom, left:right]
    corner = (int(left), int(top))
    part = canvas.crop((*corner, int(right), int(bottom)))
    tint = Image.new("RGB", part.size, color)
    canvas.paste(Image.blend(part, tint, _MASK_OPACITY), corner, mask=Image.fromarray(mask))
    canvas.paste(tint, corner, mask=Image.fromarray(mask & ~_erode(mask, line)))


def _erode(mask: npt.NDArray[np.bool_], num_pixels: int) -> npt.NDArray[np.bool_]:
    """Erode the mask by `num_pixels`; pixels outside the image count as inside the mask.

    Uses running sums over windows of 2 n + 1 pixels, so the time does not depend on n.
    """
    for axis in (0, 1):
        rim = [(num_pixels + 1, num_pixels) if a == axis else (0, 0) for a in (0, 1)]
        sums = np.pad(mask, rim, mode="edge").cumsum(axis=axis, dtype=np.int32)
        length, window = mask.shape[axis], 2 * num_pixels + 1
        ends = sums.take(range(window, window + length), axis=axis)
        mask = ends - sums.take(range(length), axis=axis) == window
    return mask


def _draw_tag(
    canvas: Image.Image,
    text: str,
    rect: _Rect,
    color: _Rgb,
    lettering: Lettering,
    taken: list[_Rect],
) -> _Rect:
    """Draw the text on a colored plate that overlaps no other tag; return the plate."""
    width, height = canvas.size
    ascent, descent = lettering.ascent, lettering.descent
    pad = max(2, (ascent + descent) // 6)
    text = _shorten(text, lettering, width - 2 * pad)
    plate_w = min(width, math.ceil(lettering.length(text)) + 2 * pad)
    plate_h = min(height, ascent + descent + pad)
    plates = list(_plate_candidates(rect, (plate_w, plate_h), canvas.size))
    plate = next((p for p in plates if not any(_overlap(p, t) for t in taken)), plates[0])
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=color)
    red, green, blue = color
    is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 110
    origin = (plate[0] + pad, plate[1] + pad // 2 + ascent)
    lettering.draw(canvas, origin, text, _BLACK if is_bright else _WHITE)
    return plate


def _plate_candidates(
    rect: _Rect, plate_wh: tuple[int, int], size_wh: tuple[int, int]
) -> Iterator[_Rect]:
    """Yield positions for a tag, best first: above the box, inside from the top down, below."""
    x1, y1, _, y2 = rect
    plate_w, plate_h = plate_wh
    x = max(0, min(x1, size_wh[0] - plate_w))
    inside = range(y1, max(y1 + 1, y2 - plate_h), plate_h)
    for y in (y1 - plate_h, *inside, y2 + 1):
        if 0 <= y <= size_wh[1] - plate_h:
            yield x, y, x + plate_w, y + plate_h
    y = max(0, min(y1, size_wh[1] - plate_h))
    yield x, y, x + plate_w, y + plate_h


def _overlap(a: _Rect, b: _Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shorten(text: str, lettering: Lettering, max_length: int) -> str:
    """Return the text, cut with an ellipsis if it is longer than `max_length` pixels."""
    if lettering.length(text) <= max_length:
        return text
    num_letters = bisect.bisect_right(
        range(1, len(text)),
        max_length,
        key=lambda n: math.ceil(lettering.length(f"{text[:n]}…")),
    )
    return f"{text[:num_letters]}…" if num_letters else ""
