"""Videos of strangers: frames that a process of its own decodes, one process per video."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from paligemma.errors import OptionError, VideoError
from paligemma.sandbox.process import FileMessages, ReaderProcess
from paligemma.server.settings import Limits
from paligemma.video.clip import ClipInfo, Frame

_CRASHED = (
    "The video cannot be read: it crashes the program that reads it. Get an intact copy, or "
    "convert it to H.264 in an MP4 file."
)
MODULE = "paligemma.server.video_child"
"""The program of the process."""
VIDEOS = FileMessages(
    error=VideoError,
    crashed=_CRASHED,
    slow="A part of the video took too long to decode. Send a shorter or smaller one.",
    memory="The video needs more memory than this server gives it. Send one with smaller frames.",
    damaged="The video cannot be read: it is damaged. Get an intact copy.",
)
_MAX_PROBLEMS = 10


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A video that a client sent."""

    data: bytes


class RemoteClip:
    """A `FrameSource` whose file is in another process. Frames are made smaller there."""

    def __init__(self, process: ReaderProcess, file: VideoFile, limits: Limits, side: int) -> None:
        """`side`: the model's resolution, of which frames keep twice as much.

        Raises VideoError for a file that is no video.
        """
        self._process = process
        self._seconds = limits.document_page_seconds
        self._most = 3 * limits.max_pixels
        self._side = side
        self._state: dict[str, Any] = {}
        request: dict[str, object] = {
            "call": "open",
            "limits": {
                "max_file_bytes": limits.max_video_bytes,
                "max_seconds": limits.max_video_seconds,
                "max_pixels": limits.max_pixels,
                "max_frames": limits.max_video_frames,
                "max_decoding_seconds": limits.document_seconds,
            },
        }
        header, _ = self._call(request, file.data)
        self._info = _info(header.get("info"))

    @property
    def info(self) -> ClipInfo:
        """What the film is."""
        return self._info

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the film, as far as it was decoded yet."""
        problems = self._state.get("problems", ())
        return tuple(map(str, problems[:_MAX_PROBLEMS])) if isinstance(problems, list) else ()

    @property
    def is_damaged(self) -> bool:
        """Whether frames were missing, as far as it was decoded yet."""
        return bool(self._state.get("is_damaged"))

    def frames(
        self,
        times: Iterable[float] | None = None,
        *,
        every_s: float | None = None,
        fps: float | None = None,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Generator[Frame]:
        """As `Clip.frames`, one pass at a time."""
        which = {"every_s": every_s, "fps": fps, "start_s": start_s, "end_s": end_s}
        if times is not None:
            which = {"times": list(times)}  # type: ignore[dict-item]
        self._call({"call": "frames", "which": which})
        last_s = 0.0
        while True:
            header, data = self._call({"call": "next", "resolution": self._side})
            if header.get("is_end"):
                return
            frame = _frame(header, data)
            if frame.time_s < last_s:
                raise VideoError(_CRASHED)
            last_s = frame.time_s
            yield frame

    def _call(
        self, request: dict[str, object], payload: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        header, data = self._process.call(request, payload, most=self._most, seconds=self._seconds)
        if "problems" in header:
            self._state = header
        return header, data


def check_questions(number: int, limits: Limits) -> None:
    """Raises OptionError for more frames than one request may ask about."""
    if number > limits.max_document_questions:
        raise OptionError(
            f"The request asks about {number} frames; the limit is "
            f"{limits.max_document_questions}. Choose a larger `every`, fewer `frames` or a part "
            "of the video."
        )


def _info(values: object) -> ClipInfo:
    """Raises VideoError for values that are not of the expected form."""
    try:
        assert isinstance(values, dict)
        rate = values["frames_per_second"]
        return ClipInfo(
            name="",
            width=_whole(values["width"]),
            height=_whole(values["height"]),
            duration_s=_number(values["duration_s"]),
            frames_per_second=None if rate is None else _number(rate),
            codec=str(values["codec"])[:40],
            stream_index=_whole(values["stream_index"]),
            num_video_streams=_whole(values["num_video_streams"]),
        )
    except (AssertionError, LookupError, TypeError):
        raise VideoError(_CRASHED) from None


def _frame(header: dict[str, Any], data: bytes) -> Frame:
    try:
        width, height = map(_whole, header["size_wh"])
        if width < 1 or height < 1 or len(data) != 3 * width * height:
            raise TypeError
        image = Image.frombytes("RGB", (width, height), data)
        return Frame(_whole(header["index"]), _number(header["time_s"]), image)
    except (LookupError, TypeError, ValueError):
        raise VideoError(_CRASHED) from None


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError
    return value


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:  # type: ignore[arg-type, operator]
        raise TypeError
    return float(value)  # type: ignore[arg-type]
