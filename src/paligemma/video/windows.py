"""Windows of a film, and the frames by which a window is judged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from paligemma.errors import OptionError
from paligemma.video.clip import Frame, FrameSource

Pick = Literal["middle", "sharpest"]
"""Which frame stands for a part of a window: that in its middle, or the sharpest of several."""

_CANDIDATES = 5  # frames compared for one sharp one
_SHARPNESS_SIDE = 256  # pixels of the image in which sharpness is measured
_SMALLEST_REST = 0.2  # of a window: a shorter rest joins the window before


@dataclass(frozen=True)
class Window:
    """A part of a film, in seconds. The end is not in it."""

    start_s: float
    end_s: float

    def middles(self, count: int) -> list[float]:
        """The middles of `count` equal parts.

        >>> Window(10.0, 20.0).middles(2)
        [12.5, 17.5]
        """
        part = (self.end_s - self.start_s) / count
        return [self.start_s + (k + 0.5) * part for k in range(count)]


def windows_of(start_s: float, end_s: float, every_s: float) -> list[Window]:
    """Windows of `every_s` seconds; a rest of less than a fifth of one joins the last.

    Raises OptionError unless `every_s` is a number above 0.

    >>> windows_of(0.0, 8.0, 5.0)
    [Window(start_s=0.0, end_s=5.0), Window(start_s=5.0, end_s=8.0)]
    """
    if not (math.isfinite(every_s) and every_s > 0):
        raise OptionError(f"every is {every_s!r}; it must be a number of seconds above 0.")
    length_s = end_s - start_s
    count = max(1, math.ceil(length_s / every_s - _SMALLEST_REST - 1e-9))
    if count > 1_000_000:
        raise OptionError(f"Windows of {every_s} s are {count}; the limit is 1,000,000.")
    starts = [start_s + k * every_s for k in range(count)]
    return [Window(start, end) for start, end in itertools.pairwise([*starts, end_s])]


def frames_of(
    clip: FrameSource, windows: Sequence[Window], count: int, pick: Pick
) -> Iterator[tuple[Window, list[Frame]]]:
    """Each window with the `count` frames that stand for its equal parts, in one pass.

    A window gets fewer where the film ends within it; windows after the end are left out.
    """
    per_part = _CANDIDATES if pick == "sharpest" else 1
    times = (time_s for window in windows for time_s in window.middles(count * per_part))
    frames = clip.frames(times)
    number = 0
    try:
        for window in windows:
            kept: list[Frame] = []
            for _ in range(count):
                candidates = list(itertools.islice(frames, per_part))
                if not candidates:
                    break
                best = candidates[0] if per_part == 1 else max(candidates, key=_sharpness_of)
                kept.append(Frame(number, best.time_s, best.image))
                number += 1
            if not kept:
                return
            yield window, kept
    finally:
        frames.close()


def reduced(image: Image.Image, resolution: int) -> Image.Image:
    """The image, smaller by a whole factor where it is far larger than a model's input.

    Both sides keep at least twice the model's resolution, so that it sees the same, and a batch of
    frames of a large film takes little memory.
    """
    factor = min(image.size) // (2 * resolution)
    return image.reduce(factor) if factor > 1 else image


def distinct(frames: Sequence[Frame]) -> list[Frame]:
    """The frames without repetitions, where a film has fewer than were asked for."""
    times = [frame.time_s for frame in frames]
    return [frame for index, frame in enumerate(frames) if frame.time_s not in times[:index]]


def sharpness(image: Image.Image) -> float:
    """The variance of the Laplacian of the grey image, at most 256 pixels large.

    J. L. Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000.
    """
    small = image.convert("L")
    small.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * middle).var())


def _sharpness_of(frame: Frame) -> float:
    return sharpness(frame.image)
