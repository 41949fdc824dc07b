"""A model's predictions on records, scored, with a report.

    records -> predictions.jsonl -> scores -> records.jsonl (one line per record), report.json

Scores are computed from the file of predictions, so that a run that was interrupted, or is scored
again with another metric, never generates an answer twice.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.data.open import Records, check_number_of_bad
from paligemma.data.record import BadRecord, Record
from paligemma.data.source import ObjectTask, ReadOptions
from paligemma.errors import DataError, InputError, OptionError
from paligemma.evals.calibration import Calibration, FormulaScore, calibrate, compare_formulas
from paligemma.evals.datasets.published import PublishedScore
from paligemma.evals.named_metrics import NamedMetric, metric_named
from paligemma.evals.options import Ask, EvalOptions, TaskName
from paligemma.evals.predictions import (
    OBJECT_TASKS,
    Prediction,
    PredictOptions,
    objects_in_text,
    predict,
)
from paligemma.evals.reliability import answer_outcomes, box_outcomes
from paligemma.evals.scoring import DONT_CARE, Grouping, Score, ScoredRecords, score_records
from paligemma.predictor import Predictor
from paligemma.processor.sequence import SuffixPart, build_example
from paligemma.report.charts import check_charts
from paligemma.tasks.object_grammar import MAX_OBJECTS
from paligemma.tasks.parse_prompt import kind_of_prompt

PREDICTIONS_FILE = "predictions.jsonl"
RECORDS_FILE = "records.jsonl"
REPORT_FILE = "report.json"
CALIBRATION_FILE = "calibration.json"
DIAGRAM_FILE = "reliability.svg"
_PUBLISHED_FIELDS = ("metric", "model", "resolution", "value", "source")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an evaluation."""

    model: str
    data: str
    scores: tuple[Score, ...]
    published: tuple[PublishedScore, ...]
    num_records: int
    seconds: float
    """Time spent on generating; short where predictions already existed."""
    calibration: Calibration | None = None
    formulas: tuple[FormulaScore, ...] = ()

    def published_for(self, model: str, resolution: int) -> tuple[PublishedScore, ...]:
        """The papers' figures for this model's family and size at this resolution."""
        name = model.rpartition("/")[2]
        return tuple(
            figure
            for figure in self.published
            if figure.resolution == resolution and name.startswith(f"{figure.model}-")
        )


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """Records to evaluate on, and what their data set says about asking and scoring."""

    records: Sequence[Record]
    name: str = ""
    metrics: tuple[NamedMetric, ...] = ()
    """Used where the options name no metric; empty: the usual metrics of each task."""
    task: TaskName | None = None
    max_new_tokens: int | None = None
    object_task: ObjectTask = "detect"
    """The prefix of a record without one is this word and class names."""
    class_names: tuple[str, ...] = ()
    published: tuple[PublishedScore, ...] = ()
    grouping: Grouping | None = None
    dont_care: tuple[str, ...] = DONT_CARE
    notes: tuple[str, ...] = ()
    """What the user should know about the data, in sentences."""
    prompt: str = ""
    """The prefix of records without one, instead of one that is built from classes."""
    any_label: bool = False
    """Whether answers to it have labels that it does not name."""
    ask: Ask = "dataset"
    is_chosen_on: bool = False
    """Whether the model was chosen among others by its score on these records. The score is then
    too high, and has no interval: resampling the records does not repeat the choice."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> EvalSet:
        """Any records; those of `open_data` keep their name and classes."""
        if not isinstance(records, Records):
            return cls(records=records)
        return cls(
            records=records,
            name=records.name,
            class_names=records.class_names,
            object_task=records.task,
            notes=(records.summary, *records.notes),
        )

    def asked_as(self, trained_on: TrainedOn | None, options: EvalOptions) -> EvalSet:
        """With the options' way of asking, or else that of the model's training.

        In the latter case `notes` name the classes that the model was not trained on.
        """
        task: ObjectTask | None = "segment" if options.task == "segment" else None
        if options.task == "detect":
            task = "detect"
        if options.ask is not None or trained_on is None or trained_on.task is None:
            ask = options.ask or self.ask
            return replace(self, ask=ask, object_task=task or self.object_task)._without_empty()
        task = task or trained_on.task
        labels = {o.label for r in self.records if not r.prefix for o in r.objects or ()}
        notes = list(self.notes)
        if unknown := sorted(labels - set(trained_on.class_names)):
            notes.append(
                f"classes that the model was not trained on, and is not asked for: "
                f"{', '.join(unknown)}"
            )
        has_same_task = trained_on.prompt is not None and trained_on.prompt.startswith(task)
        return replace(
            self,
            ask=trained_on.ask,
            object_task=task,
            class_names=trained_on.class_names,
            prompt=trained_on.prompt or "" if has_same_task else "",
            any_label=has_same_task and trained_on.labels == "any",
            notes=tuple(dict.fromkeys(notes)),
        )._without_empty()

    def with_prefix(self, record: Record) -> Record:
        """The record with a prefix: objects without one are asked for by label.

        Raises DataError where there is nothing to ask for.
        """
        if record.prefix.strip() or record.objects is None:
            return record
        if self.prompt:
            return replace(record, prefix=self.prompt)
        names = list(self.class_names)
        if self.ask == "present":
            present = {true.label for true in record.objects}
            names = [name for name in names if name in present] or sorted(present)
        phrases = "all classes" if self.ask == "all classes" else " ; ".join(names)
        if not phrases:
            raise DataError(
                f"The record {record.record_id!r} has neither a prefix nor classes to ask for. "
                "Give class names, or use ask='all classes'."
            )
        return replace(record, prefix=f"{self.object_task} {phrases}")

    def _without_empty(self) -> EvalSet:
        """Without images in which there is nothing to ask for."""
        if self.ask != "present":
            return self
        kept: Sequence[Record] = [r for r in self.records if r.prefix or r.objects != ()]
        if len(kept) == len(self.records):
            return self
        if isinstance(self.records, Records):  # which knows bad records too
            ids = {record.record_id for record in kept}
            kept = self.records.part(ids | {bad.record_id for bad in self.records.skipped})
        note = f"images without an object, left out: {len(self.records) - len(kept)}"
        return replace(self, records=kept, notes=(*self.notes, note))

    def first(self, limit: int | None) -> EvalSet:
        """The first `limit` records, or all of them for None."""
        if limit is None:
            return self
        grouping = self.grouping
        if grouping is not None:
            grouping = replace(grouping, names=grouping.names[:limit])
        return replace(self, records=self.records[:limit], grouping=grouping)


def evaluate(
    predictor: Predictor,
    data: Sequence[Record] | EvalSet,
    folder: Path,
    options: EvalOptions | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Generate predictions, score them, and write predictions, scores and report into a folder.

    Without metrics in the options or the data each task has its own: CIDEr and BLEU-4 for captions;
    VQA accuracy for answers with three references or more, else exact match; error rates for OCR;
    box mAP; mask IoU by RefCOCO's rules where each record has one object, else mask and box mAP; F1
    of words; exact match and edit distance for other text. Intervals hold 95 % of resampled
    records. Records with objects and without a prefix get one, as in training
    (`predictor.trained_on`).

    Raises DataError for records that cannot be used or scored, and what `predict` raises.

    >>> evaluation = evaluate(model, open_data("valid.json"), Path("out"))    # doctest: +SKIP
    >>> evaluation.scores[0].result.value                                     # doctest: +SKIP
    0.71
    """
    options = options or EvalOptions()
    if options.calibrate:  # refuse before the model has answered everything
        check_charts("eval", "Drawing the reliability diagram")
    data = data if isinstance(data, EvalSet) else EvalSet.of(data)
    data = data.asked_as(predictor.trained_on, options).first(options.limit)
    records = data.records
    metrics = [metric_named(name) for name in options.metrics] or data.metrics
    if not records:
        raise DataError("There is nothing to evaluate: the data set has no records.")
    records = [data.with_prefix(record) for record in records]
    predict_options = predict_options_of(options, data)
    start = time.perf_counter()
    predictions = predict(
        predictor,
        records,
        folder / PREDICTIONS_FILE,
        predict_options,
        batch_size=options.batch_size,
        on_progress=on_progress,
    )
    seconds = time.perf_counter() - start
    scored = ScoredRecords(
        records=records, predictions=predictions, predictor=predictor, dont_care=data.dont_care
    )
    scores = score_records(
        scored,
        metrics,
        grouping=data.grouping,
        seed=options.seed,
        has_intervals=not data.is_chosen_on,
    )
    calibration: Calibration | None = None
    formulas: tuple[FormulaScore, ...] = ()
    if options.calibrate:
        calibration, formulas = _calibrate(scored, scores, options.seed, predictor.name, data.name)
        calibration.save(folder / CALIBRATION_FILE)
        (folder / DIAGRAM_FILE).write_text(calibration.diagram(), encoding="utf-8")
    evaluation = Evaluation(
        model=predictor.name,
        data=data.name,
        scores=scores,
        published=data.published,
        num_records=len(records),
        seconds=seconds,
        calibration=calibration,
        formulas=formulas,
    )
    _write_records(folder / RECORDS_FILE, scored, scores)
    report = _report(evaluation, predictor, predict_options)
    if data.is_chosen_on:
        report["note"] = "The model was chosen by its score on these records."
    (folder / REPORT_FILE).write_text(
        json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    return evaluation


def skip_unusable(
    predictor: Predictor, data: EvalSet, options: EvalOptions, reading: ReadOptions
) -> tuple[EvalSet, tuple[BadRecord, ...]]:
    """The records that can be asked and scored, and the others, which `reading` says to skip.

    Reads every image and tokenizes every text, so that nothing stops an evaluation halfway. Raises
    DataError for the first bad record, or for more of them than may be skipped.
    """
    slots = data.records.slots if isinstance(data.records, Records) else data.records
    bad = [slot for slot in slots if isinstance(slot, BadRecord)]
    kept: list[Record] = []
    for record in data.records[: options.limit]:
        try:
            _check_usable(predictor, record, options.task or data.task)
            kept.append(record)
        except (DataError, InputError) as error:
            where = record.where or record.record_id
            reason = str(error) if where in str(error) else f"{where}: {error}"
            if reading.on_bad_record == "error":
                raise DataError(
                    f"{reason} To leave such records out: on_bad_record='skip' (--on-bad-record "
                    "skip)."
                ) from error
            bad.append(BadRecord(record_id=record.record_id, where=where, reason=reason))
    check_number_of_bad(bad, len(kept) + len(bad), reading.max_skipped)
    return replace(data, records=kept), tuple(bad)


def _check_usable(predictor: Predictor, record: Record, task: TaskName | None) -> None:
    size_wh = record.load_images()[0].size_wh
    processor = predictor.processor
    build_example(
        processor.tokenizer,
        record.prefix,
        (SuffixPart(record.suffix, True),),
        1 + len(record.more_images),
        processor.num_image_tokens,
    )
    kind = task or kind_of_prompt(record.prefix)
    if kind in OBJECT_TASKS and record.objects is None:
        _, problems = objects_in_text(
            predictor, record.suffix, record.prefix, size_wh, has_masks=kind == "segment"
        )
        if problems:
            raise DataError(
                f"The suffix {record.suffix[:80]!r} is not a list of objects: {problems[0]}"
            )


def predict_options_of(options: EvalOptions, data: EvalSet) -> PredictOptions:
    """How the answers to a data set are generated."""
    return PredictOptions(
        task=options.task or data.task,
        max_new_tokens=options.max_new_tokens or data.max_new_tokens,
        num_beams=options.num_beams,
        constrained=options.constrained,
        labels="any" if options.any_label or data.any_label else None,
        max_objects=options.max_objects or MAX_OBJECTS,
    )


def score_predictions(
    predictions: Sequence[Prediction],
    records: Sequence[Record],
    metrics: Sequence[NamedMetric] = (),
    *,
    grouping: Grouping | None = None,
    dont_care: Sequence[str] = DONT_CARE,
    seed: int = 0,
) -> tuple[Score, ...]:
    """The scores of existing predictions, without a model; metrics as for `evaluate`.

    Raises DataError for a record without a prediction, or one whose objects are in its suffix,
    which only the model's tokenizer can read.

    >>> score_predictions(read_predictions(path), records)               # doctest: +SKIP
    """
    by_id = {prediction.record_id: prediction for prediction in predictions}
    missing = [record.record_id for record in records if record.record_id not in by_id]
    if missing or not records:
        raise DataError(
            f"{len(missing)} of {len(records)} records have no prediction"
            + (f", the first is {missing[0]!r}. " if missing else ". ")
            + "Give the records that the predictions were generated from."
        )
    aligned = [by_id[record.record_id] for record in records]
    scored = ScoredRecords(
        records=records, predictions=aligned, predictor=None, dont_care=dont_care
    )
    return score_records(scored, metrics, grouping=grouping, seed=seed)


def _calibrate(
    scored: ScoredRecords, scores: Sequence[Score], seed: int, model: str, data: str
) -> tuple[Calibration, tuple[FormulaScore, ...]]:
    """On boxes where there are some, otherwise on answers by their first metric."""
    with_boxes = ("detect", "segment")
    indices = [i for i, p in enumerate(scored.predictions) if p.task in with_boxes]
    if indices:
        found = [scored.predictions[i].objects for i in indices]
        images = [scored.reference_image(i, has_crowds=True) for i in indices]
        outcomes = box_outcomes(found, images)
        calibration = calibrate(outcomes, "boxes", seed=seed, model=model, data=data)
        return calibration, compare_formulas(found, images, seed=seed)
    for score in scores:
        correct = score.result.per_example
        if correct and score.result.higher_is_better and min(correct) >= 0 and max(correct) <= 1:
            answers = [scored.predictions[i].score for i in scored.indices(score.task)]
            outcomes = answer_outcomes(answers, correct)
            return calibrate(outcomes, "answers", seed=seed, model=model, data=data), ()
    raise OptionError(
        "There is nothing to calibrate: no boxes, and no metric that scores each answer from 0 to "
        "1. Add one, such as exact_match."
    )


def _write_records(path: Path, scored: ScoredRecords, scores: Sequence[Score]) -> None:
    metrics: list[dict[str, float | None]] = [{} for _ in scored.predictions]
    for score in scores:
        per_example = score.result.per_example
        for index, value in zip(scored.indices(score.task), per_example, strict=False):
            metrics[index][score.result.name] = None if math.isnan(value) else float(value)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record, prediction, values in zip(
            scored.records, scored.predictions, metrics, strict=True
        ):
            line = _record_line(record, prediction, values)
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _record_line(
    record: Record, prediction: Prediction, metrics: dict[str, float | None]
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": record.record_id,
        "task": prediction.task,
        "prefix": record.prefix,
        "text": prediction.text,
        "score": prediction.score,
        "references": list(record.references or filter(None, (record.suffix,))),
        "metrics": metrics,
    }
    if prediction.task in OBJECT_TASKS:
        line |= {
            "found": [
                {"label": found.label, "box_xyxy": found.box_xyxy, "score": found.score}
                for found in prediction.objects
            ],
            "true": [
                {"label": true.label, "box_xyxy": true.box_xyxy} for true in record.objects or ()
            ],
            "problems": list(prediction.problems),
        }
    return line


def _report(
    evaluation: Evaluation, predictor: Predictor, options: PredictOptions
) -> dict[str, Any]:
    return {
        "model": predictor.info(),
        "data": evaluation.data,
        "num_records": evaluation.num_records,
        "options": asdict(options),
        "scores": [score.to_dict() for score in evaluation.scores],
        "published": [
            {name: getattr(figure, name) for name in _PUBLISHED_FIELDS}
            for figure in evaluation.published
        ],
        "formulas": [asdict(row) for row in evaluation.formulas],
        "seconds": round(evaluation.seconds, 3),
        "versions": {
            "paligemma": version("paligemma"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
