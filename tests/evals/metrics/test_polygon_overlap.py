"""Areas of polygons against rectangles, a published protocol's numbers, and counted points."""

from __future__ import annotations

import numpy as np
import pytest

from paligemma.data.overlap import box_iou
from paligemma.evals.metrics.text_regions import (
    intersection_area,
    polygon_area,
    polygon_iou,
    polygon_of_box,
)

pytest.importorskip("shapely", reason="the eval extra is not installed")


def test_boxes_overlap_as_boxes_do() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (40, 2))
    boxes = np.hstack([corners, corners + rng.uniform(1, 15, (40, 2))])
    expected = box_iou(boxes[:20], boxes[20:])
    ours = [
        [polygon_iou(polygon_of_box(a), polygon_of_box(b)) for b in boxes[20:].tolist()]
        for a in boxes[:20].tolist()
    ]
    assert np.abs(np.array(ours) - expected).max() < 1e-9


def test_area_is_the_shoelace_formulas_whichever_way_the_corners_run() -> None:
    arrow = np.array([[0.0, 0.0], [10.0, 5.0], [0.0, 10.0], [4.0, 5.0]])
    x, y = arrow.T
    shoelace = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    assert polygon_area(arrow) == pytest.approx(shoelace)
    assert polygon_area(arrow[::-1]) == pytest.approx(shoelace)


def test_concave_polygons_agree_with_counted_points() -> None:
    """A star and a comb; inside by the even-odd rule on a fine grid of points."""
    angles = np.linspace(0, 2 * np.pi, 11)[:-1]
    radii = np.where(np.arange(10) % 2 == 0, 10.0, 4.0)
    star = np.stack([12 + radii * np.cos(angles), 12 + radii * np.sin(angles)], axis=1)
    comb = np.array(
        [[2, 2], [22, 3], [21, 20], [16, 20], [15, 8], [12, 8], [11, 21], [7, 20], [6, 7], [3, 20]],
        dtype=np.float64,
    )
    step = 0.02
    points = np.arange(0, 25, step) + step / 2

    def inside(polygon: np.ndarray) -> np.ndarray:
        x, y = np.meshgrid(points, points)
        odd = np.zeros(x.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y0 == y1:
                continue
            crosses = (y0 <= y) != (y1 <= y)
            odd ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        return odd

    counted = (inside(star) & inside(comb)).sum() * step**2
    assert intersection_area(star, comb) == pytest.approx(counted, rel=1e-3)


def test_polygons_that_touch_or_stand_apart_share_nothing() -> None:
    first = polygon_of_box((0, 0, 2, 2))
    assert intersection_area(first, polygon_of_box((2, 0, 4, 2))) == 0.0
    assert intersection_area(first, polygon_of_box((5, 5, 6, 6))) == 0.0
    line = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    assert polygon_iou(line, line) == 0.0
