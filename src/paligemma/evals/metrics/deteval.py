"""DetEval, the protocol of Total-Text for text regions of any shape, split and merged ones too.

C. Wolf and J.-M. Jolion, "Object count/area graphs for the evaluation of object detection and
segmentation algorithms" (IJDAR 8, 2006), as Total-Text's authors have it in the script that they
recommend (Python_scripts/Deteval.py; the one for MATLAB counts some regions twice). Between a true
region and one found: area recall, the share of the true region that is covered, and area precision,
the share of the found one that covers it. One to one counts 1; one true region covered by several
found ones, or several by one, counts `split_score` each. No text is compared.

Knows polygons only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from paligemma.evals.metrics.result import MetricResult, Reads, check_lengths
from paligemma.evals.polygon_overlap import Polygon, intersection_area, polygon_area

Areas = npt.NDArray[np.float64]


def area_recall_precision(found: Sequence[Polygon], true: Sequence[Polygon]) -> tuple[Areas, Areas]:
    """float64[G, F] twice: the shares of true and of found regions that are common."""
    common = np.array(
        [[intersection_area(region, guess) for guess in found] for region in true]
    ).reshape(len(true), len(found))
    true_areas = np.array([polygon_area(region) for region in true]).reshape(-1, 1)
    found_areas = np.array([polygon_area(guess) for guess in found]).reshape(1, -1)
    return common / np.maximum(true_areas, 1e-9), common / np.maximum(found_areas, 1e-9)


@dataclass(frozen=True, kw_only=True)
class DetEval:
    """F1 of regions over a set; `details`: precision and recall.

    The thresholds 0.7 and 0.6 are those of Total-Text's published scores; its script has been
    given 0.8 and 0.4 as well.
    """

    reads: ClassVar[Reads] = "regions"

    min_area_recall: float = 0.7
    min_area_precision: float = 0.6
    split_score: float = 0.8

    name = "deteval_f1"

    def score(
        self, predictions: Sequence[Sequence[Polygon]], references: Sequence[Sequence[Polygon]]
    ) -> MetricResult:
        """Raises DataError for unequal lengths."""
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
            value=2 * precision * recall / both if both else 0.0,
            details={"precision": precision, "recall": recall},
        )

    def _tally(self, recall: Areas, precision: Areas) -> tuple[float, float]:
        """What one picture adds to recall and to precision; shares count with two digits."""
        recall, precision = recall.round(2), precision.round(2)
        num_true, num_found = recall.shape
        # One to one asks for more than the thresholds, the other cases for at least them.
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
        for guess in range(num_found):  # several true regions, one found
            if found_done[guess] or (precision[:, guess] > 0).sum() < 2:
                continue
            # That the lower threshold stands here is the script's way.
            parts = np.flatnonzero((recall[:, guess] >= self.min_area_precision) & ~true_done)
            is_one = len(parts) == 1
            if is_one and recall[parts[0], guess] < self.min_area_recall:
                continue
            if precision[parts, guess].sum() >= self.min_area_precision:
                share = 1.0 if is_one else self.split_score
                for_recall, for_precision = for_recall + share * len(parts), for_precision + share
                true_done[parts] = True
                found_done[guess] = True
        return for_recall, for_precision
