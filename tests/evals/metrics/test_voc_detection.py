"""Pascal VOC's average precision: the published curve of a small example."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from paligemma.evals.metrics.detection import VocAveragePrecision, precision_recall
from paligemma.evals.metrics.result import FoundObject, ReferenceImage, ReferenceObject


def xyxy(xywh: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = xywh
    return x, y, x + width, y + height


def person(box: tuple[float, float, float, float], score: float = 1.0) -> FoundObject:
    return FoundObject(label="person", box_xyxy=box, score=score)


def known(*boxes: tuple[float, float, float, float]) -> ReferenceImage:
    things = tuple(ReferenceObject(label="person", box_xyxy=box) for box in boxes)
    return ReferenceImage(size_wh=(200, 200), objects=things)


def test_the_curve_and_both_averages_are_the_published_ones(shared_data: Path) -> None:
    data = json.loads((shared_data / "metrics" / "voc_ap.json").read_text())
    truth, rows = data["ground_truth_xywh"], data["detections_score_xywh"]
    references = [known(*(xyxy(box) for box in truth[name])) for name in truth]
    predictions = [[person(xyxy(row[1:]), row[0]) for row in rows[name]] for name in truth]
    threshold, expected = data["iou_threshold"], data["expected"]
    precision, recall = precision_recall(predictions, references, "person", threshold)
    # The example prints two digits; equal scores leave the order of two of its rows open.
    assert np.abs(precision - expected["precision"]).max() < 0.0051
    assert np.abs(recall - expected["recall"]).max() < 0.0051
    whole = VocAveragePrecision(iou_threshold=threshold).score(predictions, references)
    assert 100 * whole.value == pytest.approx(expected["AP_every_point_percent"], abs=0.005)
    eleven = VocAveragePrecision(iou_threshold=threshold, eleven_points=True)
    value = eleven.score(predictions, references).value
    assert 100 * value == pytest.approx(expected["AP_11_point_percent"], abs=0.005)


def test_a_second_box_on_the_same_person_is_wrong() -> None:
    box = (10.0, 10.0, 50.0, 50.0)
    found = [[person(box, 0.9), person(box, 0.8)]]
    precision, recall = precision_recall(found, [known(box)], "person", 0.5)
    assert precision.tolist() == [1.0, 0.5]
    assert recall.tolist() == [1.0, 1.0]


def test_nothing_found_is_zero_and_nothing_to_find_has_no_score() -> None:
    metric = VocAveragePrecision()
    assert metric.score([[]], [known((0.0, 0.0, 9.0, 9.0))]).value == 0.0
    assert math.isnan(metric.score([[]], [known()]).value)


def test_difficult_objects_are_neither_missed_nor_wrong_to_find() -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)]
    objects = tuple(
        ReferenceObject(label="dog", box_xyxy=box, is_crowd=number == 1)
        for number, box in enumerate(boxes)
    )
    image = ReferenceImage(size_wh=(40, 20), objects=objects)
    found = [FoundObject(label="dog", box_xyxy=box, score=0.5) for box in boxes]
    metric = VocAveragePrecision()
    for answer in (found[:1], found, found[::-1], [*found, found[1]]):
        assert metric.score([answer], [image]).value == 1.0
    assert metric.score([[*found, found[0]]], [image]).value == 1.0
    assert metric.score([found[1:]], [image]).value == 0.0
