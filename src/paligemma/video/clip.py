"""Open a film by what the file contains, and take frames of it by time.

>>> clip = open_clip("clip.mp4")
>>> for frame in clip.frames(every_s=5):
...     print(frame.time_s, frame.image.size)
"""

from __future__ import annotations

import itertools
import math
import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image

from paligemma.errors import OptionError, VideoError
from paligemma.processor.films import film_format, other_kind
from paligemma.video.decoding import ClipLimits, DecodedFrame, Decoding, Source, too_long
from paligemma.video.orientation import upright

_ROUNDING_S = 1e-6  # so that 3 * 0.1 s finds a frame at 0.3 s, whichever way either was rounded
_FINEST_S = 1e-4
_NOT_TURNED = "The video asks to be turned by an odd angle; its frames are shown as stored."


@dataclass(frozen=True)
class Frame:
    """One frame of a film."""

    index: int
    """Its place among the frames that were asked for, from 0."""
    time_s: float
    """When it is shown, in seconds from the beginning of the film as players show it."""
    image: Image.Image = field(repr=False, compare=False)
    """RGB, upright, of the film's size."""


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """What a film is, by its container and its first frame."""

    name: str
    """The file's name; "" for bytes."""
    width: int
    height: int
    """Pixels of an upright frame."""
    duration_s: float
    """As the container says, or until the end of the last frame where that is later."""
    frames_per_second: float | None
    """On average, as the container says; times come from the frames themselves."""
    codec: str
    stream_index: int
    """Which stream of the file the frames are from."""
    num_video_streams: int

    @property
    def stream(self) -> str:
        """The stream in words, for messages."""
        rate = f" at {self.frames_per_second:.3g} frames/s" if self.frames_per_second else ""
        what = f"{self.width} x {self.height}, {self.codec}{rate}"
        if self.num_video_streams == 1:
            return what
        return (
            f"{what}: stream {self.stream_index}, the best of {self.num_video_streams} with video"
        )


class FrameSource(Protocol):
    """A film that is open: a `Clip`, or one in another process."""

    @property
    def info(self) -> ClipInfo: ...
    @property
    def problems(self) -> tuple[str, ...]: ...
    @property
    def is_damaged(self) -> bool: ...
    def frames(
        self,
        times: Iterable[float] | None = None,
        *,
        every_s: float | None = None,
        fps: float | None = None,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Generator[Frame]: ...


class Clip:
    """A film whose frames can be read any number of times. Each pass reopens the file."""

    def __init__(self, source: Source, limits: ClipLimits) -> None:
        self._source = source
        self._limits = limits
        self._problems: dict[str, str] = {}
        decoding = Decoding(source, limits, self._problems)
        try:
            self._info = self._read_info(decoding)
        finally:
            decoding.close()

    @property
    def info(self) -> ClipInfo:
        """What the film is."""
        return self._info

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the film, as far as it was decoded yet."""
        return tuple(self._problems.values())

    @property
    def is_damaged(self) -> bool:
        """Whether frames were missing, as far as it was decoded yet."""
        return bool(self._problems.keys() - {"turn"})

    def frame_times(self) -> list[float]:
        """The times of all frames, in order, without decoding them."""
        decoding = Decoding(self._source, self._limits, self._problems)
        try:
            return sorted({time_s for time_s, _ in decoding.packet_times()})
        finally:
            decoding.close()

    def frames(
        self,
        times: Iterable[float] | None = None,
        *,
        every_s: float | None = None,
        fps: float | None = None,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Generator[Frame]:
        """Frames in order of time: those shown at `times`, every so many seconds, or all.

        `times` are seconds in ascending order, each giving the frame that is shown then; those
        after the end give none. `every_s` and `fps` count from `start_s`, and give each frame at
        most once. One frame is held at a time; what is between is skipped in the file where that
        is cheaper than decoding it.

        A damaged film gives the frames that can be read, and `problems`. Raises OptionError for
        times that are none or descend, and VideoError for a film beyond the limits.
        """
        if sum(given is not None for given in (times, every_s, fps)) > 1:
            raise OptionError("Give one of times, every_s and fps.")
        for name, value in (("every_s", every_s), ("fps", fps)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise OptionError(f"{name} is {value!r}; it must be a number above 0.")
        check_range(start_s, end_s)
        if fps is not None:
            every_s = 1 / fps
        if every_s is not None and every_s < _FINEST_S:
            raise OptionError(
                f"A frame every {every_s:g} s is too often; at most one every {_FINEST_S:g} s "
                "can be asked for. Without every_s and fps, all frames come."
            )
        return self._frames(times, every_s, start_s, math.inf if end_s is None else end_s)

    def _frames(
        self, times: Iterable[float] | None, every_s: float | None, start_s: float, end_s: float
    ) -> Generator[Frame]:
        cursor = _Cursor(Decoding(self._source, self._limits, self._problems))
        try:
            found: Iterator[DecodedFrame | None]
            if times is not None:
                found = map(cursor.at, _ascending(times, end_s))
            elif every_s is not None:
                found = cursor.each_once(start_s + k * every_s for k in itertools.count())
            else:
                found = cursor.all_from(start_s)
            for index, decoded in enumerate(found):
                if decoded is None:
                    break
                if times is None and decoded.time_s + _ROUNDING_S >= end_s:
                    return
                yield Frame(index, max(0.0, decoded.time_s), self._image(decoded))
            self._note_early_end(cursor)
        finally:
            cursor.decoding.close()

    def _image(self, decoded: DecodedFrame) -> Image.Image:
        image, is_upright = upright(decoded.frame)
        if not is_upright:
            self._problems.setdefault("turn", _NOT_TURNED)
        return image

    def _note_early_end(self, cursor: _Cursor) -> None:
        """A film that was cut ends without an error where its index is at the beginning."""
        end_s = cursor.end_s
        missing = None if end_s is None else self.info.duration_s - end_s
        if end_s is not None and missing is not None and missing > max(1.0, 0.02 * end_s):
            self._problems.setdefault(
                "end",
                f"The frames end at {end_s:.2f} s, and the file says that it lasts "
                f"{self.info.duration_s:.2f} s.",
            )

    def _read_info(self, decoding: Decoding) -> ClipInfo:
        name = self._source.name
        first = decoding.next()
        if first is None:
            raise VideoError(f"{name} has no frame that can be decoded. Get an intact copy.")
        duration_s = decoding.duration_s
        if duration_s is None:
            decoding.rewind()
            duration_s = max((end_s for _, end_s in decoding.packet_times()), default=0.0)
        elif self._source.format == "mov":
            duration_s = max(duration_s, self._last_end_s(duration_s))
        duration_s = max(duration_s, first.end_s)
        if duration_s > self._limits.max_seconds:
            raise too_long(name, duration_s, self._limits)
        image = self._image(first)
        stream = decoding.stream  # not earlier: `rewind` frees that of the first pass
        rate = stream.average_rate
        path = self._source.data
        return ClipInfo(
            name=path.name if isinstance(path, Path) else "",
            width=image.width,
            height=image.height,
            duration_s=duration_s,
            frames_per_second=float(rate) if rate and rate > 0 else None,
            codec=stream.codec_context.name,
            stream_index=stream.index,
            num_video_streams=decoding.num_video_streams,
        )

    def _last_end_s(self, stated_s: float) -> float:
        """The end of the last frame of an MP4 file. The length that it states ends with the frame
        that is decoded last, which need not be shown last or may be shown for long."""
        decoding = Decoding(self._source, self._limits, {})  # damage is noted when it is reached
        try:
            ends = decoding.packet_times() if decoding.seek(stated_s) else ()
            return max((end_s for _, end_s in ends), default=0.0)
        finally:
            decoding.close()


def open_clip(
    source: str | os.PathLike[str] | bytes,
    limits: ClipLimits = ClipLimits(),  # noqa: B008 - immutable
) -> Clip:
    """Open an MP4, QuickTime, Matroska, WebM or AVI file. Needs `pip install "paligemma[video]"`.

    No other file is opened, whatever this one says, and nothing is downloaded. Of several video
    streams the best is taken, as FFmpeg finds it; `info.stream` says which.

    Raises VideoError for a file that is missing, empty, damaged before its first frame, no film or
    beyond the limits.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data: bytes | Path = bytes(source)
        name, first_bytes = "The video", bytes(source[:1024])
        num_bytes = len(source)
    else:
        data = _path(source)
        name = repr(data.name)
        num_bytes = data.stat().st_size
        first_bytes = _first_bytes(data)
    if not num_bytes:
        raise VideoError(f"{name} is empty (0 bytes).")
    if num_bytes > limits.max_file_bytes:
        raise VideoError(
            f"{name} is larger than {limits.max_file_bytes / 2**20:g} MiB, which is the limit."
        )
    found = film_format(first_bytes)
    if found is None:
        kind = other_kind(first_bytes)
        raise VideoError(
            f"{name} {f'is {kind}' if kind else 'has an unknown format'}, and a video is expected: "
            "MP4, QuickTime, Matroska, WebM or AVI."
        )
    return Clip(Source(data=data, name=name, format=found), limits)


def check_range(start_s: float, end_s: float | None) -> None:
    """Raise OptionError unless these are times of which the second is later."""
    if not (math.isfinite(start_s) and start_s >= 0):
        raise OptionError(f"The start is {start_s!r} s; it must be a number of at least 0.")
    if end_s is not None and not end_s > start_s:
        raise OptionError(f"The end is {end_s!r} s; it must be later than the start, {start_s} s.")


class _Cursor:
    """A place in a film, which moves forward."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self._current: DecodedFrame | None = None
        self._following = decoding.next()
        self._can_seek = True
        self.end_s: float | None = None
        """End of the last frame, once it was reached."""

    def at(self, time_s: float) -> DecodedFrame | None:
        """The frame shown then: the last one that is not later. None after the end.

        Before the first frame, the first.
        """
        position_s = self._current.time_s if self._current else 0.0
        if self._can_seek and time_s - position_s > self.decoding.seek_after_s:
            self._seek(time_s)
        while self._following is not None and self._following.time_s <= time_s + _ROUNDING_S:
            self._step()
        if self._current is None:
            return self._following
        is_over = self._following is None and time_s + _ROUNDING_S >= self._current.end_s
        return None if is_over else self._current

    def each_once(self, times: Iterable[float]) -> Iterator[DecodedFrame | None]:
        last = None
        for time_s in times:
            found = self.at(time_s)
            if found is None or found is not last:
                yield found
            last = found

    def all_from(self, start_s: float) -> Iterator[DecodedFrame | None]:
        found = self.at(start_s)
        while found is not None:
            if found.time_s + _ROUNDING_S >= start_s:
                yield found
            self._step()
            found = self._current

    def _step(self) -> None:
        if self._following is None and self._current is not None:
            self.end_s = self._current.end_s
        self._current = self._following
        if self._following is not None:
            self._following = self.decoding.next()
            if self._following is None and self._current is not None:
                self.end_s = self._current.end_s

    def _seek(self, time_s: float) -> None:
        """Go to the key frame before. Where the file's index does not lead there, decode."""
        if self.decoding.seek(time_s):
            landed = self.decoding.next()
            if landed is not None and landed.time_s <= time_s:
                self.decoding.saw_seek(time_s, landed.time_s)
                self._current, self._following = None, landed
                return
        self._can_seek = False
        self.decoding.rewind()
        self._current, self._following = None, self.decoding.next()


def _ascending(times: Iterable[float], end_s: float) -> Iterator[float]:
    last = 0.0
    for time_s in times:
        if not (math.isfinite(time_s) and time_s >= last):
            raise OptionError(f"The times must ascend from 0, and {time_s!r} s follows {last!r} s.")
        last = time_s
        if time_s + _ROUNDING_S >= end_s:
            return
        yield time_s


def _path(source: str | os.PathLike[str]) -> Path:
    try:
        text = os.fsdecode(source)
    except TypeError:
        raise VideoError(
            f"A video is the path of a file or its bytes, not {type(source).__name__}."
        ) from None
    if re.match(r"[A-Za-z][\w+.-]+:", text):
        raise VideoError(f"{text!r} is an address. Download the video first, and pass its path.")
    path = Path(text).expanduser()
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise VideoError(f"The file {text!r} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise VideoError(f"The file {text!r} cannot be opened: {reason}.") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise VideoError(f"{text!r} is {kind}. Pass the path of a file.")
    return path


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError as error:
        raise VideoError(f"{path.name!r} cannot be opened: {error.strerror}.") from error
