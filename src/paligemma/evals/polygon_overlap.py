"""Areas that polygons share, computed by shapely (extra "eval").

Points are inside by the even-odd rule; corners may run either way round, and a polygon may be
concave or cross itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paligemma.errors import MissingExtraError
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
