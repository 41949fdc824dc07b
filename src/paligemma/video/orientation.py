"""Turn the frames of a film upright, by the display matrix that the container carries."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Where the matrix moves a step to the right and a step down, in whole steps (right, down), and the
# operation of Pillow that does the same. Pillow's rotations are counterclockwise.
_OPERATIONS: dict[tuple[int, int, int, int], Image.Transpose | None] = {
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
_BY_ROTATION = {0: (1, 0, 0, 1), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}
"""Degrees counterclockwise -> steps."""


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """The steps to which the matrix turns a step to the right and a step down.

    The identity where there is no matrix, None where it does more than turn by quarters and mirror.
    ISO 14496-12, 6.2.2: nine numbers (a, b, u, c, d, v, x, y, w) that send the point (p, q) to
    (a p + c q, b p + d q); the first two columns in 16.16 fixed point.
    """
    from av.sidedata.sidedata import SideDataContainer, Type

    try:
        # Not `frame.side_data`, which the frame keeps and which refers to the frame: hundreds of
        # them would stay in memory, megabytes each, until the garbage collector comes by.
        data: Any = SideDataContainer(frame)[Type.DISPLAYMATRIX]  # type: ignore[call-arg]
    except KeyError:
        return 1, 0, 0, 1
    except ValueError:  # PyAV does not know some kinds of side data, such as EXIF
        return _BY_ROTATION.get(frame.rotation % 360)
    a, b, _, c, d, *_ = struct.unpack("=9i", memoryview(data)[:36])
    largest = max(map(abs, (a, b, c, d))) or 1
    exact = [value / largest for value in (a, b, c, d)]
    steps = round(exact[0]), round(exact[1]), round(exact[2]), round(exact[3])
    is_turn = all(abs(value - step) < 0.01 for value, step in zip(exact, steps, strict=True))
    return steps if is_turn and steps in _OPERATIONS else None


def upright(frame: VideoFrame) -> tuple[Image.Image, bool]:
    """The frame as an RGB image turned upright, and whether its matrix could be followed."""
    # In this thread: others would be started for each frame, and need memory of their own.
    image: Image.Image = frame.to_image(threads=1)  # type: ignore[no-untyped-call]
    matrix = display_matrix(frame)
    operation = None if matrix is None else _OPERATIONS[matrix]
    return (image if operation is None else image.transpose(operation)), matrix is not None
