"""Predictions: asked by prefix, written as they come, gone on with, refused when things changed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from paligemma.data.record import Record
from paligemma.errors import DataError, OptionError
from paligemma.evals.metrics.result import FoundObject, mask_of
from paligemma.evals.predictions import (
    Prediction,
    PredictOptions,
    objects_in_text,
    predict,
    read_predictions,
    task_of,
    weights_fingerprint,
)
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from tests.agreement.tiny_predictor import build_predictor, picture

PREFIXES = (
    "detect cat ; dog",
    "segment cat",
    "caption en",
    "answer en Where is the cow standing?",
    "ocr",
    "the dog on the beach",
)
SHORT = PredictOptions(max_new_tokens=60, max_objects=2)


@pytest.fixture(scope="module")
def predictor(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


def make_records() -> list[Record]:
    return [
        Record(record_id=f"r{number}", image=lambda n=number: picture(n), prefix=prefix)  # type: ignore[misc]
        for number, prefix in enumerate(PREFIXES)
    ]


def test_the_first_word_of_a_prefix_tells_the_task() -> None:
    tasks = [task_of(record, PredictOptions()) for record in make_records()]
    assert tasks == ["detect", "segment", "caption", "answer", "ocr", "generate"]
    assert task_of(make_records()[5], PredictOptions(task="segment")) == "segment"
    with pytest.raises(OptionError, match="no task"):
        PredictOptions(task="sing")  # type: ignore[arg-type]


def test_answers_are_those_of_the_predictors_own_methods(
    predictor: Predictor, tmp_path: Path
) -> None:
    records = make_records()
    answers = predict(predictor, records, tmp_path / "p.jsonl", SHORT)
    options: dict[str, Any] = {"max_objects": 2, "max_new_tokens": 60, "separate": False}
    found = predictor.detect(picture(0), "cat ; dog", **options)
    assert [f.box_xyxy for f in answers[0].objects] == [d.box_xyxy for d in found]
    assert [f.label for f in answers[0].objects] == list(found.labels)
    assert [f.score for f in answers[0].objects] == pytest.approx(list(found.scores), abs=1e-6)
    segments = predictor.segment(picture(1), "cat", **options)
    assert len(segments) == len(answers[1].objects) > 0
    for mine, own in zip(answers[1].objects, segments, strict=True):
        assert mine.rle is not None
        assert (mask_of(mine.rle) == own.mask).all()
    caption = predictor.caption(picture(2), max_new_tokens=60)
    assert answers[2].text == caption.text
    assert answers[2].score == pytest.approx(caption.score, abs=1e-6)
    assert answers[0].size_wh == (40, 20)


def test_log_probabilities_of_tokens_give_the_parts_of_the_score(
    predictor: Predictor, tmp_path: Path
) -> None:
    record = make_records()[0]
    (answer,) = predict(predictor, [record], tmp_path / "p.jsonl", SHORT)
    options: dict[str, Any] = {"max_objects": 2, "max_new_tokens": 60, "separate": False}
    found = predictor.detect(picture(0), "cat ; dog", **options)
    assert len(found) > 0
    for mine, own in zip(answer.objects, found, strict=True):
        assert len(mine.coordinate_logprobs) == 4
        probability = torch.tensor(mine.label_logprobs).sum().exp().item()
        assert probability == pytest.approx(own.label_score, rel=1e-4)
        factors = (own.existence_score, own.label_score, own.coordinate_score)
        assert mine.factors == pytest.approx(factors, rel=1e-4)
        assert mine.score == pytest.approx(math.prod(factors), rel=1e-4)


def test_a_line_says_everything() -> None:
    one = Prediction(
        record_id="a/1",
        task="segment",
        prefix="segment\tcat",
        text="naïve \u2028 text",
        score=0.25,
        size_wh=(7, 5),
        stop_reason="length",
        objects=(
            FoundObject(
                label="cat",
                box_xyxy=(0.125, 1, 2, 3),
                score=0.5,
                rle={"size": [5, 7], "counts": "03R1"},
                coordinate_logprobs=(-1.5, -2.0, -0.1, 0.0),
            ),
        ),
        problems=("cut: somewhere",),
        is_valid=False,
    )
    assert "\n" not in one.to_line()
    assert Prediction.from_line(one.to_line()) == one


def test_an_interrupted_run_goes_on_and_ends_with_the_same_answers(
    predictor: Predictor, tmp_path: Path
) -> None:
    records = make_records()
    whole = predict(predictor, records, tmp_path / "whole.jsonl", SHORT)
    data = (tmp_path / "whole.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    progress: list[tuple[int, int]] = []
    again = predict(
        predictor, records, cut, SHORT, on_progress=lambda *counts: progress.append(counts)
    )
    assert progress == [(2, 6), (6, 6)]
    assert [one.text for one in again] == [one.text for one in whole]
    assert [one.record_id for one in read_predictions(cut)] == [r.record_id for r in records]
    asked = cut.read_bytes()
    predict(predictor, records, cut, SHORT)
    assert cut.read_bytes() == asked, "a finished file is only read"


def test_what_changed_since_is_named(predictor: Predictor, tmp_path: Path) -> None:
    records, path = make_records()[2:4], tmp_path / "p.jsonl"
    predict(predictor, records, path, SHORT)
    with pytest.raises(DataError, match="options num_beams was 1 and is 2"):
        predict(predictor, records, path, dataclasses.replace(SHORT, num_beams=2))
    changed = [dataclasses.replace(records[0], prefix="caption de"), records[1]]
    with pytest.raises(
        DataError, match=r"to the prefix 'caption en', but the prefix is 'caption de'"
    ):
        predict(predictor, changed, path, SHORT)
    other = dataclasses.replace(predictor, name="other")
    with pytest.raises(DataError, match="model name was 'tiny' and is 'other'"):
        predict(other, records, path, SHORT)
    weight = predictor.model.projector.linear.weight
    with torch.no_grad():
        weight += 1e-3
    try:
        with pytest.raises(DataError, match="model weights was"):
            predict(predictor, records, path, SHORT)
    finally:
        with torch.no_grad():
            weight -= 1e-3


def test_the_fingerprint_sees_a_step_of_training(predictor: Predictor) -> None:
    before = weights_fingerprint(predictor.model)
    assert before == weights_fingerprint(predictor.model)
    with torch.no_grad():
        for name, weight in predictor.model.named_parameters():
            kept = weight.clone()
            weight.mul_(1.001).add_(1e-4)
            assert weights_fingerprint(predictor.model) != before, name
            weight.copy_(kept)
    assert weights_fingerprint(predictor.model) == before


def test_files_that_are_no_predictions_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    records, path = make_records()[:1], tmp_path / "p.jsonl"
    path.write_text('{"image": "a.png"}\n')
    with pytest.raises(DataError, match="header"):
        predict(predictor, records, path, SHORT)
    path.unlink()
    predict(predictor, records, path, SHORT)
    header, line = path.read_text().splitlines()
    broken = json.loads(line)
    del broken["objects"]
    path.write_text(f"{header}\n{json.dumps(broken)}\n")
    with pytest.raises(DataError, match=r"Line 2 of .* is not a prediction"):
        predict(predictor, records, path, SHORT)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match="empty"):
        read_predictions(empty)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([Record(record_id="a", image=Path("x.png"))], "'a' has no prefix"),
        ([Record(record_id="a", image=Path("x.png"), prefix="ocr")] * 2, "Two records"),
    ],
)
def test_records_that_cannot_be_told_apart_or_asked_are_refused(
    records: list[Record], message: str, predictor: Predictor, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        predict(predictor, records, tmp_path / "p.jsonl")


def test_a_record_that_the_model_cannot_be_asked_about_is_named(
    predictor: Predictor, tmp_path: Path
) -> None:
    bad = Record(record_id="r9", image=lambda: picture(9), prefix="x" * 20000)
    path = tmp_path / "p.jsonl"
    with pytest.raises(DataError, match="The record 'r9' cannot be answered"):
        predict(predictor, [bad], path)


def test_several_images_are_one_question(predictor: Predictor, tmp_path: Path) -> None:
    pair: Any = Record(
        record_id="pair",
        image=lambda: picture(1),
        more_images=(lambda: picture(2),),
        prefix="answer en Where is the cow standing?",
    )
    (answer,) = predict(predictor, [pair], tmp_path / "p.jsonl", SHORT)
    alone = predictor.generate([picture(1), picture(2)], pair.prefix, max_new_tokens=60)
    assert answer.text == alone.text.strip()


def test_a_suffix_of_tokens_is_read_as_objects(predictor: Predictor) -> None:
    suffix = "<loc0000><loc0000><loc1023><loc0512> cat ; <loc0000><loc0512><loc0512><loc1023> dog"
    found, problems = objects_in_text(
        predictor, suffix, "detect cat ; dog", (40, 20), has_masks=False
    )
    assert problems == ()
    assert [f.label for f in found] == ["cat", "dog"]
    assert found[0].box_xyxy == pytest.approx((0, 0, 40 * 512 / 1023, 20))
    _, problems = objects_in_text(
        predictor, "<loc0000><loc0000> cat", "detect cat", (40, 20), has_masks=False
    )
    assert problems[0].startswith("malformed")
