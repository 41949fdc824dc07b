"""On the page's samples, mini answers everything that the page suggests."""

from __future__ import annotations

from typing import Any

import pytest

import paligemma
from mini.samples import PAGE, make_sample, read_samples, wrong_answers
from mini.scene import make_scene
from paligemma.predictor import Predictor


@pytest.fixture(scope="module")
def mini() -> Predictor:
    return paligemma.load("mini")


@pytest.mark.parametrize("number", range(7))
def test_every_suggestion_is_answered_rightly(mini: Predictor, number: int) -> None:
    given = read_samples()[number]
    sample = make_sample(make_scene("test", given["seed"], given["index"]), number)
    assert sample is not None
    assert sample.to_dict() == given
    image = (PAGE / "samples" / given["file"]).read_bytes()
    assert wrong_answers(mini, sample, image) == []


def test_the_folder_has_these_images_and_no_others() -> None:
    samples: list[dict[str, Any]] = read_samples()
    names = sorted(path.name for path in (PAGE / "samples").iterdir())
    assert names == sorted(sample["file"] for sample in samples)
    assert len(names) == 7


def test_wrong_answers_are_told(mini: Predictor) -> None:
    first, second, *_ = read_samples()
    sample = make_sample(make_scene("test", first["seed"], first["index"]), 0)
    assert sample is not None
    other = (PAGE / "samples" / second["file"]).read_bytes()
    wrong = wrong_answers(mini, sample, other)
    assert any(line.startswith("caption en") for line in wrong)
    assert any(line.startswith("object 0") for line in wrong)
