"""Polygons and COCO run lengths -> masks, pixel for pixel as the COCO API makes them.

The rules are those of `maskApi.c` (rleFrPoly, rleFrString) of the COCO API, so that a score
against these masks means what it means elsewhere. Knows numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paligemma.data.record import Mask
from paligemma.errors import DataError

_SCALE = 5  # boundaries are walked on a grid five times as fine


def polygons_to_mask(
    polygons: Sequence[Sequence[float]], size_wh: tuple[int, int], where: str
) -> Mask:
    """bool[H, W]: the union of polygons, each a flat list x1, y1, x2, y2, ... in pixels.

    Raises DataError for fewer than three points, an odd number of numbers, or no finite ones.
    """
    width, height = size_wh
    mask = np.zeros((height, width), dtype=np.bool_)
    if not isinstance(polygons, list | tuple):
        raise DataError(f"{where}: polygons are {polygons!r}; a list of lists is needed.")
    for polygon in polygons:
        mask |= _polygon_to_mask(points_of(polygon, where), size_wh)
    return mask


def points_of(polygon: Sequence[float], where: str) -> npt.NDArray[np.float64]:
    """float64[K, 2] of (x, y). Raises DataError as `polygons_to_mask`."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
        raise DataError(
            f"{where}: a polygon is not a list of x1, y1, x2, y2, x3, y3, ... of at least three "
            "points in finite numbers. Redraw it."
        )
    return points.reshape(-1, 2)


def box_of_points(points: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 around float64[K, 2]."""
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x1, y1, x2, y2


def _polygon_to_mask(points: npt.NDArray[np.float64], size_wh: tuple[int, int]) -> Mask:
    """Walk the boundary on the fine grid; where it passes from one column of pixels to the next,
    everything below in that column changes sides."""
    width, height = size_wh
    fine = np.trunc(_SCALE * points + 0.5).astype(np.int64)
    us, vs = [], []
    for (x1, y1), (x2, y2) in zip(fine.tolist(), np.roll(fine, -1, axis=0).tolist(), strict=True):
        across, down = abs(x2 - x1), abs(y2 - y1)
        is_flat = across >= down
        # Always walked from the smaller coordinate, so that a shared edge rounds the same.
        flips = x1 > x2 if is_flat else y1 > y2
        (xs, ys), (xe, ye) = ((x2, y2), (x1, y1)) if flips else ((x1, y1), (x2, y2))
        steps = np.arange(max(across, down) + 1)
        if flips:
            steps = steps[::-1]
        slope = (ye - ys) / max(across, 1) if is_flat else (xe - xs) / max(down, 1)
        side = np.trunc((ys if is_flat else xs) + slope * steps + 0.5).astype(np.int64)
        us.append(steps + xs if is_flat else side)
        vs.append(side if is_flat else steps + ys)
    u, v = np.concatenate(us), np.concatenate(vs)
    turns = np.flatnonzero(u[1:] != u[:-1]) + 1
    column = (np.where(u[turns] < u[turns - 1], u[turns], u[turns] - 1) + 0.5) / _SCALE - 0.5
    row = (np.minimum(v[turns], v[turns - 1]) + 0.5) / _SCALE - 0.5
    counts = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    places = column[counts].astype(np.int64) * height + np.ceil(row[counts].clip(0, height)).astype(
        np.int64
    )
    flat = np.zeros(width * height, dtype=np.bool_)
    if places.size:
        first = int(places.min())
        changes = np.bincount(places - first) % 2 == 1
        inside = np.logical_xor.accumulate(changes)[: flat.size - first]
        flat[first : first + inside.size] = inside
        flat[first + inside.size :] = places.size % 2 == 1
    return flat.reshape(height, width, order="F")


def rle_to_mask(rle: Any, size_wh: tuple[int, int], where: str) -> Mask:
    """bool[H, W] of COCO run lengths, {"size": [H, W], "counts": text or a list of numbers}.

    Raises DataError for another size, or runs that do not fill it.
    """
    width, height = size_wh
    given = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(given, list | tuple) or list(given) != [height, width]:
        raise DataError(
            f"{where}: a mask in run lengths has the size {given}; its picture has [{height}, "
            f"{width}] (height, width). Make the mask from this picture."
        )
    counts = rle.get("counts")
    runs: list[int] | None = None
    if isinstance(counts, str | bytes):
        runs = _decompress(counts.decode("latin-1") if isinstance(counts, bytes) else counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    if runs is None or any(run < 0 for run in runs) or sum(runs) != width * height:
        raise DataError(
            f"{where}: the run lengths of a mask do not fill its {height} x {width} pixels. "
            "Export the mask anew."
        )
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(height, width, order="F")


def _decompress(counts: str) -> list[int] | None:
    """The numbers of COCO's compressed form (see `masks.mask_to_rle`); None for other text."""
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 30:
            return None
        number |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    return None if shift else runs
