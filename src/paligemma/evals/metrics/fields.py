"""Metrics of values that were read from documents, by field.

A cell is one value of one document: what is true, what was read, and the score that the reader gave
it. Values of lists have been matched with the true ones before. Everything here is a share, from 0
to 1, over the cells of a field, or over those of all fields.

    exact         cells that are right; a value that is absent and was not read is right
    anls          mean similarity of the texts: 1 - normalized edit distance, 0 below one half
    precision     right values among those that were read
    recall        right values among those that there are
    f1            their harmonic mean; of a list, after the best matching of its items
    evidence_iou  mean IoU of the places of values that were read, where the true place is known
    coverage      the largest share of values that can be accepted by their score alone so that at
                  least 95 % of the accepted ones are right
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from paligemma.errors import DataError
from paligemma.evals.bootstrap import NUM_RESAMPLES, Counts, Interval, confidence_interval
from paligemma.evals.metrics.texts import normalized_edit_distance

PRECISION = 0.95
_MIN_SIMILARITY = 0.5  # as in ANLS
_ROUNDING = 1e-9
First = TypeVar("First")
Second = TypeVar("Second")


@dataclass(frozen=True, kw_only=True)
class FieldCell:
    """One value of one document, true and read."""

    record: int
    """Index of the document."""
    path: str
    """Of the field, the same for all items of a list: "items[].amount"."""
    true: str | None
    """None: the document does not have it."""
    read: str | None
    """None: it was not read."""
    is_right: bool
    similarity: float
    """Of the texts, from 0 to 1; 1 where both are absent."""
    score: float = 0.0
    """The reader's own."""
    iou: float | None = None
    """Of the places; None where the true one is not known, or nothing was read."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Values that can be accepted without a person looking at them."""

    share: float
    """Of all values that are in the documents or were read."""
    min_score: float
    """Accepting values from this score on reaches it."""
    precision: float
    """Share of the accepted values that are right."""
    interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class FieldScore:
    """The scores of one field, or of all together; NaN where nothing can be measured."""

    path: str
    num_cells: int
    exact: float
    anls: float
    precision: float
    recall: float
    f1: float
    evidence_iou: float
    coverage: Coverage | None
    """None where no threshold reaches the precision."""
    exact_interval: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


def score_cells(path: str, cells: Sequence[FieldCell], *, seed: int = 0) -> FieldScore:
    """The scores of these cells, with intervals over resampled documents.

    Raises DataError for no cells.
    """
    if not cells:
        raise DataError(f"There is nothing to score for {path!r}.")
    is_true = [cell.true is not None for cell in cells]
    is_read = [cell.read is not None for cell in cells]
    num_right = sum(c.is_right and r for c, r in zip(cells, is_read, strict=True))
    precision, recall = _share(num_right, sum(is_read)), _share(num_right, sum(is_true))
    num_values = sum(is_true) + sum(is_read)
    ious = [cell.iou for cell in cells if cell.iou is not None]
    right = np.array([cell.is_right for cell in cells], dtype=np.float64)
    records = _numbered(cells)
    num_records = int(records.max()) + 1

    def exact(counts: Counts) -> float:
        weights = counts[records]
        return float(weights @ right / weights.sum()) if weights.any() else math.nan

    return FieldScore(
        path=path,
        num_cells=len(cells),
        exact=float(right.mean()),
        anls=math.fsum(cell.similarity for cell in cells) / len(cells),
        precision=precision,
        recall=recall,
        f1=_share(2 * num_right, num_values),
        evidence_iou=math.fsum(ious) / len(ious) if ious else math.nan,
        coverage=coverage(cells, seed=seed),
        exact_interval=confidence_interval(exact, num_records, seed=seed),
    )


def coverage(
    cells: Sequence[FieldCell], precision: float = PRECISION, *, seed: int = 0
) -> Coverage | None:
    """The largest share of values that can be accepted by score at this precision, or None.

    Values with equal scores are accepted together. Values that were not read have no score and
    cannot be accepted, but count. In the interval, a resample in which no threshold reaches the
    precision counts as 0.
    """
    cells = [cell for cell in cells if cell.true is not None or cell.read is not None]
    cells.sort(key=lambda cell: -cell.score if cell.read is not None else math.inf)
    if not cells or cells[0].read is None:
        return None
    records = _numbered(cells)
    right = np.array([cell.is_right for cell in cells], dtype=np.float64)
    scores = np.array([cell.score if cell.read is not None else -1.0 for cell in cells])
    # Where a threshold can be: after the last of equal scores, and among what was read.
    ends = np.flatnonzero((np.diff(scores, append=-2.0) < 0) & (scores >= 0))

    def largest(counts: Counts) -> tuple[float, int]:
        weights = counts[records].astype(np.float64)
        accepted = np.cumsum(weights)[ends]
        num_right = np.cumsum(weights * right)[ends]
        reaches = (accepted > 0) & (num_right >= precision * accepted - _ROUNDING)
        if not reaches.any():
            return 0.0, -1
        place = int(np.flatnonzero(reaches)[-1])
        return float(accepted[place] / weights.sum()), int(ends[place])

    num_records = int(records.max()) + 1
    share, place = largest(np.ones(num_records, dtype=np.int64))
    if place < 0:
        return None
    interval = confidence_interval(
        lambda counts: largest(counts)[0], num_records, num_resamples=NUM_RESAMPLES, seed=seed
    )
    if interval is not None:  # shifted back to the share, maybe out of what a share can be
        low, high = max(0.0, interval.low), min(1.0, interval.high)
        interval = replace(interval, low=low, high=high)
    return Coverage(
        share=share,
        min_score=float(scores[place]),
        precision=float(right[: place + 1].mean()),
        interval=interval,
    )


def similarity(first: str, second: str) -> float:
    """1 - the normalized edit distance of two texts, 0 below one half: ANLS of one pair."""
    first, second = (" ".join(text.split()).lower() for text in (first, second))
    alike = 1.0 - normalized_edit_distance(first, second)
    return alike if alike > _MIN_SIMILARITY else 0.0


def reading_order_distance(text: str, true_text: str) -> float:
    """The normalized edit distance of a page's text to its text in the true order; 0 is best.

    White space is collapsed, since where lines end is not part of the order.
    """
    return normalized_edit_distance(" ".join(text.split()), " ".join(true_text.split()))


def best_matching(
    first: Sequence[First], second: Sequence[Second], weight: Callable[[First, Second], float]
) -> list[tuple[int, int]]:
    """The pairs of indices, one to one, with the largest sum of weights; none with weight 0.

    >>> best_matching("ab", "ba", lambda x, y: float(x == y))
    [(0, 1), (1, 0)]
    """
    if not first or not second:
        return []
    if len(first) > len(second):
        swapped = best_matching(second, first, lambda x, y: weight(y, x))
        return sorted((j, i) for i, j in swapped)
    weights = np.array([[weight(x, y) for y in second] for x in first], dtype=np.float64)
    columns = _assign(weights.max() - weights)
    return [(i, j) for i, j in enumerate(columns) if weights[i, j] > 0]


def _assign(costs: npt.NDArray[np.float64]) -> list[int]:
    """The column of each row in the cheapest assignment; no more rows than columns.

    The Hungarian method with potentials, row by row.
    """
    num_rows, num_columns = costs.shape
    row_potentials, potentials = np.zeros(num_rows + 1), np.zeros(num_columns + 1)
    row_of = np.zeros(num_columns + 1, dtype=np.int64)  # 1-based; column 0 holds the new row
    for row in range(1, num_rows + 1):
        row_of[0], column = row, 0
        cheapest = np.full(num_columns + 1, np.inf)
        previous = np.zeros(num_columns + 1, dtype=np.int64)
        is_used = np.zeros(num_columns + 1, dtype=np.bool_)
        while row_of[column]:
            is_used[column] = True
            current = row_of[column]
            reduced = costs[current - 1] - row_potentials[current] - potentials[1:]
            is_better = ~is_used[1:] & (reduced < cheapest[1:])
            cheapest[1:][is_better] = reduced[is_better]
            previous[1:][is_better] = column
            column = 1 + int(np.where(is_used[1:], np.inf, cheapest[1:]).argmin())
            step = cheapest[column]
            row_potentials[row_of[is_used]] += step
            potentials[is_used] -= step
            cheapest[~is_used] -= step
        while column:
            row_of[column] = row_of[previous[column]]
            column = int(previous[column])
    columns = {int(row) - 1: place for place, row in enumerate(row_of[1:]) if row}
    return [columns[row] for row in range(num_rows)]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _numbered(cells: Sequence[FieldCell]) -> npt.NDArray[np.int64]:
    """The documents of the cells, numbered from 0 without gaps."""
    numbers = {record: n for n, record in enumerate(sorted({cell.record for cell in cells}))}
    return np.array([numbers[cell.record] for cell in cells], dtype=np.int64)
