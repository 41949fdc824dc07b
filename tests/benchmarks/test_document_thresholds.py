"""The measurement of thresholds: every question is asked once, and what is right is counted."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import paligemma
from benchmarks import document_thresholds
from paligemma.answering import ImageQuery
from paligemma.tasks.detect import DetectTask
from tests.extraction.scripted import spoken


class Sayer:
    """Knows the heading's usual words, is unsure of whole pages, and finds nothing."""

    processor = replace(paligemma.load_processor("mini")[0], resolution=160)

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        for query in queries:
            [image] = query.images
            self.asked.append((image.name, query.query.text))  # type: ignore[union-attr]
            assert not isinstance(query.query.task, DetectTask)
            yield spoken("unanswerable", 0.55)


def test_values_questions_and_thresholds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Sayer()
    monkeypatch.setattr(paligemma, "load", lambda name: model)
    options = argparse.Namespace(number=4, seed=3, model="none")
    report = document_thresholds._measure(options)
    assert len(model.asked) == len(set(model.asked))
    rows = report["whole_page_score"]
    assert {(row["printed_right"], row["absent_right"]) for row in rows} == {(0.0, 1.0)}
    # An "unanswerable" is asked again in the tile of a form on a larger page.
    assert {row["questions_per_page"] for row in rows} == {12 * (1 + 3 / 4)}
    assert report["min_box_score"][0] == {"score": 0.0, "kept": 0.0, "right": None, "values": 0}
