"""Areas that polygons have in common, exactly.

Both polygons are cut into horizontal slabs at every corner and every crossing of two edges. Inside
a slab no edges cross, so the width of what is common changes linearly with y, and the slab's area
is its height times the width at half height. Insides are by the even-odd rule; corners may run
either way round, and a polygon may be concave.

Knows numpy only.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from paligemma.results import BoxXyxy

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
    return intersection_area(polygon, polygon)


def intersection_area(first: Polygon, second: Polygon) -> float:
    """Pixels inside both.

    >>> intersection_area(polygon_of_box((0, 0, 2, 2)), polygon_of_box((1, 1, 5, 5)))
    1.0
    """
    low = np.maximum(first.min(axis=0), second.min(axis=0))
    high = np.minimum(first.max(axis=0), second.max(axis=0))
    if (low >= high).any():
        return 0.0
    pairs = ((first, second), (first, first), (second, second))
    cuts = np.unique(
        np.concatenate([first[:, 1], second[:, 1], *(_crossing_heights(*p) for p in pairs)])
    )
    total = 0.0
    for top, bottom in itertools.pairwise(cuts[(cuts >= low[1]) & (cuts <= high[1])].tolist()):
        y = (top + bottom) / 2
        total += (bottom - top) * _common_length(_spans(first, y), _spans(second, y))
    return total


def polygon_iou(first: Polygon, second: Polygon) -> float:
    """Intersection over union; 0 for polygons without area."""
    common = intersection_area(first, second)
    either = polygon_area(first) + polygon_area(second) - common
    return common / either if either > 0 else 0.0


def _crossing_heights(first: Polygon, second: Polygon) -> npt.NDArray[np.float64]:
    """The y at which an edge of one meets an edge of the other; parallel edges have corners."""
    first_step = np.roll(first, -1, axis=0) - first
    second_step = np.roll(second, -1, axis=0) - second
    between = second[None] - first[:, None]
    turn = _cross(first_step[:, None], second_step[None])
    safe = np.where(turn == 0, 1.0, turn)
    along_first = _cross(between, second_step[None]) / safe
    along_second = _cross(between, first_step[:, None]) / safe
    meet = (turn != 0) & (along_first >= 0) & (along_first <= 1)
    meet &= (along_second >= 0) & (along_second <= 1)
    heights: npt.NDArray[np.float64] = (first[:, None, 1] + along_first * first_step[:, None, 1])[
        meet
    ]
    return heights


def _cross(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    product: npt.NDArray[np.float64] = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return product


def _spans(polygon: Polygon, y: float) -> npt.NDArray[np.float64]:
    """Where the line at height y is inside: sorted x, in and out by turns."""
    x0, y0 = polygon.T
    x1, y1 = np.roll(polygon, -1, axis=0).T
    crossed = (y0 <= y) != (y1 <= y)
    x0, x1, y0, y1 = x0[crossed], x1[crossed], y0[crossed], y1[crossed]
    return np.sort(x0 + (y - y0) * (x1 - x0) / (y1 - y0))


def _common_length(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    starts = np.maximum(first[0::2, None], second[None, 0::2])
    ends = np.minimum(first[1::2, None], second[None, 1::2])
    return float(np.clip(ends - starts, 0, None).sum())
