"""A model, records and metrics -> predictions, scores with intervals, and a report.

    records -> predictions.jsonl -> scores -> records.jsonl (one line a record), report.json

Scoring works from the file of predictions, so that a run that was interrupted, or is scored anew by
another metric, asks the model nothing twice. Knows which metric a task has by default; the metrics
themselves know no records.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from paligemma.data.open import Records
from paligemma.data.record import Record
from paligemma.data.source import ObjectTask
from paligemma.errors import DataError, OptionError
from paligemma.evals.bootstrap import (
    NUM_RESAMPLES,
    Counts,
    Interval,
    Statistic,
    confidence_interval,
    mean_of,
)
from paligemma.evals.calibration import (
    Calibration,
    FormulaScore,
    calibrate,
    compare_formulas,
    judge_answers,
    judge_boxes,
)
from paligemma.evals.metrics.objects import FoundObject, ReferenceImage, ReferenceObject
from paligemma.evals.metrics.result import MetricResult, Reads
from paligemma.evals.metrics.text_regions import Word
from paligemma.evals.named_metrics import NamedMetric, metric_named
from paligemma.evals.options import Ask, EvalOptions
from paligemma.evals.polygon_overlap import polygon_of_box
from paligemma.evals.predictions import (
    OBJECT_TASKS,
    Prediction,
    PredictOptions,
    TaskName,
    objects_in_text,
    predict,
)
from paligemma.masks import mask_to_rle
from paligemma.predictor import Predictor
from paligemma.report.charts import check_charts
from paligemma.results import BoxXyxy
from paligemma.tasks.object_grammar import MAX_OBJECTS

PREDICTIONS_FILE = "predictions.jsonl"
RECORDS_FILE = "records.jsonl"
REPORT_FILE = "report.json"
CALIBRATION_FILE = "calibration.json"
DIAGRAM_FILE = "reliability.svg"

DONT_CARE = ("###",)
"""Labels of words that are neither right nor wrong to find, as ICDAR writes them."""
_MANY_ANSWERS = 3  # from here on VQA accuracy says something
_RESAMPLES_BY_SCORING = 200  # where a metric must score each resample anew


class Published(Protocol):
    """A figure of a paper, in its unit: percent, CIDEr times 100."""

    @property
    def metric(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def resolution(self) -> int | None: ...
    @property
    def value(self) -> float: ...
    @property
    def source(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric on the records of one task."""

    task: TaskName
    result: MetricResult
    interval: Interval | None
    num_records: int

    def to_dict(self) -> dict[str, Any]:
        """Without the scores of single records, which have a file of their own."""
        values = self.result.to_dict()
        del values["per_example"]
        interval = None if self.interval is None else asdict(self.interval)
        return {"task": self.task, "num_records": self.num_records, **values, "interval": interval}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that came out."""

    model: str
    data: str
    scores: tuple[Score, ...]
    published: tuple[Published, ...]
    num_records: int
    seconds: float
    """For asking; little where the answers were there already."""
    calibration: Calibration | None = None
    formulas: tuple[FormulaScore, ...] = ()

    def published_for(self, model: str, resolution: int) -> tuple[Published, ...]:
        """The papers' figures for this model's family and size at this resolution."""
        name = model.rpartition("/")[2]
        return tuple(
            figure
            for figure in self.published
            if figure.resolution == resolution and name.startswith(f"{figure.model}-")
        )


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Groups of records whose scores a benchmark averages, such as languages."""

    names: tuple[str, ...]
    """One a record."""
    is_mean: bool
    """The value is the plain mean over groups; otherwise groups are further figures."""


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
    """What a record without a prefix asks for, with `class_names`."""
    class_names: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    grouping: Grouping | None = None
    dont_care: tuple[str, ...] = DONT_CARE
    notes: tuple[str, ...] = ()
    """What a person should know about the data, in sentences."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> EvalSet:
        """Records as `open_data` returns them, with their name and classes; or any others."""
        if not isinstance(records, Records):
            return cls(records=records)
        return cls(
            records=records,
            name=records.name,
            class_names=records.class_names,
            object_task=records.task,
            notes=(records.found, *records.notes),
        )

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
    """Ask, score, and write predictions, scores and report into a folder.

    Without metrics in the options or the data each task has its own: CIDEr and BLEU-4 for captions;
    VQA accuracy for answers with three references or more, else exact match; error rates for OCR;
    box mAP; mask IoU by RefCOCO's rules where each record has one object, else mask and box mAP; F1
    of words; exact match and edit distance for other text. Intervals hold 95 % of resampled
    records. Records with objects and without a prefix get one, as in training.

    Raises DataError for records that cannot be asked or scored, and what `predict` raises.

    >>> evaluation = evaluate(model, open_data("valid.json"), Path("out"))    # doctest: +SKIP
    >>> evaluation.scores[0].result.value                                     # doctest: +SKIP
    0.71
    """
    options = options or EvalOptions()
    if options.calibrate:  # refuse before the model has answered everything
        check_charts("eval", "Drawing the reliability diagram")
    data = (data if isinstance(data, EvalSet) else EvalSet.of(data)).first(options.limit)
    records = data.records
    metrics = [metric_named(name) for name in options.metrics] or data.metrics
    if not records:
        raise DataError("There is nothing to evaluate: the data hold no record.")
    object_task = "segment" if options.task == "segment" else data.object_task
    asked = [with_prefix(record, object_task, options.ask, data.class_names) for record in records]
    predict_options = _predict_options(options, data)
    start = time.perf_counter()
    predictions = predict(
        predictor,
        asked,
        folder / PREDICTIONS_FILE,
        predict_options,
        batch_size=options.batch_size,
        on_progress=on_progress,
    )
    seconds = time.perf_counter() - start
    examples = _Examples(predictor, asked, predictions, data.dont_care)
    scores = _scores(examples, metrics, data.grouping, options.seed)
    calibration: Calibration | None = None
    formulas: tuple[FormulaScore, ...] = ()
    if options.calibrate:
        calibration, formulas = _calibrate(
            examples, scores, options.seed, predictor.name, data.name
        )
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
    _write_records(folder / RECORDS_FILE, examples, scores)
    report = _report(evaluation, predictor, predict_options)
    (folder / REPORT_FILE).write_text(
        json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    return evaluation


def _predict_options(options: EvalOptions, data: EvalSet) -> PredictOptions:
    return PredictOptions(
        task=options.task or data.task,
        max_new_tokens=options.max_new_tokens or data.max_new_tokens,
        num_beams=options.num_beams,
        constrained=options.constrained,
        labels="any" if options.any_label else None,
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
    """The scores of answers that are there already, without a model; metrics as for `evaluate`.

    Raises DataError for a record without answer, or one whose objects stand in its suffix: reading
    those takes the model's tokenizer.

    >>> score_predictions(read_predictions(path), records)               # doctest: +SKIP
    """
    by_id = {one.record_id: one for one in predictions}
    missing = [record.record_id for record in records if record.record_id not in by_id]
    if missing or not records:
        raise DataError(
            f"{len(missing)} of {len(records)} records have no prediction"
            + (f", the first is {missing[0]!r}. " if missing else ". ")
            + "Give the records that were asked about."
        )
    aligned = [by_id[record.record_id] for record in records]
    return _scores(_Examples(None, records, aligned, dont_care), metrics, grouping, seed)


def with_prefix(
    record: Record,
    object_task: ObjectTask = "detect",
    ask: Ask = "dataset",
    class_names: Sequence[str] = (),
) -> Record:
    """The record with something to ask: objects without a prefix are asked for by label.

    `class_names` are those of the training data ("dataset" names them all). Raises DataError where
    there is nothing to ask.
    """
    if record.prefix.strip() or record.objects is None:
        return record
    names = list(class_names)
    if ask == "present":
        there = {thing.label for thing in record.objects}
        names = [name for name in names if name in there] or sorted(there)
    asked = "all classes" if ask == "all classes" else " ; ".join(names)
    if not asked:
        raise DataError(
            f"The record {record.record_id!r} has neither a prefix nor classes to ask for. Give "
            "class names, or ask for all classes."
        )
    return replace(record, prefix=f"{object_task} {asked}")


# What metrics read


class _Examples:
    """Predictions beside their records, in the forms that metrics read."""

    def __init__(
        self,
        predictor: Predictor | None,
        records: Sequence[Record],
        predictions: Sequence[Prediction],
        dont_care: Sequence[str],
    ) -> None:
        self.predictor = predictor
        self.records = records
        self.predictions = predictions
        self.dont_care = frozenset(dont_care)

    def places(self, task: TaskName) -> list[int]:
        return [i for i, one in enumerate(self.predictions) if one.task == task]

    def pairs(self, reads: Reads, places: Sequence[int]) -> tuple[list[Any], list[Any]]:
        """What a metric compares: predictions and references, aligned with `places`."""
        return [self._found(reads, i) for i in places], [self._known(reads, i) for i in places]

    def _found(self, reads: Reads, place: int) -> Any:
        prediction = self.predictions[place]
        match reads:
            case "text":
                return prediction.text
            case "words":
                return [
                    Word(polygon=polygon_of_box(f.box_xyxy), text=f.label)
                    for f in prediction.objects
                ]
            case "regions":
                return [polygon_of_box(f.box_xyxy) for f in prediction.objects]
            case "points":
                return [_middle(f.box_xyxy) for f in prediction.objects]
            case "expression":
                return prediction.objects[0] if prediction.is_valid else None
            case _:
                return prediction.objects

    def _known(self, reads: Reads, place: int) -> Any:
        if reads == "text":
            return self.references(place)
        known = self.reference_image(
            place,
            has_masks=reads in ("masks", "expression"),
            has_crowds=reads in ("boxes", "masks"),
        )
        if reads == "words":
            return [
                Word(
                    polygon=polygon_of_box(thing.box_xyxy),
                    text=thing.label,
                    is_ignored=thing.label in self.dont_care,
                )
                for thing in known.objects
            ]
        if reads == "regions":
            things = [t for t in known.objects if t.label not in self.dont_care]
            return [polygon_of_box(thing.box_xyxy) for thing in things]
        if reads == "points":
            return [thing.box_xyxy for thing in known.objects]
        if reads == "expression":
            if len(known.objects) != 1:
                raise DataError(
                    f"The record {self.records[place].record_id!r} has {len(known.objects)} "
                    "objects; mask IoU by RefCOCO's rules is for one. Use mask_map."
                )
            return known.objects[0]
        return known

    def references(self, place: int) -> tuple[str, ...]:
        record = self.records[place]
        references = record.references or ((record.suffix,) if record.suffix else ())
        if not references:
            raise DataError(
                f"The record {record.record_id!r} has no answer to compare with: neither "
                "references nor a suffix."
            )
        return references

    def reference_image(
        self, place: int, *, has_masks: bool = False, has_crowds: bool = False
    ) -> ReferenceImage:
        record, size_wh = self.records[place], self.predictions[place].size_wh
        if record.objects is None:
            things = self._objects_of_suffix(record, size_wh, has_masks)
            return ReferenceImage(size_wh=size_wh, objects=things)
        truth = (*record.objects, *(record.crowds if has_crowds else ()))
        objects = []
        for number, thing in enumerate(truth):
            mask = thing.mask if has_masks else None
            if has_masks and mask is None:
                raise DataError(
                    f"The object {thing.label!r} of the record {record.record_id!r} has no mask. "
                    "Score boxes: box_map."
                )
            known = ReferenceObject(
                label=thing.label,
                box_xyxy=thing.box_xyxy,
                rle=None if mask is None else mask_to_rle(mask),
                is_crowd=number >= len(record.objects),
                area=thing.area,
            )
            objects.append(known)
        return ReferenceImage(size_wh=size_wh, objects=tuple(objects))

    def _objects_of_suffix(
        self, record: Record, size_wh: tuple[int, int], has_masks: bool
    ) -> tuple[ReferenceObject, ...]:
        if self.predictor is None:
            raise DataError(
                f"The objects of the record {record.record_id!r} stand in its suffix, and only a "
                "model's tokenizer reads those. Evaluate with the model."
            )
        found, problems = objects_in_text(
            self.predictor, record.suffix, record.prefix, size_wh, has_masks=has_masks
        )
        if problems:
            raise DataError(
                f"The suffix of the record {record.record_id!r} is no list of objects: "
                f"{problems[0]} Correct {record.suffix!r}."
            )
        return tuple(ReferenceObject(label=f.label, box_xyxy=f.box_xyxy, rle=f.rle) for f in found)


def _middle(box_xyxy: BoxXyxy) -> tuple[float, float]:
    x1, y1, x2, y2 = box_xyxy
    return (x1 + x2) / 2, (y1 + y2) / 2


# Scoring


def _scores(
    examples: _Examples,
    metrics: Sequence[NamedMetric],
    grouping: Grouping | None,
    seed: int,
) -> tuple[Score, ...]:
    scores = []
    for task in dict.fromkeys(prediction.task for prediction in examples.predictions):
        places = examples.places(task)
        chosen = list(metrics) or [
            metric_named(name) for name in _default_metrics(examples, task, places)
        ]
        for named in chosen:
            if not _fits(named.reads, task):
                continue
            result, interval = _score(named, examples, places, grouping, seed)
            scores.append(
                Score(task=task, result=result, interval=interval, num_records=len(places))
            )
    if not scores:
        tasks = sorted({prediction.task for prediction in examples.predictions})
        raise OptionError(
            f"None of the metrics {', '.join(named.name for named in metrics)} is for the task "
            f"{', '.join(tasks)}."
        )
    return tuple(scores)


def _fits(reads: Reads, task: TaskName) -> bool:
    if reads in ("masks", "expression"):
        return task == "segment"
    return reads == "text" or task in OBJECT_TASKS


def _default_metrics(examples: _Examples, task: TaskName, places: Sequence[int]) -> tuple[str, ...]:
    match task:
        case "caption":
            return ("cider", "bleu_4")
        case "answer":
            many = all(len(examples.references(p)) >= _MANY_ANSWERS for p in places)
            return ("vqa_accuracy",) if many else ("exact_match",)
        case "ocr":
            return ("cer", "wer", "exact_match")
        case "detect":
            return ("box_map",)
        case "segment":
            counts = {len(examples.reference_image(p).objects) for p in places}
            return ("refcoco_miou",) if counts == {1} else ("mask_map", "box_map")
        case "read_text":
            return ("text_spotting_f1", "text_detection_f1")
        case "generate":
            return ("exact_match", "normalized_edit_distance")


def _score(
    named: NamedMetric,
    examples: _Examples,
    places: Sequence[int],
    grouping: Grouping | None,
    seed: int,
) -> tuple[MetricResult, Interval | None]:
    found, known = examples.pairs(named.reads, places)
    whole = named.metric.score(found, known)
    members = _members(grouping, places)
    if not members:
        result = replace(whole, name=named.name)
        statistic, quick = _statistic(named, result, found, known)
    else:
        parts = {
            name: ([found[i] for i in inside], [known[i] for i in inside])
            for name, inside in members.items()
        }
        results = {name: named.metric.score(*part) for name, part in parts.items()}
        figures = {f"group/{name}": part.value for name, part in results.items()}
        result = replace(whole, name=named.name, details={**whole.details, **figures})
        if grouping is not None and grouping.is_mean:
            result = replace(result, value=float(np.mean(list(figures.values()))))
            pieces = {name: _statistic(named, results[name], *parts[name]) for name in members}
            statistic = _mean_over(pieces, members)
            quick = all(is_quick for _, is_quick in pieces.values())
        else:
            statistic, quick = _statistic(named, whole, found, known)
    resamples = NUM_RESAMPLES if quick else _RESAMPLES_BY_SCORING
    interval = confidence_interval(statistic, len(places), num_resamples=resamples, seed=seed)
    return result, interval


def _members(grouping: Grouping | None, places: Sequence[int]) -> dict[str, list[int]]:
    """Group -> places within `places`; nothing where all are in one group without a name."""
    members: dict[str, list[int]] = {}
    for number, place in enumerate(places if grouping is not None else ()):
        assert grouping is not None
        members.setdefault(grouping.names[place], []).append(number)
    return {} if set(members) == {""} else members


def _mean_over(
    pieces: Mapping[str, tuple[Statistic, bool]], members: Mapping[str, list[int]]
) -> Statistic:
    def mean(counts: Counts) -> float:
        values = []
        for name, inside in members.items():
            drawn = counts[inside]
            # A group that was not drawn has no score, and so the mean has none.
            values.append(pieces[name][0](drawn) if drawn.any() else math.nan)
        return float(np.mean(values))

    return mean


class _Resampled(Protocol):
    def statistic(self, predictions: Any, references: Any) -> Statistic: ...


def _statistic(
    named: NamedMetric, result: MetricResult, found: Sequence[Any], known: Sequence[Any]
) -> tuple[Statistic, bool]:
    """The value by how often each example was drawn, and whether that is quick to work out."""
    own = getattr(named.metric, "statistic", None)
    if own is not None:
        metric: _Resampled = named.metric  # type: ignore[assignment]
        return metric.statistic(found, known), True
    if result.per_example and math.isclose(
        float(np.mean(result.per_example)), result.value, abs_tol=1e-9
    ):
        return mean_of(result.per_example), True

    def by_scoring(counts: Counts) -> float:
        drawn = np.repeat(np.arange(len(found)), counts).tolist()
        return named.metric.score([found[i] for i in drawn], [known[i] for i in drawn]).value

    return by_scoring, False


# Calibration


def _calibrate(
    examples: _Examples, scores: Sequence[Score], seed: int, model: str, data: str
) -> tuple[Calibration, tuple[FormulaScore, ...]]:
    """Of boxes where the data have some, else of answers by their first metric."""
    places = [i for i, one in enumerate(examples.predictions) if one.task in ("detect", "segment")]
    if places:
        found: list[tuple[FoundObject, ...]] = [examples.predictions[i].objects for i in places]
        known = [examples.reference_image(i, has_crowds=True) for i in places]
        judged = judge_boxes(found, known)
        calibration = calibrate(judged, "boxes", seed=seed, model=model, data=data)
        return calibration, compare_formulas(found, known, seed=seed)
    for score in scores:
        right = score.result.per_example
        if right and score.result.higher_is_better and min(right) >= 0 and max(right) <= 1:
            answers = [examples.predictions[i].score for i in examples.places(score.task)]
            judged = judge_answers(answers, right)
            return calibrate(judged, "answers", seed=seed, model=model, data=data), ()
    raise OptionError(
        "There is nothing to calibrate: no boxes, and no metric that says of each answer whether "
        "it is right, from 0 to 1. Add one, such as exact_match."
    )


# Files


def _write_records(path: Path, examples: _Examples, scores: Sequence[Score]) -> None:
    by_place: list[dict[str, float | None]] = [{} for _ in examples.predictions]
    for score in scores:
        per_example = score.result.per_example
        for place, value in zip(examples.places(score.task), per_example, strict=False):
            by_place[place][score.result.name] = None if math.isnan(value) else float(value)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record, prediction, own in zip(
            examples.records, examples.predictions, by_place, strict=True
        ):
            line: dict[str, Any] = {
                "id": record.record_id,
                "task": prediction.task,
                "prefix": record.prefix,
                "text": prediction.text,
                "score": prediction.score,
                "references": list(record.references or filter(None, (record.suffix,))),
                "metrics": own,
            }
            if prediction.task in OBJECT_TASKS:
                line |= {
                    "found": [
                        {"label": f.label, "box_xyxy": f.box_xyxy, "score": f.score}
                        for f in prediction.objects
                    ],
                    "true": [
                        {"label": t.label, "box_xyxy": t.box_xyxy} for t in record.objects or ()
                    ],
                    "problems": list(prediction.problems),
                }
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


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
            {
                "metric": figure.metric,
                "model": figure.model,
                "resolution": figure.resolution,
                "value": figure.value,
                "source": figure.source,
            }
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
