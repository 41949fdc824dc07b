"""Small films, written with PyAV: every frame says its own number by its grey value."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

TIMES = tuple(k / 10 for k in range(20))
STEP = 8  # grey values between two frames


def number_of(image: Image.Image) -> int:
    """Which frame this is, by its grey value in the middle."""
    width, height = image.size
    return round((np.asarray(image.convert("L"))[height // 2, width // 2] - 16) / STEP)


def numbered(number: int, size: tuple[int, int]) -> Image.Image:
    """A grey frame with a white corner at the top left; after thirty, grey values repeat."""
    pixels = np.full((size[1], size[0], 3), 16 + STEP * (number % 30), np.uint8)
    pixels[: size[1] // 4, : size[0] // 4] = 255
    return Image.fromarray(pixels)


def film(
    times: Sequence[float] = TIMES,
    *,
    container: str = "mp4",
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    key_gap: int = 5,
    rotation: int | None = None,
    ticks: int = 1000,
    draw: Callable[[int, tuple[int, int]], Image.Image] = numbered,
    **options: str,
) -> bytes:
    """A film with a frame at each of these times, in seconds, kept to 1/`ticks` s."""
    path = Path(tempfile.mkdtemp()) / "film"  # some options read again what they wrote
    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=10, options={"g": str(key_gap)})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, ticks)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, time_s in enumerate(times):
            frame = av.VideoFrame.from_image(draw(number, size))
            frame.pts = round(time_s * ticks)
            frame.time_base = Fraction(1, ticks)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = path.read_bytes()
    shutil.rmtree(path.parent)
    return data
