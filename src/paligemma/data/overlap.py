"""Overlap of boxes and of masks, and which predicted box matches which true one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paligemma.masks import Mask
from paligemma.results import BoxXyxy

Boxes = npt.NDArray[np.float64]


def box_iou(first_xyxy: Boxes, second_xyxy: Boxes) -> npt.NDArray[np.float64]:
    """Intersection over union of every pair: (N, 4), (M, 4) -> (N, M).

    >>> float(box_iou(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2]]))[0, 0])
    0.3333333333333333
    """
    both, areas = shared_area(first_xyxy, second_xyxy)
    either = areas[0][:, None] + areas[1][None, :] - both
    overlap: npt.NDArray[np.float64] = np.zeros_like(both)
    np.divide(both, either, out=overlap, where=either > 0)
    return overlap


def iou_of_boxes(first: BoxXyxy, second: BoxXyxy) -> float:
    """Intersection over union of two boxes."""
    pair = (np.array([box], dtype=np.float64) for box in (first, second))
    return float(box_iou(*pair)[0, 0])


def shared_area(
    first_xyxy: Boxes, second_xyxy: Boxes
) -> tuple[npt.NDArray[np.float64], list[npt.NDArray[np.float64]]]:
    """The intersection of every pair, (N, M), and the areas of both lists, (N,) and (M,)."""
    low = np.maximum(first_xyxy[:, None, :2], second_xyxy[None, :, :2])
    high = np.minimum(first_xyxy[:, None, 2:], second_xyxy[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1) for b in (first_xyxy, second_xyxy)]
    return both, areas


def mask_iou(first: Mask, second: Mask) -> float:
    """Intersection over union of two masks bool[H, W]; 0 where both are empty."""
    return float((first & second).sum() / max(1, (first | second).sum()))


def match_boxes(
    predicted_xyxy: Boxes, scores: Sequence[float], true_xyxy: Boxes, threshold: float
) -> list[int | None]:
    """For each prediction the index of the true box that it matches, or None: COCO's greedy rule.

    Predictions choose in order of decreasing score; each takes the unmatched true box that it
    overlaps most, if by at least `threshold`.
    """
    overlaps = box_iou(predicted_xyxy.reshape(-1, 4), true_xyxy.reshape(-1, 4))
    matches: list[int | None] = [None] * len(predicted_xyxy)
    free = np.ones(len(true_xyxy), dtype=bool)
    for index in np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable"):
        candidates = np.where(free, overlaps[index], -1.0)
        if candidates.size and candidates.max() >= threshold:
            best = int(candidates.argmax())
            matches[int(index)] = best
            free[best] = False
    return matches
