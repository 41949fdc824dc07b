"""COCO's average precision at one IoU threshold, averaged over labels.

The definition of pycocotools (`cocoeval.py`): per label, predictions of all pictures by falling
score, precision made non-increasing and read at 101 recalls; labels without a true box are left
out. No crowds, no area ranges, at most 100 predictions a picture and label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paligemma.evals.box_iou import match_boxes

_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """Boxes of one picture: float64[N, 4], a label each, and for predictions a score each."""

    boxes_xyxy: npt.NDArray[np.float64]
    labels: Sequence[str]
    scores: Sequence[float] = ()


def mean_average_precision(
    predicted: Sequence[Labeled], true: Sequence[Labeled], threshold: float = 0.5
) -> float | None:
    """Mean over the labels of the truth, 0..1; None where nothing is to be found.

    The two lists are aligned by picture.
    """
    labels = sorted({label for picture in true for label in picture.labels})
    if not labels:
        return None
    return float(
        np.mean([_average_precision(predicted, true, label, threshold) for label in labels])
    )


def _average_precision(
    predicted: Sequence[Labeled], true: Sequence[Labeled], label: str, threshold: float
) -> float:
    scores: list[float] = []
    hits: list[bool] = []
    num_true = 0
    for guess, truth in zip(predicted, true, strict=True):
        wanted = truth.boxes_xyxy[[other == label for other in truth.labels]]
        mine = [i for i, other in enumerate(guess.labels) if other == label]
        mine = sorted(mine, key=lambda i: -guess.scores[i])[:100]
        own_scores = [guess.scores[i] for i in mine]
        matches = match_boxes(guess.boxes_xyxy[mine], own_scores, wanted, threshold)
        num_true += len(wanted)
        scores += own_scores
        hits += [match is not None for match in matches]
    if not hits:
        return 0.0
    order = np.argsort(-np.asarray(scores), kind="stable")
    right = np.cumsum(np.asarray(hits)[order])
    recall = right / num_true
    return area_under(right / np.arange(1, len(right) + 1), recall)


def area_under(precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> float:
    """Of a precision-recall curve float64[F] as COCO reads it, at 101 recalls; recall rises.

    Precision at a recall is the best that any recall from there on has, and 0 beyond the last.
    """
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(best, 0.0)[at].mean())
