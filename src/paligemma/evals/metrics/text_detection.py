"""Words found in pictures: precision, recall and F1 over a set, with or without what they say.

A word found stands for a true word when they overlap with an IoU of at least 0.5 (and, end to end,
say the same); each true word is taken once. A don't-care region (unreadable text) is neither right
nor wrong to find: it is no true word, and what lies in it with more than half of its own area is
left out. These are the rules of the ICDAR 2015 challenge (RRC, tasks 4.1 and 4.4), words taken in
the order of the annotation, and of HierText's end-to-end protocol that PaliGemma 2 uses.

Text normalisation: none; case and punctuation count, and words of any length (PaliGemma 2's
protocol). `case_sensitive=False` folds case.

Knows polygons and strings; knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from paligemma.evals.metrics.detection import f1_of
from paligemma.evals.metrics.result import MetricResult, Reads, check_lengths
from paligemma.evals.polygon_overlap import (
    Polygon,
    intersection_area,
    polygon_area,
    polygon_iou,
)

_DONT_CARE_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Word:
    """A piece of text and where it stands; `polygon_of_box` makes a polygon of a box."""

    polygon: Polygon
    text: str = ""
    is_ignored: bool = False
    """A don't-care region, in annotations often with the text "###"."""


Words = Sequence[Sequence[Word]]
"""The words of each picture."""


@dataclass(frozen=True, kw_only=True)
class TextDetection:
    """F1 of words; with `with_text` a match must also say the same (end to end, text spotting).

    `details`: precision, recall, and how many words are right, found and true. `per_example` is
    each picture's F1 (1 where nothing is there and nothing was found): its mean is not the value.
    """

    reads: ClassVar[Reads] = "words"

    with_text: bool = False
    iou_threshold: float = 0.5
    case_sensitive: bool = True

    @property
    def name(self) -> str:
        return "text_spotting_f1" if self.with_text else "text_detection_f1"

    def score(self, predictions: Words, references: Words) -> MetricResult:
        """Raises DataError for unequal lengths."""
        tallies = self._tallies(predictions, references)
        right, found, true = tallies.sum(axis=0).tolist()
        return MetricResult(
            name=self.name,
            value=f1_of(right, found, true),
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
        """The value as a function of how often each picture was drawn."""
        tallies = self._tallies(predictions, references)
        return lambda counts: f1_of(*(counts @ tallies))

    def _tallies(self, predictions: Words, references: Words) -> npt.NDArray[np.int64]:
        """int64[P, 3]: right, found and true words of each picture."""
        check_lengths(len(predictions), len(references))
        rows = [self._tally(*pair) for pair in zip(predictions, references, strict=True)]
        return np.array(rows, dtype=np.int64)

    def _tally(self, found: Sequence[Word], known: Sequence[Word]) -> tuple[int, int, int]:
        true = [word for word in known if not word.is_ignored]
        regions = [word.polygon for word in known if word.is_ignored]
        counted = [word for word in found if not _lies_in(word.polygon, regions)]
        taken: set[int] = set()
        for word in true:
            for place, guess in enumerate(counted):
                if place not in taken and self._matches(guess, word):
                    taken.add(place)
                    break
        return len(taken), len(counted), len(true)

    def _matches(self, guess: Word, word: Word) -> bool:
        if self.with_text:
            first, second = guess.text, word.text
            if not self.case_sensitive:
                first, second = first.casefold(), second.casefold()
            if first != second:
                return False
        return polygon_iou(guess.polygon, word.polygon) >= self.iou_threshold


def _lies_in(polygon: Polygon, regions: Sequence[Polygon]) -> bool:
    area = polygon_area(polygon)
    return area > 0 and any(
        intersection_area(polygon, region) > _DONT_CARE_SHARE * area for region in regions
    )
