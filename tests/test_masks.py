from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from paligemma.masks import mask_to_polygons, mask_to_rle

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def rasterize(rings: list[list[list[int]]], height: int, width: int) -> np.ndarray:
    """Even-odd: a pixel is inside when a ray from its center to the left meets odd many sides."""
    crossings = np.zeros((height, width), dtype=int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            assert (x0 == x1) != (y0 == y1)  # along pixel edges
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0:] += 1
    return crossings % 2 == 1


@given(masks)
def test_coco_reads_our_run_lengths(mask: np.ndarray) -> None:
    coco_mask = pytest.importorskip("faster_coco_eval").mask
    rle = mask_to_rle(mask)
    assert rle["size"] == list(mask.shape)
    decoded = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()})
    assert np.array_equal(decoded.astype(bool), mask)


def test_long_runs_are_compressed_as_coco_does() -> None:
    coco_mask = pytest.importorskip("faster_coco_eval").mask
    mask = np.zeros((700, 900), dtype=bool)
    mask[100:650, 30:800] = True
    mask[200:210, 300:] = False
    theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert mask_to_rle(mask)["counts"] == theirs["counts"].decode()


@given(masks)
@settings(max_examples=300)
def test_rings_enclose_exactly_the_pixels(mask: np.ndarray) -> None:
    rings = mask_to_polygons(mask)
    assert np.array_equal(rasterize(rings, *mask.shape), mask)


@given(masks)
def test_signed_areas_of_rings_sum_to_the_pixels(mask: np.ndarray) -> None:
    area = 0.0
    for ring in mask_to_polygons(mask):
        x, y = np.array(ring).T
        area += (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    assert area == mask.sum()


@given(masks)
def test_no_corner_lies_on_a_straight_line(mask: np.ndarray) -> None:
    for ring in mask_to_polygons(mask):
        points = np.array(ring)
        before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
        assert (before * after == 0).all()


def test_a_hole_is_a_ring_of_its_own() -> None:
    mask = np.ones((3, 3), dtype=bool)
    mask[1, 1] = False
    assert mask_to_polygons(mask) == [
        [[0, 0], [3, 0], [3, 3], [0, 3]],
        [[1, 1], [1, 2], [2, 2], [2, 1]],
    ]


def test_pixels_that_touch_at_a_corner_are_two_rings() -> None:
    assert mask_to_polygons(np.eye(2, dtype=bool)) == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (4, 3)])
def test_an_empty_mask_has_no_ring_and_one_run(shape: tuple[int, int]) -> None:
    assert mask_to_polygons(np.zeros(shape, dtype=bool)) == []
    assert mask_to_rle(np.zeros(shape, dtype=bool))["size"] == list(shape)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_full_mask_is_one_rectangle(height: int, width: int) -> None:
    rings = mask_to_polygons(np.ones((height, width), dtype=bool))
    assert rings == [[[0, 0], [width, 0], [width, height], [0, height]]]
