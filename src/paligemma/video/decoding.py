"""Decode the frames of a film with PyAV, which is FFmpeg, without letting it open anything else.

FFmpeg finds out by itself what a file contains, and among its formats are lists of other files,
playlists with addresses, and patterns of file names. So it is told the format, which our own check
of the first bytes decided (`processor/films.py`), reads from an open file rather than a name, and
gets an error wherever it asks for another file.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from paligemma.errors import MissingExtraError, VideoError
from paligemma.processor.films import FilmFormat

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_T = TypeVar("_T")

_MOST_BAD_PACKETS = 200  # in a row, after which nothing good is expected
_WHITELISTS = {"format_whitelist": "mov,mp4,matroska,webm,avi", "protocol_whitelist": "file,pipe"}


@dataclass(frozen=True, kw_only=True)
class ClipLimits:
    """What a film may take. Going beyond raises VideoError."""

    max_file_bytes: int = 16 * 2**30
    max_seconds: float = 12 * 3600.0
    """Length of the film."""
    max_pixels: int = 8192 * 4320
    """Of one frame."""
    max_frames: int = 2_000_000
    """Frames decoded in one pass, those between the wanted ones included."""
    max_decoding_seconds: float = 4 * 3600.0
    """Time that one pass may take, without what is done with the frames in between."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A film's bytes, where they are, and what it is called in messages."""

    data: bytes | Path
    name: str
    """As in a sentence: 'clip.mp4' with quotes, or "The video"."""
    format: FilmFormat

    def open(self) -> BinaryIO:
        if isinstance(self.data, bytes):
            return io.BytesIO(self.data)
        try:
            return self.data.open("rb")
        except OSError as error:
            raise VideoError(f"{self.name} cannot be opened: {error.strerror}.") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedFrame:
    """A frame as FFmpeg gives it, not turned."""

    time_s: float
    end_s: float
    """When the next frame is due."""
    frame: VideoFrame


class Decoding:
    """One pass over the frames of the best video stream. Not for two threads at once.

    Times are seconds from the beginning of the film as players show it: presentation time stamps
    of the stream minus the container's start time.
    """

    def __init__(self, source: Source, limits: ClipLimits, problems: dict[str, str]) -> None:
        self._source = source
        self._limits = limits
        self._problems = problems
        self._num_frames = 0
        self._spent_s = 0.0
        self._longest_key_gap_s = 0.0
        self._last_key_s: float | None = None
        self._open()

    def _open(self) -> None:
        self._file = self._source.open()
        try:
            self._container = _open_container(self._file, self._source, self._limits)
            self.stream = self._best_stream(self._container)
        except BaseException:
            self.close()
            raise
        base, start = self.stream.time_base, self._container.start_time
        self._start_s: float | None = None  # that of the first frame, where neither says it
        if start is not None:
            self._start_s = start / 1_000_000  # av.time_base
        elif self.stream.start_time is not None and base is not None:
            self._start_s = float(self.stream.start_time * base)
        self._frames = self._decode()

    def _best_stream(self, container: InputContainer) -> VideoStream:
        from av.stream import Disposition
        from av.video.stream import VideoStream

        name = self._source.name
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            found = ", ".join(dict.fromkeys(each.type for each in container.streams)) or "nothing"
            raise VideoError(
                f"{name} has no video stream, only: {found}. Pass a file with moving pictures."
            )
        if stream.codec_context is None:  # for a coding without a decoder
            raise VideoError(
                f"{name} has pictures in a coding that FFmpeg cannot read. Convert it to H.264."
            )
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        return stream

    @property
    def num_video_streams(self) -> int:
        return len(self._container.streams.video)

    @property
    def duration_s(self) -> float | None:
        """What stream or container say; None where neither says anything that can be true."""
        start_s = self._start_s or 0.0
        if self._source.format == "matroska" and start_s > 0.5:
            return None  # some programs write when the film ends, others how long it is
        duration, base = self.stream.duration, self.stream.time_base
        if duration is not None and base is not None and duration > 0:
            # A stream's duration counts from its own start.
            begin = float((self.stream.start_time or 0) * base)
            return max(0.0, begin - start_s) + float(duration * base)
        if self._container.duration is not None and self._container.duration > 0:
            return self._container.duration / 1_000_000
        return None

    @property
    def seek_after_s(self) -> float:
        """Seconds ahead from which seeking costs less than decoding what is between.

        A seek lands on the key frame before, and decoding from there costs half the distance of
        two key frames on average. That distance is not known in advance: it is at least what was
        seen so far.
        """
        return 2 * max(self._longest_key_gap_s, 5.0)

    def next(self) -> DecodedFrame | None:
        """The next frame; None at the end of the film, or of what can be read of it.

        Raises VideoError beyond the limits.
        """
        return next(self._frames, None)

    def seek(self, time_s: float) -> bool:
        """Go to the key frame before this time; False where that did not work."""
        from av.error import FFmpegError

        base = self.stream.time_base
        if base is None:
            return False
        offset = math.floor((time_s + (self._start_s or 0.0)) / base)
        try:
            self._container.seek(offset, stream=self.stream)
        except FFmpegError:
            return False
        self._last_key_s = None
        self._frames = self._decode()
        return True

    def saw_seek(self, wanted_s: float, landed_s: float) -> None:
        """Learn the distance of key frames from where a seek landed."""
        self._longest_key_gap_s = max(self._longest_key_gap_s, wanted_s - landed_s)

    def rewind(self) -> None:
        """Begin again, with what was counted so far."""
        self.close()
        self._last_key_s = None
        self._open()

    def packet_times(self) -> Iterator[tuple[float, float]]:
        """Beginning and end of each frame in the order of the file, without decoding any."""
        from av.error import FFmpegError

        first_s, last_s = self._start_s, 0.0
        base = self.stream.time_base
        try:
            for packet in self._timed(self._container.demux(self.stream)):
                if packet.pts is None or base is None or packet.is_discard:
                    continue
                time_s = float(packet.pts * base)
                first_s = time_s if first_s is None else first_s
                last_s = max(0.0, time_s - first_s)
                yield last_s, last_s + float((packet.duration or 0) * base)
        except FFmpegError as error:
            self._note_damage(last_s, error)

    def close(self) -> None:
        container = getattr(self, "_container", None)
        if container is not None:
            container.close()
        self._file.close()

    def _decode(self) -> Iterator[DecodedFrame]:
        last_s = -math.inf
        for frame in self._timed(self._decoded_packets()):
            self._num_frames += 1
            if self._num_frames > self._limits.max_frames:
                raise VideoError(
                    f"More than {self._limits.max_frames} frames of {self._source.name} were "
                    "decoded, which is the limit. Choose a part of it, or raise the limit."
                )
            self._check_size(frame.width, frame.height)
            time_s = self._time_of(frame, last_s)
            if time_s <= last_s:
                self._problems.setdefault(
                    "order",
                    f"The time stamps go back at {last_s:.2f} s; frames that are not later than "
                    "the one before are left out.",
                )
                continue
            if time_s > self._limits.max_seconds:
                raise too_long(self._source.name, time_s, self._limits)
            if frame.key_frame:
                if self._last_key_s is not None:
                    gap = time_s - self._last_key_s
                    self._longest_key_gap_s = max(self._longest_key_gap_s, gap)
                self._last_key_s = time_s
            last_s = time_s
            yield DecodedFrame(time_s=time_s, end_s=time_s + self._length_of(frame), frame=frame)

    def _decoded_packets(self) -> Iterator[VideoFrame]:
        from av.error import EOFError as End
        from av.error import FFmpegError

        packets = self._container.demux(self.stream)
        num_bad = 0
        last_s = 0.0
        while num_bad < _MOST_BAD_PACKETS:
            try:
                packet = next(packets, None)
            except FFmpegError as error:  # the container itself is damaged: nothing follows
                self._note_damage(last_s, error)
                return
            if packet is None:
                return
            if packet.is_corrupt:
                self._note_damage(last_s, None)
                num_bad += 1
                continue
            try:
                frames = packet.decode()
            except End:
                return
            except MemoryError:
                raise
            except FFmpegError as error:
                self._note_damage(last_s, error)
                num_bad += 1
                continue
            for frame in frames:
                if frame.time is not None:
                    last_s = frame.time - (self._start_s or 0.0)
                if frame.is_corrupt:
                    self._note_damage(last_s, None)
                    continue
                num_bad = 0
                yield frame

    def _timed(self, items: Iterator[_T]) -> Iterator[_T]:
        """The items, while the time that making them takes is within the limit."""
        while True:
            started = time.perf_counter()
            item = next(items, None)
            self._spent_s += time.perf_counter() - started
            if item is None:
                return
            if self._spent_s > self._limits.max_decoding_seconds:
                raise VideoError(
                    f"Decoding {self._source.name} took more than "
                    f"{self._limits.max_decoding_seconds:g} s, which is the limit. Choose a part "
                    "of it, or raise the limit."
                )
            yield item

    def _time_of(self, frame: VideoFrame, last_s: float) -> float:
        if frame.time is not None:
            if self._start_s is None:
                self._start_s = frame.time
            return frame.time - self._start_s
        return 0.0 if last_s == -math.inf else last_s + self._length_of(frame)

    def _length_of(self, frame: VideoFrame) -> float:
        if frame.duration and frame.time_base:
            return float(frame.duration * frame.time_base)
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(1 / rate) if rate and rate > 0 else 0.04

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            raise VideoError(
                f"{self._source.name} has frames of {width} x {height} pixels; the limit is "
                f"{self._limits.max_pixels / 1e6:.3g} megapixels."
            )

    def _note_damage(self, after_s: float, error: Exception | None) -> None:
        reason = f" ({error.args[1]})" if error is not None and len(error.args) > 1 else ""
        self._problems.setdefault(
            "damage", f"The video is damaged after {max(0.0, after_s):.2f} s{reason}."
        )


def too_long(name: str, length_s: float, limits: ClipLimits) -> VideoError:
    return VideoError(
        f"{name} is {length_s:.0f} s long or longer; the limit is {limits.max_seconds:.0f} s."
    )


def _open_container(file: BinaryIO, source: Source, limits: ClipLimits) -> InputContainer:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "video", "Reading videos") from error
    try:
        return av.open(
            file,
            mode="r",
            format=source.format,
            options={**_WHITELISTS, "max_pixels": str(limits.max_pixels)},
            io_open=_open_nothing,
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, ValueError, RuntimeError) as error:
        reason = error.args[1] if len(error.args) > 1 else error
        raise VideoError(
            f"{source.name} cannot be decoded ({reason}). It is damaged, or cut off before "
            "its index, which is often at the end of the file. Get an intact copy."
        ) from error


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> BinaryIO:
    raise PermissionError("A video may not open other files.")
