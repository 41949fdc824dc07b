"""Polygons and run lengths become the pixels that the COCO API gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.masks import mask_to_rle, polygons_to_mask, rle_to_mask


def random_polygons(seed: int, count: int) -> list[tuple[list[list[float]], tuple[int, int]]]:
    """Rings of any kind: crossing themselves, reaching out of the picture, with equal points."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        width, height = (int(side) for side in rng.integers(1, 60, 2))
        rings = []
        for _ in range(int(rng.integers(1, 4))):
            points = rng.uniform(-4, 64, (int(rng.integers(3, 12)), 2))
            if rng.random() < 0.5:
                points = np.round(points * 2) / 2
            if rng.random() < 0.3:
                points = np.concatenate([points, points[:1], points[:1]])
            rings.append(points.ravel().tolist())
        cases.append((rings, (width, height)))
    return cases


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_are_filled_as_the_coco_api_fills_them() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="the reference is not installed")
    for rings, (width, height) in random_polygons(0, 300):
        expected = coco.decode(coco.merge(coco.frPyObjects(rings, height, width)))
        found = polygons_to_mask(rings, (width, height), "x")
        np.testing.assert_array_equal(found, expected.astype(np.bool_))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_real_annotations_are_filled_as_the_coco_api_fills_them(shared_data: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="the reference is not installed")
    path = shared_data / "metrics" / "coco" / "instances_val2014_100.json"
    content = json.loads(path.read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    shapes = [a for a in content["annotations"] if a["segmentation"]][::8]
    assert len(shapes) > 50
    for annotation in shapes:
        width, height = sizes[annotation["image_id"]]
        shape = annotation["segmentation"]
        rle = coco.frPyObjects(shape, height, width)
        expected = coco.decode(rle if isinstance(shape, dict) else coco.merge(rle))
        make: Any = rle_to_mask if isinstance(shape, dict) else polygons_to_mask
        found = make(shape, (width, height), "x")
        np.testing.assert_array_equal(found, expected.astype(np.bool_))


def test_a_square_covers_its_pixels() -> None:
    mask = polygons_to_mask([[1, 1, 5, 1, 5, 4, 1, 4]], (8, 6), "x")
    expected = np.zeros((6, 8), np.bool_)
    expected[1:4, 1:5] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_run_lengths_come_back_as_the_mask_that_they_were_made_of(density: float) -> None:
    rng = np.random.default_rng(3)
    for size_wh in ((1, 1), (7, 5), (33, 64), (300, 200)):
        mask = rng.random(size_wh[::-1]) < density
        rle: Any = mask_to_rle(mask)
        np.testing.assert_array_equal(rle_to_mask(rle, size_wh, "x"), mask)


def test_run_lengths_as_numbers_go_down_the_columns() -> None:
    mask = rle_to_mask({"size": [2, 3], "counts": [1, 2, 3]}, (3, 2), "x")
    np.testing.assert_array_equal(mask, [[False, True, False], [True, False, False]])


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [3, 2], "counts": [6]},
        {"size": [2, 3], "counts": [5]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": "no such text\n"},
        {"size": [2, 3], "counts": "o"},
        {"size": [2, 3]},
        {"counts": [6]},
        "text",
        None,
    ],
)
def test_run_lengths_that_do_not_fill_the_image_are_refused(rle: Any) -> None:
    with pytest.raises(DataError, match="Line 7"):
        rle_to_mask(rle, (3, 2), "Line 7")


@pytest.mark.parametrize(
    "polygon", [[1, 1, 2, 2], [1, 1, 2, 2, 3, 3, 4], [1, 1, 2, 2, 3, float("inf")], ["a"] * 6, 3]
)
def test_a_polygon_that_is_none_is_refused(polygon: Any) -> None:
    with pytest.raises(DataError, match="Line 7"):
        polygons_to_mask([polygon], (3, 2), "Line 7")
