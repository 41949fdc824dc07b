"""The probability that a box is right, from the model's distributions over its coordinates.

A model that draws a box by sampling would draw others as well. How often these overlap the one it
wrote by an IoU of at least 0.5 is the probability, by the model's own account, that the box is
where the object is. Each of the four distributions is given by quantiles. The samples combine them
at random but evenly (a Latin hypercube: McKay, Beckman and Conover, Technometrics 21, 1979), and
always in the same way, so that equal distributions give equal scores.

The distribution of an edge also has mass at the edges of other objects that could have been listed
here. What is farther from the edge than half of the box's side belongs to those and does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

_MIN_IOU = 0.5
_NEAR = 0.5  # of the box's height or width
_NUM_SAMPLES = 256


def box_confidence(box_yxyx: Sequence[float], quantiles: Sequence[Sequence[float]]) -> float:
    """Return P(IoU >= 0.5) of a box and one drawn from the distributions of its edges.

    `quantiles` has values of equal probability for each of y1, x1, y2, x2, in the unit of the box.
    Edges are taken as independent of each other.

    >>> box_confidence((0, 0, 10, 10), [[0, 0], [0, 0], [10, 10], [4.9, 5.1]])
    0.5
    """
    top, left, bottom, right = box_yxyx
    near = _NEAR * max(bottom - top, 1.0), _NEAR * max(right - left, 1.0)
    y1, x1, y2, x2 = (
        _draw(edge, quantiles[side], near[side % 2], _positions()[side])
        for side, edge in enumerate(box_yxyx)
    )
    heights = np.minimum(y2, bottom) - np.maximum(y1, top)
    widths = np.minimum(x2, right) - np.maximum(x1, left)
    overlap = heights.clip(min=0) * widths.clip(min=0)
    areas = (y2 - y1).clip(min=0) * (x2 - x1).clip(min=0)
    union = areas + (bottom - top) * (right - left) - overlap
    return float((overlap >= _MIN_IOU * union).mean())


def _draw(
    edge: float, quantiles: Sequence[float], near: float, positions: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return float64[N]: the values near the edge at N positions, 0 to 1, in their distribution."""
    values = np.asarray(quantiles, dtype=np.float64)
    values = values[np.abs(values - edge) <= near]
    if not len(values):
        values = np.array([edge], dtype=np.float64)
    chosen: npt.NDArray[np.float64] = values[(positions * len(values)).astype(np.int64)]
    return chosen


@cache
def _positions() -> npt.NDArray[np.float64]:
    """float64[4, N]: for each edge, N evenly spaced positions in an order of its own."""
    rng = np.random.default_rng(0)
    evenly = (np.arange(_NUM_SAMPLES) + 0.5) / _NUM_SAMPLES
    return np.stack([rng.permutation(evenly) for _ in range(4)])
