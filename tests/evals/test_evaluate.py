"""Evaluation: what metrics read, intervals, groups, files, and scoring without generating."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma.checkpoints import TrainedOn
from paligemma.data import open_data
from paligemma.data.record import Record, TrueObject
from paligemma.errors import DataError, OptionError
from paligemma.evals import evaluation as module
from paligemma.evals.bootstrap import confidence_interval, mean_of
from paligemma.evals.datasets.published import PublishedScore
from paligemma.evals.evaluation import (
    EvalSet,
    Evaluation,
    evaluate,
    score_predictions,
)
from paligemma.evals.metrics.result import FoundObject
from paligemma.evals.options import Ask, EvalOptions
from paligemma.evals.predictions import Prediction, PredictOptions, task_of
from paligemma.evals.scoring import Grouping
from paligemma.masks import mask_to_rle
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from tests.agreement.tiny_predictor import build_predictor, picture


@pytest.fixture(scope="module")
def predictor(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


def blank(record_id: str, prefix: str, **fields: Any) -> Record:
    return Record(record_id=record_id, image=lambda: picture(0), prefix=prefix, **fields)


class Answers:
    """Stands in for asking: gives out what is written down, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, by_id: dict[str, Any]) -> None:
        self.by_id = by_id
        monkeypatch.setattr(module, "predict", self.predict)

    def predict(
        self,
        predictor: Predictor,
        records: Sequence[Record],
        path: Path,
        options: PredictOptions,
        **others: Any,
    ) -> list[Prediction]:
        path.parent.mkdir(exist_ok=True)
        return [self.one(record, options) for record in records]

    def one(self, record: Record, options: PredictOptions) -> Prediction:
        given = self.by_id[record.record_id]
        return Prediction(
            record_id=record.record_id,
            task=task_of(record, options),
            prefix=record.prefix,
            text=given if isinstance(given, str) else "",
            score=0.5,
            size_wh=(40, 20),
            stop_reason="eos",
            objects=() if isinstance(given, str) else tuple(given),
            is_valid=bool(given),
        )


def mask(box: tuple[int, int, int, int]) -> np.ndarray:
    inside = np.zeros((20, 40), dtype=np.bool_)
    x1, y1, x2, y2 = box
    inside[y1:y2, x1:x2] = True
    return inside


def found(label: str, box: tuple[int, int, int, int], score: float = 0.5) -> FoundObject:
    return FoundObject(
        label=label,
        box_xyxy=box,
        score=score,
        rle=mask_to_rle(mask(box)),
        coordinate_logprobs=(-1.0,) * 4,
        label_logprobs=(-0.5,),
        factors=(1.0, 1.0, score),
    )


def true(label: str, box: tuple[int, int, int, int]) -> TrueObject:
    return TrueObject(label=label, box_xyxy=box, make_mask=lambda: mask(box))


def test_answers_are_scored_by_exact_match_with_their_interval(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = ["two", "three", "two", "four"] * 5
    Answers(monkeypatch, {str(i): text for i, text in enumerate(replies)})
    records = [blank(str(i), "answer en how many?", suffix="two") for i in range(20)]
    evaluation = evaluate(
        predictor, EvalSet(records=records, name="counts"), tmp_path, EvalOptions(seed=3)
    )
    (score,) = evaluation.scores
    assert (score.result.name, score.result.value, score.task) == ("exact_match", 0.5, "answer")
    rights = [float(text == "two") for text in replies]
    assert score.interval == confidence_interval(mean_of(rights), 20, seed=3)
    report = json.loads((tmp_path / "report.json").read_text())
    assert score.interval is not None
    assert report["scores"][0]["interval"]["low"] == score.interval.low
    assert report["data"] == "counts"
    assert report["options"]["num_beams"] == 1
    assert report["model"]["name"] == "tiny"
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [line["metrics"]["exact_match"] for line in lines] == rights
    assert lines[1]["text"] == "three"
    assert lines[1]["references"] == ["two"]


def test_three_references_and_more_make_it_vqa_accuracy(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers(monkeypatch, {"a": "two", "b": "red"})
    records = [
        blank("a", "answer en how many?", references=("two",) * 10),
        blank("b", "answer en what color?", references=("blue",) * 10),
    ]
    (score,) = evaluate(predictor, records, tmp_path).scores
    assert (score.result.name, score.result.value) == ("vqa_accuracy", 0.5)


def test_each_task_of_mixed_records_has_its_own_metrics(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faster_coco_eval")
    box = (2, 2, 12, 12)
    Answers(monkeypatch, {"d": [found("cat", box)], "o": "EXIT", "g": "ab"})
    records = [
        blank("d", "detect cat", objects=(true("cat", box),), size_wh=(40, 20)),
        blank("o", "ocr", suffix="EXIT"),
        blank("g", "convert", suffix="abcd"),
    ]
    scores = {s.result.name: s for s in evaluate(predictor, records, tmp_path).scores}
    assert scores["box_map"].result.value == 1.0
    assert scores["cer"].result.value == 0.0
    assert scores["normalized_edit_distance"].result.value == 0.5
    assert {s.task for s in scores.values()} == {"detect", "ocr", "generate"}


def test_segmentation_of_one_object_each_goes_by_refcocos_rules(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers(monkeypatch, {"a": [found("cup", (0, 0, 10, 10))], "b": []})
    records = [
        blank("a", "segment cup", objects=(true("cup", (0, 0, 10, 5)),), size_wh=(40, 20)),
        blank("b", "segment dog", objects=(true("dog", (0, 0, 9, 9)),), size_wh=(40, 20)),
    ]
    (score,) = evaluate(predictor, records, tmp_path).scores
    assert score.result.name == "refcoco_miou"
    assert score.result.per_example == (0.5, 0.0)
    assert score.result.details["invalid"] == 0.5


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faster_coco_eval")
    Answers(monkeypatch, {"a": [found("cat", (20, 5, 30, 15)), found("cat", (0, 0, 10, 10))]})
    thing, crowd = true("cat", (0, 0, 10, 10)), true("cat", (18, 0, 40, 20))
    for crowds, value in (((crowd,), 1.0), ((), 0.5)):
        record = blank("a", "detect cat", objects=(thing,), crowds=crowds, size_wh=(40, 20))
        (score,) = evaluate(predictor, [record], tmp_path / str(value)).scores
        assert score.result.name == "box_map"
        assert score.result.value == pytest.approx(value)


def test_a_suffix_of_tokens_serves_as_the_truth(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faster_coco_eval")
    Answers(monkeypatch, {"a": [found("cat", (0, 0, 20, 10))]})
    suffix = "<loc0000><loc0000><loc0511><loc0511> cat"
    (score,) = evaluate(predictor, [blank("a", "detect cat", suffix=suffix)], tmp_path).scores
    assert score.result.value == 1.0
    broken = blank("a", "detect cat", suffix="<loc0000> cat")
    with pytest.raises(DataError, match="is not a list of objects"):
        evaluate(predictor, [broken], tmp_path)


def test_words_that_nobody_can_read_do_not_count(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers(monkeypatch, {"a": [found("EXIT", (0, 0, 10, 5)), found("blur", (20, 0, 30, 5))]})
    objects = (true("EXIT", (0, 0, 10, 5)), true("###", (20, 0, 30, 5)))
    record = blank("a", "ocr", objects=objects, size_wh=(40, 20))
    options = EvalOptions(task="read_text")
    scores = evaluate(predictor, [record], tmp_path, options).scores
    assert [(s.result.name, s.result.value) for s in scores] == [
        ("text_spotting_f1", 1.0),
        ("text_detection_f1", 1.0),
    ]
    counted = evaluate(predictor, EvalSet(records=[record], dont_care=()), tmp_path, options).scores
    assert [s.result.value for s in counted] == [0.5, 1.0]


def test_boxes_serve_as_regions_and_as_points(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers(monkeypatch, {"a": [found("cat", (0, 0, 20, 10)), found("cat", (30, 10, 34, 14))]})
    objects = (true("cat", (4, 0, 20, 10)), true("cat", (36, 10, 40, 20)))
    record = blank("a", "detect cat", objects=objects, size_wh=(40, 20))
    options = EvalOptions(metrics=("deteval_f1", "pointing_f1"))
    scores = evaluate(predictor, [record], tmp_path, options).scores
    assert [(s.result.name, s.result.value) for s in scores] == [
        ("deteval_f1", 0.5),
        ("pointing_f1", 0.5),
    ]


def test_groups_are_figures_or_what_the_value_is_the_mean_of(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers(monkeypatch, {"0": "yes", "1": "no", "2": "no", "3": "no"})
    records = [blank(str(i), "answer en is it?", suffix="yes") for i in range(4)]

    def run(is_mean: bool) -> Evaluation:
        grouping = Grouping(names=("x", "y", "y", "y"), is_mean=is_mean)
        return evaluate(predictor, EvalSet(records=records, grouping=grouping), tmp_path)

    for is_mean, value in ((False, 0.25), (True, 0.5)):
        result = run(is_mean).scores[0].result
        assert result.value == value
        assert (result.details["group/x"], result.details["group/y"]) == (1.0, 0.0)
    interval = run(True).scores[0].interval
    assert interval is not None
    assert (interval.low, interval.high) == (0.5, 0.5)


def test_a_score_over_the_whole_set_gets_its_interval_by_scoring_resamples(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers(monkeypatch, {str(i): "a cat on a mat" if i % 2 else "dogs" for i in range(10)})
    records = [blank(str(i), "caption en", suffix="a cat on a mat") for i in range(10)]
    (score,) = evaluate(predictor, records, tmp_path, EvalOptions(metrics=("bleu_4",))).scores
    assert score.interval is not None
    assert 0 < score.interval.low < score.result.value < score.interval.high <= 1


def test_calibration_is_of_boxes_where_there_are_some_and_is_written(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faster_coco_eval")
    rng = np.random.default_rng(0)
    box, other = (2, 2, 12, 12), (20, 2, 30, 12)
    by_id, records = {}, []
    for i in range(80):
        sure = float(rng.uniform(0.05, 0.2))
        by_id[str(i)] = [found("cat", box if rng.random() < 5 * sure else other, sure)]
        records.append(blank(str(i), "detect cat", objects=(true("cat", box),), size_wh=(40, 20)))
    Answers(monkeypatch, by_id)
    evaluation = evaluate(predictor, records, tmp_path, EvalOptions(calibrate=True))
    found_calibration = evaluation.calibration
    assert found_calibration is not None
    assert found_calibration.ece_after < found_calibration.ece_before
    assert (tmp_path / "calibration.json").exists()
    assert (tmp_path / "reliability.svg").read_text().startswith("<svg")
    assert {row.name for row in evaluation.formulas} > {"coordinates", "label"}


def test_metrics_that_do_not_fit_are_told(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers(monkeypatch, {"a": "a cat"})
    record = blank("a", "caption en", suffix="a cat")
    with pytest.raises(OptionError, match="box_map is for the task caption"):
        evaluate(predictor, [record], tmp_path, EvalOptions(metrics=("box_map",)))
    with pytest.raises(DataError, match="no answer to compare with"):
        evaluate(predictor, [blank("a", "caption en")], tmp_path)
    with pytest.raises(DataError, match="has no records"):
        evaluate(predictor, [], tmp_path)
    with pytest.raises(OptionError, match=r"Did you mean: .*exact_match"):
        EvalOptions(metrics=("exactmatch",))


def test_a_limit_keeps_the_first_records_and_their_groups(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers(monkeypatch, {"0": "yes", "1": "no", "2": "no"})
    records = [blank(str(i), "answer en is it?", suffix="yes") for i in range(3)]
    data = EvalSet(records=records, grouping=Grouping(names=("x", "x", "y"), is_mean=False))
    (score,) = evaluate(predictor, data, tmp_path, EvalOptions(limit=2)).scores
    assert score.num_records == 2
    assert score.result.details["group/x"] == 0.5
    assert "group/y" not in score.result.details


def test_opened_data_keep_their_name_and_classes(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    line = {"image": "0.png", "objects": [{"label": "cat", "box_xyxy": [1, 1, 9, 9]}]}
    (tmp_path / "cats.jsonl").write_text(json.dumps(line) + "\n")
    data = EvalSet.of(open_data(tmp_path / "cats.jsonl"))
    assert (data.name, data.class_names, data.object_task) == ("cats.jsonl", ("cat",), "detect")
    assert EvalSet.of(list(data.records)).class_names == ()


@pytest.mark.parametrize("options", [{"task": "translate"}, {"metrics": ("cidr",)}])
def test_options_that_do_not_exist_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"There is no (task|metric)"):
        EvalOptions(**options)


@pytest.mark.parametrize(
    ("ask", "task", "prefix"),
    [
        ("dataset", "detect", "detect cat ; dog"),
        ("present", "detect", "detect dog"),
        ("all classes", "detect", "detect all classes"),
        ("present", "segment", "segment dog"),
    ],
)
def test_objects_without_a_prefix_are_asked_for_by_class(ask: Ask, task: Any, prefix: str) -> None:
    record = blank("a", "", objects=(true("dog", (0, 0, 5, 5)),), size_wh=(40, 20))
    data = EvalSet(records=[record], class_names=("cat", "dog"))
    asked = data.asked_as(None, EvalOptions(ask=ask, task=task)).with_prefix(record)
    assert asked.prefix == prefix


def test_a_trained_model_is_asked_as_in_its_training() -> None:
    record = blank("a", "", objects=(true("dog", (0, 0, 5, 5)), true("owl", (0, 0, 5, 5))),
                   size_wh=(40, 20))  # fmt: skip
    data = EvalSet(records=[record], class_names=("dog", "owl"))

    def prefix(trained_on: TrainedOn, **chosen: Any) -> str:
        return data.asked_as(trained_on, EvalOptions(**chosen)).with_prefix(record).prefix

    names = ("dog", "cat")
    trained_on = TrainedOn(task="segment", prompt="segment dog ; cat", class_names=names)
    assert prefix(trained_on) == "segment dog ; cat"
    assert prefix(trained_on, task="detect") == "detect dog ; cat"
    assert prefix(trained_on, ask="dataset") == "detect dog ; owl"
    assert prefix(TrainedOn(task="detect", class_names=names, ask="present")) == "detect dog"
    free = TrainedOn(task="detect", prompt="detect animals", class_names=names)
    assert prefix(free) == "detect animals"
    assert data.asked_as(free, EvalOptions()).any_label
    assert prefix(TrainedOn(prompt="caption en")) == "detect dog ; owl"
    asked = data.asked_as(trained_on, EvalOptions())
    assert asked.notes == ("classes that the model was not trained on, and is not asked for: owl",)
    assert asked.asked_as(trained_on, EvalOptions()) == asked


def test_a_record_with_nothing_to_ask_is_told() -> None:
    empty = blank("a", "", objects=(), size_wh=(40, 20))
    with pytest.raises(DataError, match="neither a prefix nor classes"):
        EvalSet(records=[empty]).with_prefix(empty)
    kept = blank("b", "detect cup", objects=())
    assert EvalSet(records=[kept]).with_prefix(kept) is kept


def test_answers_in_a_file_are_scored_without_a_model(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(monkeypatch, {"a": "two", "b": "red"})
    records = [blank(i, "answer en what?", suffix="two") for i in ("a", "b")]
    given = answers.predict(predictor, records, tmp_path / "p", PredictOptions())
    (score,) = score_predictions(given[::-1], records)
    assert (score.result.value, score.result.per_example) == (0.5, (1.0, 0.0))
    with pytest.raises(DataError, match="1 of 2 records have no prediction, the first is 'b'"):
        score_predictions(given[:1], records)
    boxed = [blank(i, "detect cat", suffix="<loc0000> cat") for i in ("a", "b")]
    found_there = answers.predict(predictor, boxed, tmp_path / "p", PredictOptions())
    with pytest.raises(DataError, match="tokenizer"):
        score_predictions(found_there, boxed)


def figure(resolution: int, value: float) -> PublishedScore:
    return PublishedScore(
        row="DOCCI",
        metric="acc",
        model="paligemma2-3b",
        resolution=resolution,
        value=value,
        source="a paper",
    )


def test_published_figures_are_those_of_the_same_size_and_resolution() -> None:
    figures = (figure(224, 61.0), figure(448, 64.0))
    evaluation = Evaluation(
        model="", data="", scores=(), published=figures, num_records=1, seconds=0.0
    )
    name = "google/paligemma2-3b-ft-docci-448"
    assert [f.value for f in evaluation.published_for(name, 448)] == [64.0]
    assert evaluation.published_for("google/paligemma-3b-pt-448", 448) == ()


def test_the_whole_way_with_a_real_model_asks_nothing_twice(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [blank(str(i), "caption en", suffix="a cat") for i in range(3)]
    options = EvalOptions(max_new_tokens=8)
    first = evaluate(predictor, records, tmp_path, options)
    monkeypatch.setattr(Predictor, "run", None)
    again = evaluate(
        predictor, records, tmp_path, dataclasses.replace(options, metrics=("exact_match",))
    )
    assert {s.result.name for s in first.scores} == {"cider", "bleu_4"}
    assert [s.result.name for s in again.scores] == ["exact_match"]
