"""GriTS: similarity of two tables as grids of cells - topology, content or location.

Smock et al. 2023, arXiv 2203.12555: keep the rows and columns of both grids that, aligned in order,
are most alike; precision and recall are their summed similarity by the size of either grid, and the
score is the F-measure. Rows and columns are aligned apart (the paper's factored 2D-MSS).

Where the authors' published code and the paper differ, this follows the code, which published
figures were made with: the "union" of two boxes is the smallest box around both, and the common
subsequence of two texts is that of Python's difflib, which is often shorter than the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from paligemma.errors import DataError
from paligemma.evals.metrics.html_table import Cell, parse_table, table_cells
from paligemma.evals.metrics.result import (
    MetricResult,
    References,
    mean_result,
    pair,
)

Box = tuple[float, float, float, float]
Feature = TypeVar("Feature", bound=Hashable)
Rewards = npt.NDArray[np.float64]

_ALONE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Grits:
    """GriTS-Top or GriTS-Con of HTML tables, 0..1.

    "topology" compares spans only, "content" the text of cells. Nothing is normalised: case and
    white space count, tags inside a cell do not (texts around them are joined by a space). Of
    several tables the first counts; a prediction without any, or with a grid of more than 20,000
    places, scores 0. Where a row has fewer cells than the grid is wide, the rest are empty cells.
    `details`: mean precision and recall.
    """

    of: Literal["topology", "content"] = "topology"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """References: HTML with a table, exactly one an example.

        Raises DataError where a reference has none, or a larger one.
        """
        scores: list[_Scores] = []
        for index, (prediction, (reference,)) in enumerate(
            pair(predictions, references, single=True)
        ):
            truth = _cells(reference)
            if truth is None:
                raise DataError(
                    f"The reference of example {index} has no <table>, or one of too many cells. "
                    "GriTS compares tables written as HTML."
                )
            # Without a table nothing was predicted, which alone would have full precision.
            scores.append(self.of_cells(_cells(prediction) or [], truth))
        return _result("grits_top" if self.of == "topology" else "grits_con", scores)

    def of_cells(self, predicted: Sequence[Cell], true: Sequence[Cell]) -> _Scores:
        """(F-measure, precision, recall) of two tables that are cells already."""
        if self.of == "topology":
            return _grid_scores(_span_grid(predicted), _span_grid(true), _box_similarity)
        return _grid_scores(_text_grid(predicted), _text_grid(true), _text_similarity)


_Scores = tuple[float, float, float]  # F-measure, precision, recall


def _cells(html: str) -> list[Cell] | None:
    table = parse_table(html)
    return None if table is None else table_cells(table)


def _result(name: str, scores: Sequence[_Scores]) -> MetricResult:
    details = {
        "precision": sum(score[1] for score in scores) / len(scores),
        "recall": sum(score[2] for score in scores) / len(scores),
    }
    return mean_result(name, [score[0] for score in scores], details)


def _grid_scores(
    predicted: Sequence[Sequence[Feature]],
    true: Sequence[Sequence[Feature]],
    similarity: Callable[[Feature, Feature], float],
) -> _Scores:
    num_predicted = sum(len(row) for row in predicted)
    num_true = sum(len(row) for row in true)
    if not num_predicted or not num_true:
        # By convention nothing predicted is precise, and nothing to be found is found.
        precision, recall = float(not num_predicted), float(not num_true)
        return float(not num_predicted and not num_true), precision, recall
    known = lru_cache(maxsize=None)(similarity)
    # rewards[i, j, m, n]: the true cell (i, m), row and column, beside the predicted cell (j, n)
    rewards: Rewards = np.array(
        [[[[known(t, p) for p in prow] for t in trow] for prow in predicted] for trow in true]
    )
    rows = _align(_best_alignment(rewards))
    columns = _align(_best_alignment(rewards.transpose(2, 3, 0, 1)))
    total = float(sum(rewards[i, j, m, n] for i, j in rows for m, n in columns))
    precision, recall = total / num_predicted, total / num_true
    both = precision + recall
    return (2 * precision * recall / both if both else 0.0), precision, recall


def _best_alignment(rewards: Rewards) -> Rewards:
    """Best reward of aligning the last two axes in order, for all of the first two at once."""
    first, second, length1, length2 = rewards.shape
    best = np.zeros((first, second, length1 + 1, length2 + 1))
    for i in range(length1):
        for j in range(length2):
            skipped = np.maximum(best[:, :, i, j + 1], best[:, :, i + 1, j])
            best[:, :, i + 1, j + 1] = np.maximum(best[:, :, i, j] + rewards[:, :, i, j], skipped)
    whole: Rewards = best[:, :, -1, -1]
    return whole


def _align(rewards: Rewards) -> list[tuple[int, int]]:
    """The pairs of the best alignment in order; of equal ones, that which pairs the last most."""
    num_true, num_predicted = rewards.shape
    best = np.zeros((num_true + 1, num_predicted + 1))
    for i in range(num_true):
        for j in range(num_predicted):
            best[i + 1, j + 1] = max(best[i, j] + rewards[i, j], best[i, j + 1], best[i + 1, j])
    pairs = []
    i, j = num_true, num_predicted
    while i and j:
        if best[i, j] == best[i - 1, j - 1] + rewards[i - 1, j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _span_grid(cells: Sequence[Cell]) -> list[list[Box]]:
    """At each place the box of its cell, seen from that place, in units of the grid."""
    grid = _empty_grid(cells, _ALONE)
    for cell in cells:
        for row, column in cell.positions():
            left, top = cell.column - column, cell.row - row
            grid[row][column] = (left, top, left + cell.num_columns, top + cell.num_rows)
    return grid


def _text_grid(cells: Sequence[Cell]) -> list[list[str]]:
    grid = _empty_grid(cells, "")
    for cell in cells:
        for row, column in cell.positions():
            grid[row][column] = cell.text
    return grid


def _empty_grid(cells: Sequence[Cell], value: Feature) -> list[list[Feature]]:
    num_rows = max((cell.row + cell.num_rows for cell in cells), default=0)
    num_columns = max((cell.column + cell.num_columns for cell in cells), default=0)
    return [[value] * num_columns for _ in range(num_rows)]


def _box_similarity(first: Box, second: Box) -> float:
    """Intersection by the smallest box around both."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    around = (max(first[2], second[2]) - min(first[0], second[0])) * (
        max(first[3], second[3]) - min(first[1], second[1])
    )
    return max(0.0, width) * max(0.0, height) / around if around > 0 else 0.0


def _text_similarity(first: str, second: str) -> float:
    """Twice the length of difflib's common subsequence by the summed lengths; 1 for two empty."""
    if not first and not second:
        return 1.0
    blocks = SequenceMatcher(None, first, second).get_matching_blocks()
    return 2 * sum(block.size for block in blocks) / (len(first) + len(second))
