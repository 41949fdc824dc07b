"""What metrics on boxes and masks compare: what was found in a picture, and what is there.

Boxes are (x1, y1, x2, y2) in pixels of the picture; masks are COCO run lengths, since those of a
whole data set would not fit into memory as arrays. Knows no model and no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paligemma.data.mask_shapes import rle_to_mask
from paligemma.masks import Rle
from paligemma.results import BoxXyxy

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """A thing that a model says is there."""

    label: str
    box_xyxy: BoxXyxy
    score: float
    rle: Rle | None = None
    coordinate_logprobs: tuple[float, ...] = field(default=(), repr=False)
    """Of the four location tokens; where the model wrote some. For comparing formulas of scores."""
    label_logprobs: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class ReferenceObject:
    """A thing that is there."""

    label: str
    box_xyxy: BoxXyxy
    rle: Rle | None = None
    is_crowd: bool = False
    """Many things in one region: finding some of it is neither right nor wrong (COCO)."""
    area: float | None = None
    """In pixels, for the split by size; None takes the mask's, or without one the box's."""


@dataclass(frozen=True, kw_only=True)
class ReferenceImage:
    """All that is there to be found in one picture."""

    size_wh: tuple[int, int]
    objects: tuple[ReferenceObject, ...]


def mask_of(rle: Rle) -> Mask:
    """bool[H, W] of run lengths. Raises DataError when they do not fill their size."""
    height, width = rle["size"]
    return rle_to_mask(rle, (width, height), "A mask to be scored")


def area_of(thing: ReferenceObject) -> float:
    """What the split by size goes by, in pixels."""
    if thing.area is not None:
        return thing.area
    if thing.rle is not None:
        return float(mask_of(thing.rle).sum())
    x1, y1, x2, y2 = thing.box_xyxy
    return (x2 - x1) * (y2 - y1)
