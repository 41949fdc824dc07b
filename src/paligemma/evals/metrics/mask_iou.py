"""Mean IoU of masks by the rules of RefCOCO, one true object per example.

Each expression names one object; the model gives one object, and an invalid output counts 0
(big_vision's evaluator of PaliGemma, `evaluators/proj/paligemma/transfers/segmentation.py`). Masks
are compared at the size of the image. No text is compared. The caller decides which outputs are
valid: all of four location and sixteen mask tokens, y2 > y1, x2 > x1, and a box that has pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from paligemma.data.overlap import iou_of_boxes
from paligemma.errors import DataError
from paligemma.evals.metrics.result import (
    FoundObject,
    MetricResult,
    Reads,
    ReferenceObject,
    check_lengths,
    mask_of,
)

_BOX_THRESHOLDS = (0.5, 0.75)
_MASK_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class MaskIou:
    """The mean over examples of |found and true| / |found or true|, in pixels.

    `per_example` are the IoUs. `details`: "ciou", the intersections of all examples over their
    unions (large objects count more; an invalid output adds its object to the unions);
    "precision@0.5" ... "precision@0.9", the fraction of examples with at least that IoU;
    "box_accuracy@0.5" and "@0.75", the same for boxes; "invalid", the fraction of invalid outputs.

    >>> MaskIou().score([None], [known]).value                   # doctest: +SKIP
    0.0
    """

    reads: ClassVar[Reads] = "expression"

    name = "mask_iou"

    def score(
        self, predictions: Sequence[FoundObject | None], references: Sequence[ReferenceObject]
    ) -> MetricResult:
        """A prediction of None is an invalid output.

        Raises DataError for unequal lengths, an object without a mask, or masks of two sizes.
        """
        shared, either = _pixels(predictions, references)
        ious = shared / np.maximum(either, 1)
        boxes = np.array(
            [
                0.0 if found is None else iou_of_boxes(found.box_xyxy, known.box_xyxy)
                for found, known in zip(predictions, references, strict=True)
            ]
        )
        details = {"ciou": float(shared.sum() / max(1, either.sum()))}
        details |= {f"precision@{at}": float((ious >= at).mean()) for at in _MASK_THRESHOLDS}
        details |= {f"box_accuracy@{at}": float((boxes >= at).mean()) for at in _BOX_THRESHOLDS}
        details["invalid"] = sum(found is None for found in predictions) / len(predictions)
        return MetricResult(
            name=self.name,
            value=float(ious.mean()),
            per_example=tuple(ious.tolist()),
            details=details,
        )


def _pixels(
    predictions: Sequence[FoundObject | None], references: Sequence[ReferenceObject]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Pixels in both masks, and in at least one, of each example: float64[N] twice."""
    check_lengths(len(predictions), len(references))
    counts = []
    for number, (found, known) in enumerate(zip(predictions, references, strict=True)):
        if known.rle is None or (found is not None and found.rle is None):
            which = "The true object" if known.rle is None else "The found object"
            raise DataError(
                f"{which} of example {number} has no mask. Mask IoU needs both masks; for boxes "
                "use box_map."
            )
        true = mask_of(known.rle)
        if found is None or found.rle is None:
            counts.append((0, int(true.sum())))
            continue
        mask = mask_of(found.rle)
        if mask.shape != true.shape:
            raise DataError(
                f"The masks of example {number} have {mask.shape} and {true.shape} pixels (height, "
                "width). Both must cover the whole image."
            )
        counts.append((int((mask & true).sum()), int((mask | true).sum())))
    shared, either = np.array(counts, dtype=np.float64).T
    return shared, either
