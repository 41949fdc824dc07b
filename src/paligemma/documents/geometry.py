"""Boxes and quarter turns of pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, cast

from paligemma.results import BoxXyxy

Box = BoxXyxy
Turn = Literal[0, 90, 180, 270]
"""Degrees, clockwise."""
_SLANTED = 10.0  # degrees


def turned_size(size_wh: tuple[float, float], turn: Turn) -> tuple[float, float]:
    """The size of a page after a turn."""
    return size_wh if turn in (0, 180) else (size_wh[1], size_wh[0])


def turn_box(box: Box, size_wh: tuple[float, float], turn: Turn) -> Box:
    """A box after its page, of this size, has been turned.

    >>> turn_box((0, 0, 10, 5), (100, 50), 90)
    (45, 0, 50, 10)
    """
    width, height = size_wh
    x0, y0, x1, y1 = box
    match turn:
        case 0:
            return box
        case 90:
            return height - y1, x0, height - y0, x1
        case 180:
            return width - x1, height - y1, width - x0, height - y0
        case _:
            return y0, width - x1, y1, width - x0


def add_turns(first: int, second: int) -> Turn:
    """Both turns together."""
    return cast("Turn", (first + second) % 360)


def is_turned(degrees: float) -> bool:
    """Whether text at this angle to other text is no part of its lines, even if a scan of them was
    not laid straight."""
    return abs((degrees + 180) % 360 - 180) > _SLANTED


def turn_by_direction(directions: Iterable[Turn | None]) -> Turn:
    """The turn that makes most letters upright; 0 without letters."""
    counts = Counter(direction for direction in directions if direction is not None)
    return max(counts, key=lambda turn: (counts[turn], turn == 0), default=0)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of them."""
    return (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )
