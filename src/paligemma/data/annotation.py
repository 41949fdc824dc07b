"""Labels and boxes as annotators write them: checked, cleaned, and moved into the picture.

Knows the rules of the object grammar for labels; knows no file format.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paligemma.data.record import Mask, TrueObject
from paligemma.errors import DataError
from paligemma.processor.image import MAX_PIXELS
from paligemma.results import BoxXyxy

MAX_OVERHANG = 2.0
"""Pixels by which a box may reach out of its picture: tools round, and count from 0 or 1."""
CLIPPED = "boxes cut to their picture, which they left by at most 2 pixels"
_PLACE = re.compile(r"<(loc\d{4}|seg\d{3})>")


def clean_label(label: object, where: str) -> str:
    """The label with single spaces.

    Raises DataError for an empty one, and for one that would not be read back as one label.

    >>> clean_label(" traffic  light", "")
    'traffic light'
    """
    text = " ".join(label.split()) if isinstance(label, str) else ""
    if not text:
        raise DataError(f"{where}: an object has the label {label!r}; text is needed. Name it.")
    if ";" in text or _PLACE.search(text):
        raise DataError(
            f"{where}: the label {text!r} holds a semicolon or a place token, which have a meaning "
            "of their own in lists of objects. Rename the class."
        )
    return text


def clean_box(
    box_xyxy: Sequence[float], size_wh: tuple[int, int], where: str, tally: Counter[str]
) -> BoxXyxy:
    """The box in pixels, cut to the picture; `tally` counts those that were cut.

    Raises DataError for a box without area, or one that leaves the picture by more than
    `MAX_OVERHANG` pixels: it belongs to another picture, or is in another unit or order.
    """
    try:
        x1, y1, x2, y2 = (float(edge) for edge in box_xyxy)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a box is {box_xyxy!r}; four numbers are needed.") from error
    shown = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 <= x1 or y2 <= y1:
        raise DataError(
            f"{where}: the box {shown} (x1, y1, x2, y2) has no area. Remove or redraw it."
        )
    width, height = size_wh
    overhang = max(-x1, -y1, x2 - width, y2 - height)
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if overhang > MAX_OVERHANG or inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise DataError(
            f"{where}: the box {shown} (x1, y1, x2, y2) reaches out of its picture of {width} x "
            f"{height} pixels. Check the unit and the order of its numbers, and the picture."
        )
    if overhang > 0:
        tally[CLIPPED] += 1
    return inside


def box_of_mask(mask: Mask, where: str) -> BoxXyxy:
    """The box around the mask bool[H, W]. Raises DataError for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise DataError(f"{where}: a mask is empty. Remove the object, or redraw it.")
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def make_object(
    label: object,
    box_xyxy: Sequence[float],
    size_wh: tuple[int, int],
    where: str,
    tally: Counter[str],
    make_mask: Callable[[], Mask] | None = None,
    area: float | None = None,
) -> TrueObject:
    """A checked object. Raises DataError that begins with `where`."""
    return TrueObject(
        label=clean_label(label, where),
        box_xyxy=clean_box(box_xyxy, size_wh, where, tally),
        make_mask=make_mask,
        area=area,
    )


def size_of(width: Any, height: Any, where: str) -> tuple[int, int] | None:
    """A picture's size as an annotation has it; None where it has none.

    Raises DataError for what is no size.
    """
    if width in (None, 0, "0", "") and height in (None, 0, "0", ""):
        return None
    try:
        size = int(width), int(height)
    except (TypeError, ValueError, OverflowError):
        size = 0, 0
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"{where}: the picture's size is given as {width!r} x {height!r}; two whole numbers "
            f"above 0 are needed, and at most {MAX_PIXELS} pixels are read."
        )
    return size
