"""Pairs of rows and columns, chosen together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paligemma.errors import MissingExtraError


def best_pairs(values: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of (row, column) whose values add up to the most, no row or column twice.

    `values` is float64[N, M], finite; there are min(N, M) pairs, in the order of the rows (the
    assignment problem, by scipy). Raises MissingExtraError without scipy.

    >>> best_pairs(np.array([[3.0, 2.0], [2.0, 0.0]]))
    [(0, 1), (1, 0)]
    """
    rows, columns = _solver()(values, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def check_solver() -> None:
    """Raise MissingExtraError where `best_pairs` would."""
    _solver()


def _solver() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MissingExtraError("scipy", "video", "Tracking") from None
    return linear_sum_assignment
