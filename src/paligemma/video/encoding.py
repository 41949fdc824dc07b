"""Write films with PyAV: MP4 files that browsers and players show, whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from paligemma.errors import MissingExtraError, OptionError
from paligemma.writing import replacing

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# 25, 30 and 30000/1001 frames a second come out even; MPEG-4 knows nothing finer than 1/65535.
_TICKS_PER_SECOND = 60_000
# Without frames that refer to later ones, so that each packet lasts as long as its image.
_QUALITY = {
    "libx264": {"crf": "20", "preset": "veryfast", "bf": "0"},
    "mpeg4": {"qmin": "2", "qmax": "5"},
}


def check_film_name(path: Path) -> None:
    """Raises OptionError for a film that cannot be written there: a file that ends in .mp4."""
    if path.suffix.lower() != ".mp4":
        raise OptionError(f"{str(path)!r} is not a name for a film. Choose one that ends in .mp4.")
    folder = path.absolute().parent
    if not folder.is_dir() or path.is_dir():
        problem = f"{str(path)!r} is a folder" if path.is_dir() else f"{folder} does not exist"
        raise OptionError(f"The film cannot be written: {problem}. Choose another name.")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"The film cannot be written: the folder {folder} is not writable.")


def write_film(path: str | Path, frames: Iterable[tuple[float, Image.Image]]) -> None:
    """Write images, each with the time at which it is shown, as an MP4 file without sound.

    Times are in seconds and ascend; the last image is shown for as long as the one before. Images
    are RGB and of one size; one with an odd side gets one more row or column, as the coding wants
    even ones. H.264 where PyAV has an encoder for it, else MPEG-4. The file takes its name when it
    is complete.

    Raises OptionError for a name, times or images that cannot be written, MissingExtraError without
    PyAV.
    """
    path = Path(path).expanduser()
    check_film_name(path)
    with replacing(path) as unfinished:
        _encode(unfinished, frames)


def _encode(path: Path, frames: Iterable[tuple[float, Image.Image]]) -> None:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "video", "Writing a film") from error
    timed = _with_lengths(frames)
    first = next(timed, None)
    if first is None:
        raise OptionError("There is no image to make a film of.")
    size = first[2].size
    lengths: dict[int | None, int] = {}  # of the images that the encoder still has, by begin
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as output:
        stream = _add_stream(output, size)
        for ticks, length, image in chain([first], timed):
            if image.size != size:
                raise OptionError(f"The film is of {size} pixels, and an image of {image.size}.")
            frame = av.VideoFrame.from_ndarray(_even_pixels(image), format="rgb24")
            frame.pts, frame.time_base = ticks, Fraction(1, _TICKS_PER_SECOND)
            lengths[ticks] = length
            _mux(output, stream.encode(frame), lengths)
        _mux(output, stream.encode(None), lengths)


def _add_stream(output: OutputContainer, size_wh: tuple[int, int]) -> VideoStream:
    codec = _encoder()
    stream = cast("VideoStream", output.add_stream(codec, options=_QUALITY[codec]))
    stream.width, stream.height = (side + side % 2 for side in size_wh)
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, _TICKS_PER_SECOND)
    return stream


def _mux(
    output: OutputContainer, packets: list[Packet[Any]], lengths: dict[int | None, int]
) -> None:
    for packet in packets:
        packet.duration = lengths.pop(packet.pts)  # encoders think of an even rate
        output.mux(packet)


def _encoder() -> str:
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    with contextlib.suppress(UnknownCodecError):
        Codec("libx264", "w")
        return "libx264"
    return "mpeg4"


def _with_lengths(
    frames: Iterable[tuple[float, Image.Image]],
) -> Iterator[tuple[int, int, Image.Image]]:
    """Begin and length of each image, in ticks."""
    length = _TICKS_PER_SECOND // 25
    before: tuple[int, Image.Image] | None = None
    for time_s, image in frames:
        ticks = round(time_s * _TICKS_PER_SECOND)
        if before is not None:
            length = ticks - before[0]
            if length <= 0:
                raise OptionError(f"The image at {time_s} s is not later than the one before.")
            yield before[0], length, before[1]
        before = ticks, image
    if before is not None:
        yield before[0], length, before[1]


def _even_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8[H, W, 3] with even sides: where one is odd, its last row or column once more."""
    width, height = image.size
    return np.pad(np.asarray(image), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
