"""Metrics of text in images: words with their outlines, and regions of any shape (DetEval).

Areas of polygons are computed by shapely (extra "eval"). Points are inside by the even-odd rule;
corners may run either way round, and a polygon may be concave or cross itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from paligemma.errors import MissingExtraError
from paligemma.evals.metrics.detection import f1_of
from paligemma.evals.metrics.result import MetricResult, Reads, check_lengths
from paligemma.results import BoxXyxy

_DONT_CARE_SHARE = 0.5
Areas = npt.NDArray[np.float64]
Polygon = npt.NDArray[np.float64]
"""float64[K, 2], corners (x, y) in pixels; the first is not repeated."""


def polygon_of_box(box_xyxy: BoxXyxy) -> Polygon:
    """The four corners, clockwise on screen."""
    x1, y1, x2, y2 = box_xyxy
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float64)


def polygon_area(polygon: Polygon) -> float:
    """Pixels inside.

    >>> polygon_area(polygon_of_box((0, 0, 2, 3)))
    6.0
    """
    return float(_shape(polygon).area)


def intersection_area(first: Polygon, second: Polygon) -> float:
    """Pixels inside both.

    >>> intersection_area(polygon_of_box((0, 0, 2, 2)), polygon_of_box((1, 1, 5, 5)))
    1.0
    """
    return float(_shape(first).intersection(_shape(second)).area)


def polygon_iou(first: Polygon, second: Polygon) -> float:
    """Intersection over union; 0 for polygons without area."""
    shapes = _shape(first), _shape(second)
    common = float(shapes[0].intersection(shapes[1]).area)
    either = float(shapes[0].area + shapes[1].area) - common
    return common / either if either > 0 else 0.0


def _shape(polygon: Polygon) -> Any:
    try:
        import shapely
    except ImportError:
        raise MissingExtraError("shapely", "eval", "The overlap of polygons") from None
    if len(polygon) < 3:
        return shapely.Polygon()
    shape = shapely.Polygon(polygon)
    return shape if shape.is_valid else shapely.make_valid(shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Word:
    """A piece of text and its outline; `polygon_of_box` makes a polygon of a box."""

    polygon: Polygon
    text: str = ""
    is_ignored: bool = False
    """A don't-care region, in annotations often with the text "###"."""


Words = Sequence[Sequence[Word]]
"""The words of each image."""


@dataclass(frozen=True, kw_only=True)
class TextDetection:
    """F1 of words; with `with_text` a match must also have the same text (end to end, spotting).

    A predicted word matches a true word when they overlap with an IoU of at least 0.5; each true
    word is matched once. A don't-care region (unreadable text) is neither right nor wrong to find:
    it is not a true word, and a prediction with more than half of its area inside it is ignored.
    These are the rules of the ICDAR 2015 challenge (RRC, tasks 4.1 and 4.4), words taken in the
    order of the annotation, and of HierText's end-to-end protocol that PaliGemma 2 uses.

    No text is normalized: case and punctuation count, and words of any length (PaliGemma 2's
    protocol); `case_sensitive=False` folds case. `details`: precision, recall, and the numbers of
    correct, predicted and true words. `per_example` is each image's F1 (1 where there is nothing to
    find and nothing was found): its mean is not the value.
    """

    reads: ClassVar[Reads] = "words"

    with_text: bool = False
    iou_threshold: float = 0.5
    case_sensitive: bool = True

    @property
    def name(self) -> str:
        return "text_spotting_f1" if self.with_text else "text_detection_f1"

    def score(self, predictions: Words, references: Words) -> MetricResult:
        """NaN without true words that count. Raises DataError for unequal lengths."""
        tallies = self._tallies(predictions, references)
        right, found, true = tallies.sum(axis=0).tolist()
        return MetricResult(
            name=self.name,
            value=f1_of(right, found, true) if true else math.nan,
            per_example=tuple(f1_of(*row) for row in tallies),
            details={
                "precision": right / found if found else 0.0,
                "recall": right / true if true else 0.0,
                "num_right": right,
                "num_found": found,
                "num_true": true,
            },
        )

    def statistic(
        self, predictions: Words, references: Words
    ) -> Callable[[npt.NDArray[np.int64]], float]:
        """The value as a function of how often each image was drawn."""
        tallies = self._tallies(predictions, references)
        return lambda counts: f1_of(*(counts @ tallies))

    def _tallies(self, predictions: Words, references: Words) -> npt.NDArray[np.int64]:
        """int64[N, 3]: correct, predicted and true words of each image."""
        check_lengths(len(predictions), len(references))
        rows = [self._tally(*pair) for pair in zip(predictions, references, strict=True)]
        return np.array(rows, dtype=np.int64)

    def _tally(self, found: Sequence[Word], known: Sequence[Word]) -> tuple[int, int, int]:
        true = [word for word in known if not word.is_ignored]
        regions = [word.polygon for word in known if word.is_ignored]
        counted = [word for word in found if not _lies_in(word.polygon, regions)]
        taken: set[int] = set()
        for word in true:
            for index, candidate in enumerate(counted):
                if index not in taken and self._matches(candidate, word):
                    taken.add(index)
                    break
        return len(taken), len(counted), len(true)

    def _matches(self, found: Word, true: Word) -> bool:
        if self.with_text:
            first, second = found.text, true.text
            if not self.case_sensitive:
                first, second = first.casefold(), second.casefold()
            if first != second:
                return False
        return polygon_iou(found.polygon, true.polygon) >= self.iou_threshold


def _lies_in(polygon: Polygon, regions: Sequence[Polygon]) -> bool:
    area = polygon_area(polygon)
    return area > 0 and any(
        intersection_area(polygon, region) > _DONT_CARE_SHARE * area for region in regions
    )


def area_recall_precision(found: Sequence[Polygon], true: Sequence[Polygon]) -> tuple[Areas, Areas]:
    """float64[T, F] twice: the fraction of each true and each found region inside the other."""
    common = np.array(
        [[intersection_area(truth, region) for region in found] for truth in true]
    ).reshape(len(true), len(found))
    true_areas = np.array([polygon_area(truth) for truth in true]).reshape(-1, 1)
    found_areas = np.array([polygon_area(region) for region in found]).reshape(1, -1)
    return common / np.maximum(true_areas, 1e-9), common / np.maximum(found_areas, 1e-9)


@dataclass(frozen=True, kw_only=True)
class DetEval:
    """F1 of text regions of any shape, split and merged ones included: Total-Text's protocol.

    C. Wolf and J.-M. Jolion, "Object count/area graphs for the evaluation of object detection and
    segmentation algorithms" (IJDAR 8, 2006), as in the script that Total-Text's authors recommend
    (Python_scripts/Deteval.py; the one for MATLAB counts some regions twice). Between a true and a
    found region there are area recall, the fraction of the true region that is covered, and area
    precision, the fraction of the found one that covers it. One to one counts 1; a true region
    covered by several found ones, or several by one, counts `split_score` each. No text is
    compared. `details`: precision and recall.

    The thresholds 0.7 and 0.6 are those of Total-Text's published scores; its script has been
    run with 0.8 and 0.4 as well.
    """

    reads: ClassVar[Reads] = "regions"

    min_area_recall: float = 0.7
    min_area_precision: float = 0.6
    split_score: float = 0.8

    name = "deteval_f1"

    def score(
        self, predictions: Sequence[Sequence[Polygon]], references: Sequence[Sequence[Polygon]]
    ) -> MetricResult:
        """NaN without true regions. Raises DataError for unequal lengths."""
        check_lengths(len(predictions), len(references))
        rows = [
            self._tally(*area_recall_precision(found, true))
            for found, true in zip(predictions, references, strict=True)
        ]
        for_recall, for_precision = (float(column) for column in np.sum(rows, axis=0))
        num_true, num_found = (sum(map(len, groups)) for groups in (references, predictions))
        recall = for_recall / num_true if num_true else 0.0
        precision = for_precision / num_found if num_found else 0.0
        both = precision + recall
        return MetricResult(
            name=self.name,
            value=(2 * precision * recall / both if both else 0.0) if num_true else math.nan,
            details={"precision": precision, "recall": recall},
        )

    def _tally(self, recall: Areas, precision: Areas) -> tuple[float, float]:
        """What one image adds to recall and to precision; fractions are rounded to two digits."""
        recall, precision = recall.round(2), precision.round(2)
        num_true, num_found = recall.shape
        # One to one must exceed the thresholds, the other cases may equal them.
        covers, fits = recall > self.min_area_recall, precision > self.min_area_precision
        true_done, found_done = np.zeros(num_true, dtype=bool), np.zeros(num_found, dtype=bool)
        for_recall = for_precision = 0.0
        for region in range(num_true):
            is_alone = covers[region].sum() == fits[region].sum() == 1
            if is_alone and covers[:, covers[region]].sum() == fits[:, fits[region]].sum() == 1:
                for_recall, for_precision = for_recall + 1, for_precision + 1
                true_done[region] = True
                found_done |= covers[region]
        for region in range(num_true):  # one true region, several found
            if true_done[region] or (recall[region] > 0).sum() < 2:
                continue
            parts = np.flatnonzero((precision[region] >= self.min_area_precision) & ~found_done)
            if recall[region, parts].sum() >= self.min_area_recall:
                share = 1.0 if len(parts) == 1 else self.split_score
                for_recall, for_precision = for_recall + share, for_precision + share * len(parts)
                true_done[region] = True
                found_done[parts] = True
        for region in range(num_found):  # several true regions, one found
            if found_done[region] or (precision[:, region] > 0).sum() < 2:
                continue
            # The script compares recall with the threshold of precision here.
            parts = np.flatnonzero((recall[:, region] >= self.min_area_precision) & ~true_done)
            is_one = len(parts) == 1
            if is_one and recall[parts[0], region] < self.min_area_recall:
                continue
            if precision[parts, region].sum() >= self.min_area_precision:
                share = 1.0 if is_one else self.split_score
                for_recall, for_precision = for_recall + share * len(parts), for_precision + share
                true_done[parts] = True
                found_done[region] = True
        return for_recall, for_precision
