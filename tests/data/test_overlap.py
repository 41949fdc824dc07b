"""Overlap of boxes and masks, and the matching of predictions to truth."""

from __future__ import annotations

import numpy as np

from paligemma.data.overlap import box_iou, mask_iou, match_boxes


def test_one_true_box_is_matched_once_by_the_highest_score() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [0.0, 0, 10, 11], [50.0, 50, 60, 60]])
    assert match_boxes(boxes, [0.2, 0.9, 0.5], boxes[:1], 0.5) == [None, 0, None]


def test_an_empty_box_overlaps_nothing() -> None:
    assert box_iou(np.array([[3.0, 3, 3, 3]]), np.array([[3.0, 3, 3, 3]])).tolist() == [[0.0]]


def test_boxes_side_by_side_do_not_overlap() -> None:
    boxes = np.array([[0.0, 0, 1, 1], [1.0, 0, 2, 1]])
    assert box_iou(boxes, boxes).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_masks_without_pixels_have_no_overlap() -> None:
    empty, full = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)
    half = full.copy()
    half[:2] = False
    assert (mask_iou(empty, empty), mask_iou(full, half)) == (0.0, 0.5)
