"""What metrics return and compare, and the pairing of predictions with references.

Values are fractions (0.83, not 83) unless the metric says otherwise. Boxes are (x1, y1, x2, y2) in
pixels of the image; masks are COCO run lengths, since the masks of a whole data set would not fit
into memory as arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from paligemma.errors import DataError
from paligemma.masks import Rle, rle_to_mask
from paligemma.results import BoxXyxy

References = Sequence[str | Sequence[str]]
"""One entry per example: its only reference, or all that are accepted."""

Reads = Literal["text", "boxes", "masks", "expression", "words", "regions", "points"]
"""What a metric compares: texts; lists of objects as boxes or as masks; the one object that an
expression refers to; boxes with the text inside; their outlines alone; or the centers of boxes with
the boxes that they should be in."""


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """A score over a set, with the scores of its examples.

    `value` is the figure that a benchmark prints, as a fraction; `per_example` holds one score per
    example in the order of the predictions (empty where a metric exists only over the whole set);
    `details` are further figures by name.
    """

    name: str
    value: float
    per_example: tuple[float, ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)
    higher_is_better: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; undefined values (NaN) become None."""
        return {
            "name": self.name,
            "value": _plain(self.value),
            "per_example": [_plain(score) for score in self.per_example],
            "details": {name: _plain(value) for name, value in self.details.items()},
            "higher_is_better": self.higher_is_better,
        }


def mean_result(
    name: str,
    per_example: Sequence[float],
    details: Mapping[str, float] | None = None,
    *,
    higher_is_better: bool = True,
) -> MetricResult:
    """The result whose value is the plain mean over the examples."""
    return MetricResult(
        name=name,
        value=math.fsum(per_example) / len(per_example),
        per_example=tuple(per_example),
        details=dict(details or {}),
        higher_is_better=higher_is_better,
    )


def pair(
    predictions: Sequence[str], references: References, *, single: bool = False
) -> list[tuple[str, tuple[str, ...]]]:
    """Each prediction with all its references, checked.

    Raises DataError where the two lists differ in length, are empty, an example has no reference,
    or, with `single`, more than one.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise DataError(
            "Predictions and references must be lists with one entry per example; one of them is a "
            "string."
        )
    check_lengths(len(predictions), len(references))
    pairs = []
    for index, (prediction, entry) in enumerate(zip(predictions, references, strict=True)):
        accepted = (entry,) if isinstance(entry, str) else tuple(entry)
        if not accepted:
            raise DataError(f"Example {index} has no reference to compare with. Give at least one.")
        if single and len(accepted) > 1:
            raise DataError(
                f"Example {index} has {len(accepted)} references; this metric is defined for one. "
                "Choose one, or score each set of references separately."
            )
        pairs.append((prediction, accepted))
    return pairs


def check_lengths(num_predictions: int, num_references: int) -> None:
    """Raises DataError unless there are as many references as predictions, and at least one."""
    if num_predictions != num_references:
        raise DataError(
            f"There are {num_predictions} predictions and {num_references} references. "
            "They must be aligned, one entry per example."
        )
    if num_predictions == 0:
        raise DataError("There is nothing to score: the list of predictions is empty.")


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


# Objects in images

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
    factors: tuple[float, ...] = field(default=(), repr=False)
    """The scores of existence, label and coordinates, whose product is the score."""


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
