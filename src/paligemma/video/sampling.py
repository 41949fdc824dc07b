"""Frames of video files as the images of a question, decoded when they are used.

As in the papers' transfers to video: one frame in so many is looked at, and of those a fixed number
is taken, evenly spaced. Frames are counted here, not times, as the strides of the papers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

from PIL import Image

from paligemma.errors import VideoError, check_whole
from paligemma.video.clip import check_range, open_clip

ItemT = TypeVar("ItemT")
Part = tuple[float, float]
"""Beginning and end, as fractions of the video."""

FILM_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")


@dataclass(frozen=True, kw_only=True)
class SampledFilm:
    """Which frames of a video file are taken."""

    path: Path
    number: int = 16
    """Frames that are taken, evenly spaced over those that are looked at."""
    stride: int = 1
    """One in so many frames is looked at."""
    part: Part | None = None
    start_s: float = 0.0
    end_s: float | None = None
    """Only frames between these times are looked at."""

    def __post_init__(self) -> None:
        check_whole("frames", self.number)
        check_whole("stride", self.stride)
        check_range(self.start_s, self.end_s)

    def images(self) -> tuple[Callable[[], Image.Image], ...]:
        """What returns each of the frames. The last few films stay decoded."""
        return tuple(partial(_frame, self, index) for index in range(self.number))


def evenly_spaced(frames: Sequence[ItemT], number: int) -> list[ItemT]:
    """The middle frame of each of `number` equal parts; too few frames are repeated from the start.

    So does big_vision (pp/proj/paligemma/video.py).

    >>> evenly_spaced("abcdef", 3)
    ['b', 'd', 'f']
    """
    if len(frames) < number:
        return list(islice(cycle(frames), number))
    return [frames[(2 * i + 1) * len(frames) // (2 * number)] for i in range(number)]


def frames_within(frames: Sequence[ItemT], part: Part) -> Sequence[ItemT]:
    """The frames inside the part; frames are evenly spaced over the video."""
    begin, end = sorted(part)
    inside = [frame for i, frame in enumerate(frames) if begin <= (i + 0.5) / len(frames) <= end]
    middle = min(max(0.0, (begin + end) / 2), 1.0)
    return inside or [frames[min(int(middle * len(frames)), len(frames) - 1)]]


def _frame(film: SampledFilm, index: int) -> Image.Image:
    return _frames(film)[index]


@lru_cache(maxsize=2)
def _frames(film: SampledFilm) -> tuple[Image.Image, ...]:
    """Raises VideoError for a film that cannot be read, or not all of it."""
    clip = open_clip(film.path)
    end_s = math.inf if film.end_s is None else film.end_s
    times = [time_s for time_s in clip.frame_times() if film.start_s <= time_s < end_s]
    if not times:
        raise VideoError(f"{film.path.name!r} has no frame from {film.start_s:g} s on.")
    times = times[:: film.stride]
    taken = evenly_spaced(frames_within(times, film.part) if film.part else times, film.number)
    wanted = sorted(set(taken))
    images = {}
    for time_s, frame in zip(wanted, clip.frames(wanted), strict=False):
        images[time_s] = frame.image
    if clip.is_damaged or len(images) < len(wanted):
        raise VideoError(f"{film.path.name!r} is damaged. {' '.join(clip.problems)}".strip())
    return tuple(images[time_s] for time_s in taken)
