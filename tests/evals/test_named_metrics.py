"""Metrics by name: each can be had, and each benchmark's is given what it compares."""

from __future__ import annotations

import pytest

from paligemma.errors import OptionError
from paligemma.evals.datasets.open import BENCHMARKS
from paligemma.evals.named_metrics import NamedMetric, metric_named, metric_names

NOT_TEXT = {
    "box_map": "boxes",
    "coco_map": "boxes",
    "voc_ap50": "boxes",
    "mask_map": "masks",
    "mask_iou": "expression",
    "refcoco_miou": "expression",
    "text_detection_f1": "words",
    "text_spotting_f1": "words",
    "deteval_f1": "regions",
    "pointing_f1": "points",
}


def test_each_name_gives_a_metric_that_reads_one_thing() -> None:
    found = {name: metric_named(name).reads for name in metric_names()}
    assert {name: reads for name, reads in found.items() if reads != "text"} == NOT_TEXT
    assert {"anls", "cider", "teds_struct", "grits_top", "vqa_accuracy"} <= found.keys()


def test_settings_are_those_of_the_name() -> None:
    assert metric_named("exact_match_lower").metric.score(["Yes"], ["yes"]).value == 1.0
    assert metric_named("exact_match").metric.score(["Yes"], ["yes"]).value == 0.0
    assert metric_named("wer").metric.score(["a b"], ["a c"]).value == 0.5
    assert metric_named("cer").metric.score(["ab"], ["ac"]).value == 0.5


def test_benchmarks_of_objects_have_metrics_that_read_objects() -> None:
    for benchmark in BENCHMARKS:
        for name, metric in benchmark.metrics.items():
            reads = NamedMetric(name=name, metric=metric).reads
            expected = {
                "detect": "boxes",
                "segment": "expression",
                "read_text": "words",
            }.get(benchmark.task, "text")
            assert reads == expected, benchmark.name


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(OptionError, match="no metric 'f1'"):
        metric_named("f1")
