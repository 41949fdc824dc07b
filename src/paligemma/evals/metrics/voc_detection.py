"""Pascal VOC's average precision at one IoU threshold, averaged over labels.

Unlike COCO's: a found object matches the true box that it overlaps most, and is wrong where that
one is already matched; boxes include their last pixel, so a side is x2 - x1 + 1; the whole area
under the precision curve counts (VOC from 2010 on), or precision is read at 11 recalls (VOC 2007).
Leave objects marked difficult out. Labels are compared as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from paligemma.evals.metrics.detection import Found, labels_of
from paligemma.evals.metrics.objects import FoundObject, ReferenceImage
from paligemma.evals.metrics.result import MetricResult, Reads, check_lengths
from paligemma.results import BoxXyxy

Curve = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class VocAveragePrecision:
    """`details` holds "ap/LABEL"; there are no scores per image."""

    reads: ClassVar[Reads] = "boxes"

    iou_threshold: float = 0.5
    eleven_points: bool = False

    name = "voc_ap"

    def score(self, predictions: Found, references: Sequence[ReferenceImage]) -> MetricResult:
        """NaN where there is nothing to find. Raises DataError for unequal lengths."""
        check_lengths(len(predictions), len(references))
        details = {}
        for label in labels_of(references):
            precision, recall = precision_recall(predictions, references, label, self.iou_threshold)
            area = _eleven_points if self.eleven_points else _every_point
            details[f"ap/{label}"] = area(precision, recall)
        value = float(np.mean(list(details.values()))) if details else math.nan
        return MetricResult(name=self.name, value=value, details=details)


def precision_recall(
    predictions: Found, references: Sequence[ReferenceImage], label: str, iou_threshold: float
) -> tuple[Curve, Curve]:
    """Precision and recall after each object found under a label, by decreasing score."""
    ranked: list[tuple[int, FoundObject]] = [
        (number, item)
        for number, found in enumerate(predictions)
        for item in found
        if item.label == label
    ]
    ranked.sort(key=lambda row: -row[1].score)
    true = [
        [t.box_xyxy for t in known.objects if t.label == label and not t.is_crowd]
        for known in references
    ]
    taken = [[False] * len(boxes) for boxes in true]
    right = np.zeros(len(ranked))
    for rank, (number, item) in enumerate(ranked):
        overlaps = [_pixel_iou(item.box_xyxy, box) for box in true[number]]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] >= iou_threshold and not taken[number][best]:
            taken[number][best] = True
            right[rank] = 1.0
    num_right = np.cumsum(right)
    num_true = max(1, sum(map(len, true)))
    return num_right / np.arange(1, len(ranked) + 1), num_right / num_true


def _every_point(precision: Curve, recall: Curve) -> float:
    # Precision at a recall is the best at that recall or a higher one.
    best = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1][:-1]
    return float((np.diff(recall, prepend=0.0) * best).sum())


def _eleven_points(precision: Curve, recall: Curve) -> float:
    return float(
        np.mean([precision[recall >= at].max(initial=0.0) for at in np.linspace(0.0, 1.0, 11)])
    )


def _pixel_iou(first: BoxXyxy, second: BoxXyxy) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (first, second)]
    return width * height / (sum(areas) - width * height)
