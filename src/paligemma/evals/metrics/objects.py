"""What metrics of boxes and masks compare: the objects found in an image, and the true ones.

Boxes are (x1, y1, x2, y2) in pixels of the image; masks are COCO run lengths, since the masks of a
whole data set would not fit into memory as arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paligemma.masks import Rle, rle_to_mask
from paligemma.results import BoxXyxy

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """An object that a model found."""

    label: str
    box_xyxy: BoxXyxy
    score: float
    rle: Rle | None = None
    coordinate_logprobs: tuple[float, ...] = field(default=(), repr=False)
    """Log-probabilities of the four location tokens, for comparing formulas of scores."""
    label_logprobs: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class ReferenceObject:
    """A true object."""

    label: str
    box_xyxy: BoxXyxy
    rle: Rle | None = None
    is_crowd: bool = False
    """Many objects in one region: finding some of them is neither right nor wrong (COCO)."""
    area: float | None = None
    """In pixels, for figures by size; None: the area of the mask, or without one of the box."""


@dataclass(frozen=True, kw_only=True)
class ReferenceImage:
    """All true objects in one image."""

    size_wh: tuple[int, int]
    objects: tuple[ReferenceObject, ...]


def mask_of(rle: Rle) -> Mask:
    """bool[H, W] of run lengths. Raises DataError when they do not fill their size."""
    height, width = rle["size"]
    return rle_to_mask(rle, (width, height), "A mask to score")


def area_of(thing: ReferenceObject) -> float:
    """The area that decides the size class, in pixels."""
    if thing.area is not None:
        return thing.area
    if thing.rle is not None:
        return float(mask_of(thing.rle).sum())
    x1, y1, x2, y2 = thing.box_xyxy
    return (x2 - x1) * (y2 - y1)
