"""Boxes as four `<loc>` tokens and back.

A box is (x1, y1, x2, y2) in fractions of the picture's width and height; its tokens are 1024
bins in the order y1, x1, y2, x2. Bins follow big_vision (`pp/proj/paligemma`): round(v * 1023),
read back as bin / 1023. Other parsers divide by 1024, which differs by at most 0.1 % of a side.

Knows no tokenizer and no pixels.
"""

from __future__ import annotations

import math

from paligemma.config import NUM_LOC_TOKENS
from paligemma.errors import InputError
from paligemma.results import BoxXyxy

BoxYxyxBins = tuple[int, int, int, int]
_LAST_BIN = NUM_LOC_TOKENS - 1


def encode_box(box_normalized_xyxy: BoxXyxy) -> BoxYxyxBins:
    """Four bins, 0 to 1023, y first; edges outside the picture are moved to its border.

    Raises InputError when an edge is not a finite number.

    >>> encode_box((0.25, 0.0, 1.0, 0.5))
    (0, 256, 512, 1023)
    """
    if not all(math.isfinite(edge) for edge in box_normalized_xyxy):
        raise InputError(f"The box {box_normalized_xyxy} has an edge that is not a finite number.")
    x1, y1, x2, y2 = (
        round(min(max(float(edge), 0.0), 1.0) * _LAST_BIN) for edge in box_normalized_xyxy
    )
    return y1, x1, y2, x2


def decode_box(box_yxyx_bins: BoxYxyxBins) -> BoxXyxy:
    """The box in fractions, x first.

    >>> decode_box((0, 341, 682, 1023)) == (1 / 3, 0.0, 1.0, 2 / 3)
    True
    """
    y1, x1, y2, x2 = (bin_ / _LAST_BIN for bin_ in box_yxyx_bins)
    return x1, y1, x2, y2


def format_box(box_normalized_xyxy: BoxXyxy) -> str:
    """The box as the text of its four tokens.

    >>> format_box((0.25, 0.0, 1.0, 0.5))
    '<loc0000><loc0256><loc0512><loc1023>'
    """
    return "".join(f"<loc{bin_:04d}>" for bin_ in encode_box(box_normalized_xyxy))
