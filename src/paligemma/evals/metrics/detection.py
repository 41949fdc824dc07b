"""COCO's and Pascal VOC's average precision, with the model's own scores.

COCO's figures are computed by faster-coco-eval (extra "eval") and equal those of pycocotools: the
mean over IoU 0.50, 0.55, ... 0.95 and over labels of the area under the precision-recall curve,
read at 101 recalls, with at most 100 objects per image and label; crowd regions are neither right
nor wrong. `MatchTable` does the same matching in numpy, so that a resample of images gets its
average precision without matching again; tests compare the two. Labels are compared as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from paligemma.data.overlap import shared_area
from paligemma.errors import DataError, MissingExtraError
from paligemma.evals.metrics.result import (
    FoundObject,
    MetricResult,
    Reads,
    ReferenceImage,
    ReferenceObject,
    area_of,
    check_lengths,
)
from paligemma.results import BoxXyxy

Kind = Literal["box", "mask"]
Found = Sequence[Sequence[FoundObject]]
"""The objects of each image."""

Array = npt.NDArray[np.float64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_MAX_FOUND = 100
# The twelve figures in the order of the COCO API.
_FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MeanAveragePrecision:
    """mAP of boxes or masks over IoU 0.50:0.95.

    `details`: ap50, ap75, ap_small (below 32 x 32 pixels of area), ap_medium, ap_large (from
    96 x 96), ar1, ar10, ar100 (average recall with that many objects per image), ar_small, ...,
    "ap/LABEL" for each label, and f1 at IoU 0.5 over all images; NaN where there is nothing to
    find. `per_example` is each image's F1 at IoU 0.5 with all its objects, whatever their score
    (1 where there is nothing to find and nothing was found, NaN where all that is there are
    crowds): its mean is not the value.

    >>> MeanAveragePrecision(kind="box").score(found, known).value     # doctest: +SKIP
    0.5046
    """

    kind: Kind = "box"

    @property
    def reads(self) -> Reads:
        return "masks" if self.kind == "mask" else "boxes"

    @property
    def name(self) -> str:
        return f"{self.kind}_map"

    def score(self, predictions: Found, references: Sequence[ReferenceImage]) -> MetricResult:
        """Raises DataError for unequal lengths or an object without the mask that is compared."""
        check_lengths(len(predictions), len(references))
        _check_masks(predictions, references, self.kind)
        run = _run_coco(predictions, references, self.kind)
        figures = {
            name: math.nan if value < 0 else float(value)
            for name, value in zip(_FIGURES, run.stats, strict=True)
        }
        labels = labels_of(references)
        precision = np.asarray(run.eval["precision"])[:, :, :, 0, -1]  # (IoU, recall, label)
        for index, label in enumerate(labels):
            figures[f"ap/{label}"] = _mean_or_nan(precision[:, :, index])
        table = match_table(predictions, references, self.kind)
        tallies = table.tallies()
        totals = tallies.sum(axis=0)
        figures["f1"] = f1_of(*totals) if totals[2] else math.nan
        return MetricResult(
            name=self.name,
            value=figures.pop("ap"),
            per_example=tuple(
                f1_of(*row) if row[1] or row[2] or not known.objects else math.nan
                for row, known in zip(tallies, references, strict=True)
            ),
            details=figures,
        )

    def statistic(
        self, predictions: Found, references: Sequence[ReferenceImage]
    ) -> Callable[[npt.NDArray[np.int64]], float]:
        """The value as a function of how often each image was drawn."""
        return match_table(predictions, references, self.kind).mean_average_precision


def f1_of(right: float, num_found: float, num_true: float) -> float:
    """2 right / (num_found + num_true); 1 where there was nothing to find and nothing was found.

    >>> f1_of(1, 2, 2)
    0.5
    """
    return float(2 * right / (num_found + num_true)) if num_found + num_true else 1.0


@dataclass(frozen=True, kw_only=True)
class _LabelTable:
    """Everything found under one label, by decreasing score; F rows."""

    image: npt.NDArray[np.int64]  # (F,)
    score: Array  # (F,)
    hit: npt.NDArray[np.bool_]  # (F, 10), at each IoU threshold
    ignored: npt.NDArray[np.bool_]  # (F, 10)
    num_true: npt.NDArray[np.int64]  # (N,), by image


@dataclass(frozen=True, kw_only=True)
class MatchTable:
    """Which found objects match a true one, at ten IoU thresholds, by label."""

    num_images: int
    labels: dict[str, _LabelTable]
    """All labels of true and found objects; a label that no true object has gets no precision."""

    def mean_average_precision(
        self, counts: npt.NDArray[np.int64] | None = None, thresholds: Sequence[int] = range(10)
    ) -> float:
        """The mean over labels and thresholds, where image i counts `counts[i]` times.

        `thresholds` are positions in IOU_THRESHOLDS: (0,) is AP at IoU 0.5. NaN where there is
        nothing to find.
        """
        if counts is None:
            counts = np.ones(self.num_images, dtype=np.int64)
        values = [_average_precision(table, counts, thresholds) for table in self.labels.values()]
        values = [value for value in values if not math.isnan(value)]
        return float(np.mean(values)) if values else math.nan

    def tallies(self, threshold: int = 0) -> npt.NDArray[np.int64]:
        """int64[N, 3]: correct, found and true objects of each image at one IoU threshold."""
        rows = np.zeros((self.num_images, 3), dtype=np.int64)
        for table in self.labels.values():
            counted = ~table.ignored[:, threshold]
            np.add.at(rows[:, 0], table.image[counted & table.hit[:, threshold]], 1)
            np.add.at(rows[:, 1], table.image[counted], 1)
            rows[:, 2] += table.num_true
        return rows

    def outcomes(self, threshold: int = 0) -> tuple[Array, ...]:
        """(score, correct, image) of everything found, float64[F] each, at one IoU threshold.

        Objects inside a crowd region are left out.
        """
        parts = [
            (t.score[keep], t.hit[keep, threshold].astype(np.float64), t.image[keep])
            for t in self.labels.values()
            for keep in [~t.ignored[:, threshold]]
        ]
        if not parts:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        scores, correct, images = (np.concatenate(column) for column in zip(*parts, strict=True))
        return scores, correct, images.astype(np.float64)


def match_table(
    predictions: Found, references: Sequence[ReferenceImage], kind: Kind = "box"
) -> MatchTable:
    """COCO's greedy matching, per image and label.

    In order of decreasing score, each found object takes the unmatched true object that it overlaps
    most; a crowd region only where no other is left, and then it does not count.
    """
    _check_masks(predictions, references, kind)
    labels = sorted({*labels_of(references), *(f.label for found in predictions for f in found)})
    rows: dict[str, list[tuple[int, float, Any, Any]]] = {label: [] for label in labels}
    num_true = {label: np.zeros(len(references), dtype=np.int64) for label in labels}
    for number, (found, known) in enumerate(zip(predictions, references, strict=True)):
        for label in {item.label for item in found} | {thing.label for thing in known.objects}:
            # Crowds last, as COCO tries them; both sorts are stable.
            true = sorted((t for t in known.objects if t.label == label), key=lambda t: t.is_crowd)
            same = sorted((f for f in found if f.label == label), key=lambda f: -f.score)
            same = same[:_MAX_FOUND]
            num_true[label][number] = sum(not t.is_crowd for t in true)
            if not same:
                continue
            crowd = np.array([t.is_crowd for t in true], dtype=bool)
            hits, ignored = _match(_overlaps(same, true, crowd, kind), crowd)
            rows[label] += [
                (number, item.score, hits[i], ignored[i]) for i, item in enumerate(same)
            ]
    return MatchTable(
        num_images=len(references),
        labels={label: _label_table(rows[label], num_true[label]) for label in labels},
    )


def _overlaps(
    found: Sequence[FoundObject],
    true: Sequence[ReferenceObject],
    crowd: npt.NDArray[np.bool_],
    kind: Kind,
) -> Array:
    """float64[F, T]: IoU of each pair; with a crowd region the part of the found object in it."""
    if not true:
        return np.zeros((len(found), 0))
    if kind == "mask":
        shapes = [[_shape(item, kind) for item in group] for group in (found, true)]
        ious = _coco().mask.iou(*shapes, [int(c) for c in crowd])
        return np.asarray(ious, dtype=np.float64).reshape(len(found), len(true))
    boxes = [np.array([t.box_xyxy for t in group], dtype=np.float64) for group in (found, true)]
    shared, (found_areas, true_areas) = shared_area(*boxes)
    alone = found_areas[:, None]
    either = np.where(crowd, alone, alone + true_areas - shared)
    overlaps: Array = np.zeros_like(shared)
    np.divide(shared, either, out=overlaps, where=either > 0)
    return overlaps


def _match(
    overlaps: Array, crowd: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(F, T) overlaps, rows by decreasing score, crowds in the last columns -> (F, 10) twice."""
    shape = (len(overlaps), len(IOU_THRESHOLDS))
    hits, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for step, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(len(crowd), dtype=bool)
        for row, overlap in enumerate(overlaps):
            for candidates in (free & ~crowd, crowd):
                # Of equal overlaps COCO takes the last one.
                usable = np.flatnonzero(candidates & (overlap >= min(threshold, 1 - 1e-10)))
                if usable.size:
                    best = usable[::-1][overlap[usable[::-1]].argmax()]
                    hits[row, step], ignored[row, step] = not crowd[best], crowd[best]
                    free[best] = False
                    break
    return hits, ignored


def _label_table(
    rows: list[tuple[int, float, Any, Any]], num_true: npt.NDArray[np.int64]
) -> _LabelTable:
    rows = sorted(rows, key=lambda row: -row[1])
    steps = len(IOU_THRESHOLDS)
    return _LabelTable(
        image=np.array([row[0] for row in rows], dtype=np.int64),
        score=np.array([row[1] for row in rows], dtype=np.float64),
        hit=np.array([row[2] for row in rows], dtype=bool).reshape(-1, steps),
        ignored=np.array([row[3] for row in rows], dtype=bool).reshape(-1, steps),
        num_true=num_true,
    )


def _average_precision(
    table: _LabelTable, counts: npt.NDArray[np.int64], thresholds: Sequence[int]
) -> float:
    num_true = int(counts @ table.num_true)
    if not num_true:
        return math.nan
    weight = counts[table.image]
    drawn = weight > 0
    weight, hit, ignored = weight[drawn], table.hit[drawn], table.ignored[drawn]
    if not len(weight):
        return 0.0
    right = np.cumsum((hit & ~ignored) * weight[:, None], axis=0)
    found = np.cumsum(~ignored * weight[:, None], axis=0)
    precision, recall = right / np.maximum(found, 1), right / num_true
    areas = [_area_under(precision[:, step], recall[:, step]) for step in thresholds]
    return float(np.mean(areas))


def _area_under(precision: Array, recall: Array) -> float:
    """The area under a precision-recall curve float64[F] as COCO computes it, from 101 recalls.

    Precision at a recall is the best at that recall or a higher one, and 0 beyond the last.
    """
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(best, 0.0)[at].mean())


def labels_of(references: Sequence[ReferenceImage]) -> list[str]:
    return sorted({thing.label for known in references for thing in known.objects})


def _check_masks(predictions: Found, references: Sequence[ReferenceImage], kind: Kind) -> None:
    if kind == "box":
        return
    for number, (found, known) in enumerate(zip(predictions, references, strict=True)):
        things: list[FoundObject | ReferenceObject] = [*found, *known.objects]
        bare = next((thing for thing in things if thing.rle is None), None)
        if bare is not None:
            which = "A found object" if isinstance(bare, FoundObject) else "A true object"
            raise DataError(
                f"{which} in image {number}, {bare.label!r}, has a box but no mask. Use box_map, "
                "or give masks."
            )


def _shape(item: Any, kind: Kind) -> Any:
    if kind == "mask":
        return {"size": item.rle["size"], "counts": item.rle["counts"].encode()}
    return _xywh(item.box_xyxy)


def _xywh(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]


def _coco() -> ModuleType:
    try:
        import faster_coco_eval
    except ImportError:
        raise MissingExtraError(
            "faster-coco-eval", "eval", "Average precision over 0.50:0.95"
        ) from None
    module: ModuleType = faster_coco_eval
    return module


def _run_coco(predictions: Found, references: Sequence[ReferenceImage], kind: Kind) -> Any:
    coco = _coco()
    ids = {label: number for number, label in enumerate(labels_of(references), start=1)}

    def rows(groups: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        annotations: list[dict[str, Any]] = []
        for image_id, group in enumerate(groups, start=1):
            for item in group:
                if item.label not in ids:
                    continue
                row: dict[str, Any] = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[item.label],
                }
                # With a box next to the mask, sizes would be those of the box.
                row["bbox" if kind == "box" else "segmentation"] = _shape(item, kind)
                if isinstance(item, FoundObject):
                    row["score"] = item.score
                else:
                    row |= {"area": area_of(item), "iscrowd": int(item.is_crowd)}
                annotations.append(row)
        return annotations

    images = [
        {"id": number, "width": image.size_wh[0], "height": image.size_wh[1]}
        for number, image in enumerate(references, start=1)
    ]
    truth = coco.COCO(
        {
            "images": images,
            "categories": [{"id": number, "name": label} for label, number in ids.items()],
            "annotations": rows([image.objects for image in references]),
        }
    )
    results = rows(predictions)
    empty = {"images": images, "categories": truth.dataset["categories"], "annotations": []}
    run = coco.COCOeval_faster(
        truth,
        truth.loadRes(results) if results else coco.COCO(empty),
        "bbox" if kind == "box" else "segm",
        rle_iou_max_workers=1,
    )
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run


def _mean_or_nan(precision: Array) -> float:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else math.nan


@dataclass(frozen=True, kw_only=True)
class VocAveragePrecision:
    """Pascal VOC's average precision of boxes at one IoU threshold, averaged over labels.

    Unlike COCO's: a found object matches the true box that it overlaps most, and is wrong where
    that one is already matched; boxes include their last pixel, so a side is x2 - x1 + 1; the whole
    area under the precision curve counts (VOC from 2010 on), or precision is read at 11 recalls
    (VOC 2007). Objects marked as difficult (`is_crowd`) are not missed, and what is found there is
    neither right nor wrong. `details` holds "ap/LABEL"; there are no scores per image.
    """

    reads: ClassVar[Reads] = "boxes"

    iou_threshold: float = 0.5
    eleven_points: bool = False

    name = "voc_ap"

    def score(self, predictions: Found, references: Sequence[ReferenceImage]) -> MetricResult:
        """NaN where there is nothing to find. Raises DataError for unequal lengths."""
        check_lengths(len(predictions), len(references))
        details = {}
        counted = {t.label for known in references for t in known.objects if not t.is_crowd}
        for label in sorted(counted):
            precision, recall = precision_recall(predictions, references, label, self.iou_threshold)
            area = _eleven_points if self.eleven_points else _every_point
            details[f"ap/{label}"] = area(precision, recall)
        value = float(np.mean(list(details.values()))) if details else math.nan
        return MetricResult(name=self.name, value=value, details=details)


def precision_recall(
    predictions: Found, references: Sequence[ReferenceImage], label: str, iou_threshold: float
) -> tuple[Array, Array]:
    """Precision and recall after each object found under a label, by decreasing score."""
    ranked: list[tuple[int, FoundObject]] = [
        (number, item)
        for number, found in enumerate(predictions)
        for item in found
        if item.label == label
    ]
    ranked.sort(key=lambda row: -row[1].score)
    true = [[t for t in known.objects if t.label == label] for known in references]
    taken = [[False] * len(objects) for objects in true]
    right: list[float] = []
    for number, item in ranked:
        overlaps = [_pixel_iou(item.box_xyxy, t.box_xyxy) for t in true[number]]
        best = int(np.argmax(overlaps)) if overlaps else -1
        is_match = best >= 0 and overlaps[best] >= iou_threshold
        if is_match and true[number][best].is_crowd:  # a difficult one: neither right nor wrong
            continue
        right.append(float(is_match and not taken[number][best]))
        if is_match:
            taken[number][best] = True
    num_right = np.cumsum(right)
    num_true = max(1, sum(not t.is_crowd for objects in true for t in objects))
    return num_right / np.arange(1, len(right) + 1), num_right / num_true


def _every_point(precision: Array, recall: Array) -> float:
    # Precision at a recall is the best at that recall or a higher one.
    best = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1][:-1]
    return float((np.diff(recall, prepend=0.0) * best).sum())


def _eleven_points(precision: Array, recall: Array) -> float:
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
