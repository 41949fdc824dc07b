"""Scores of predictions: what each metric reads of records and predictions, values, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paligemma.data.record import Record, TrueObject
from paligemma.errors import DataError, OptionError
from paligemma.evals.bootstrap import (
    NUM_RESAMPLES,
    Counts,
    Interval,
    Statistic,
    confidence_interval,
    interval_of,
    mean_of,
    resampled,
)
from paligemma.evals.metrics.result import MetricResult, Reads, ReferenceImage, ReferenceObject
from paligemma.evals.metrics.text_regions import Word, polygon_of_box
from paligemma.evals.named_metrics import NamedMetric, metric_named
from paligemma.evals.options import TaskName
from paligemma.evals.predictions import (
    OBJECT_TASKS,
    Prediction,
    SuffixReader,
    objects_in_text,
)
from paligemma.masks import mask_to_rle
from paligemma.results import BoxXyxy

DONT_CARE = ("###",)
"""Labels of words that are neither right nor wrong to find, as ICDAR writes them."""
_MIN_ANSWERS_FOR_VQA = 3  # VQA accuracy needs several annotators
_NUM_RESAMPLES_BY_SCORING = 200  # where a metric must score every resample


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric on the records of one task."""

    task: TaskName
    result: MetricResult
    interval: Interval | None
    num_records: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the scores of single records, which have their own file."""
        values = self.result.to_dict()
        del values["per_example"]
        interval = None if self.interval is None else asdict(self.interval)
        return {"task": self.task, "num_records": self.num_records, **values, "interval": interval}


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Groups of records whose scores a benchmark averages, such as languages."""

    names: tuple[str, ...]
    """The group of each record."""
    is_mean: bool
    """The value is the plain mean over groups; otherwise the groups' scores are details."""


@dataclass(frozen=True, kw_only=True)
class ScoredRecords:
    """Predictions with their records, in the forms that metrics read."""

    records: Sequence[Record]
    predictions: Sequence[Prediction]
    """Aligned with the records."""
    predictor: SuffixReader | None
    """Reads objects in suffixes; without it such records are errors."""
    dont_care: Sequence[str] = DONT_CARE

    def indices(self, task: TaskName) -> list[int]:
        return [i for i, prediction in enumerate(self.predictions) if prediction.task == task]

    def pairs(self, reads: Reads, indices: Sequence[int]) -> tuple[list[Any], list[Any]]:
        """What a metric compares: predictions and references, aligned with `indices`."""
        predicted = [_predicted(reads, self.predictions[i]) for i in indices]
        return predicted, [self._reference(reads, i) for i in indices]

    def _reference(self, reads: Reads, index: int) -> Any:
        if reads == "text":
            return self.references(index)
        image = self.reference_image(
            index,
            has_masks=reads in ("masks", "expression"),
            has_crowds=reads in ("boxes", "masks"),
        )
        match reads:
            case "words":
                return [
                    Word(
                        polygon=polygon_of_box(true.box_xyxy),
                        text=true.label,
                        is_ignored=true.label in self.dont_care,
                    )
                    for true in image.objects
                ]
            case "regions":
                true_objects = [t for t in image.objects if t.label not in self.dont_care]
                return [polygon_of_box(true.box_xyxy) for true in true_objects]
            case "points":
                return [true.box_xyxy for true in image.objects]
            case "expression" if len(image.objects) != 1:
                raise DataError(
                    f"The record {self.records[index].record_id!r} has {len(image.objects)} "
                    "objects; mask IoU by RefCOCO's rules needs exactly one. Use mask_map."
                )
            case "expression":
                return image.objects[0]
            case _:
                return image

    def references(self, index: int) -> tuple[str, ...]:
        """The accepted texts of a record."""
        record = self.records[index]
        references = record.references or ((record.suffix,) if record.suffix else ())
        if not references:
            raise DataError(
                f"The record {record.record_id!r} has no answer to compare with: neither "
                "references nor a suffix."
            )
        return references

    def reference_image(
        self, index: int, *, has_masks: bool = False, has_crowds: bool = False
    ) -> ReferenceImage:
        """The true objects of a record."""
        record, size_wh = self.records[index], self.predictions[index].size_wh
        if record.objects is None:
            objects = self._objects_of_suffix(record, size_wh, has_masks)
            return ReferenceImage(size_wh=size_wh, objects=objects)
        objects = tuple(_reference_object(true, record, has_masks) for true in record.objects)
        if has_crowds:
            crowds = (_reference_object(crowd, record, has_masks) for crowd in record.crowds)
            objects += tuple(replace(crowd, is_crowd=True) for crowd in crowds)
        return ReferenceImage(size_wh=size_wh, objects=objects)

    def _objects_of_suffix(
        self, record: Record, size_wh: tuple[int, int], has_masks: bool
    ) -> tuple[ReferenceObject, ...]:
        if self.predictor is None:
            raise DataError(
                f"The objects of the record {record.record_id!r} are in its suffix, which only a "
                "model's tokenizer can read. Evaluate with the model."
            )
        objects, problems = objects_in_text(
            self.predictor, record.suffix, record.prefix, size_wh, has_masks=has_masks
        )
        if problems:
            raise DataError(
                f"The suffix of the record {record.record_id!r} is not a list of objects: "
                f"{problems[0]} Correct {record.suffix!r}."
            )
        return tuple(
            ReferenceObject(label=item.label, box_xyxy=item.box_xyxy, rle=item.rle)
            for item in objects
        )


def score_records(
    scored: ScoredRecords,
    metrics: Sequence[NamedMetric] = (),
    *,
    grouping: Grouping | None = None,
    seed: int = 0,
    has_intervals: bool = True,
) -> tuple[Score, ...]:
    """Every metric on every task that it is for; without metrics each task has its usual ones."""
    scores = []
    tasks = dict.fromkeys(prediction.task for prediction in scored.predictions)
    for task in tasks:
        indices = scored.indices(task)
        chosen = list(metrics) or [
            metric_named(name) for name in default_metrics(scored, task, indices)
        ]
        for named in chosen:
            if not suits(named.reads, task):
                continue
            result, interval = _score(
                named, scored, indices, grouping, seed if has_intervals else None
            )
            scores.append(
                Score(task=task, result=result, interval=interval, num_records=len(indices))
            )
    if not scores:
        raise OptionError(
            f"None of the metrics {', '.join(named.name for named in metrics)} is for the task "
            f"{', '.join(sorted(tasks))}."
        )
    return tuple(scores)


def _predicted(reads: Reads, prediction: Prediction) -> Any:
    match reads:
        case "text":
            return prediction.text
        case "words":
            return [
                Word(polygon=polygon_of_box(found.box_xyxy), text=found.label)
                for found in prediction.objects
            ]
        case "regions":
            return [polygon_of_box(found.box_xyxy) for found in prediction.objects]
        case "points":
            return [_center(found.box_xyxy) for found in prediction.objects]
        case "expression":
            return prediction.objects[0] if prediction.is_valid else None
        case _:
            return prediction.objects


def _center(box_xyxy: BoxXyxy) -> tuple[float, float]:
    x1, y1, x2, y2 = box_xyxy
    return (x1 + x2) / 2, (y1 + y2) / 2


def _reference_object(true: TrueObject, record: Record, has_mask: bool) -> ReferenceObject:
    mask = true.mask if has_mask else None
    if has_mask and mask is None:
        raise DataError(
            f"The object {true.label!r} of the record {record.record_id!r} has no mask. Score "
            "boxes instead: box_map."
        )
    rle = None if mask is None else mask_to_rle(mask)
    return ReferenceObject(label=true.label, box_xyxy=true.box_xyxy, rle=rle, area=true.area)


def suits(reads: Reads, task: TaskName) -> bool:
    """Whether answers to a task have what a metric reads."""
    if reads in ("masks", "expression"):
        return task == "segment"
    return reads == "text" or task in OBJECT_TASKS


def default_metrics(
    scored: ScoredRecords, task: TaskName, indices: Sequence[int]
) -> tuple[str, ...]:
    """The usual metrics of a task, the main one first."""
    match task:
        case "caption":
            return ("cider", "bleu_4")
        case "answer":
            has_many = all(len(scored.references(i)) >= _MIN_ANSWERS_FOR_VQA for i in indices)
            return ("vqa_accuracy",) if has_many else ("exact_match",)
        case "ocr":
            return ("cer", "wer", "exact_match")
        case "detect":
            return ("box_map",)
        case "segment":
            counts = {len(scored.reference_image(i).objects) for i in indices}
            return ("refcoco_miou",) if counts == {1} else ("mask_map", "box_map")
        case "read_text":
            return ("text_spotting_f1", "text_detection_f1")
        case "generate":
            return ("exact_match", "normalized_edit_distance")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A metric on one task, with its values on resamples of the records."""

    result: MetricResult
    estimate: float
    """The value as resamples compute it: the same but for rounding."""
    resamples: npt.NDArray[np.float64]
    """float64[S]; the same resamples for all models that answered the same records."""

    @property
    def interval(self) -> Interval | None:
        return interval_of(self.resamples, self.estimate)


def measure(
    named: NamedMetric, scored: ScoredRecords, indices: Sequence[int], *, seed: int = 0
) -> Measured:
    """One metric on the records at `indices`, with the resamples that its interval comes from."""
    result, statistic, num_resamples = _evaluated(named, scored, indices, None)
    return Measured(
        result=result,
        estimate=statistic(np.ones(len(indices), dtype=np.int64)),
        resamples=resampled(statistic, len(indices), num_resamples, seed),
    )


def _score(
    named: NamedMetric,
    scored: ScoredRecords,
    indices: Sequence[int],
    grouping: Grouping | None,
    seed: int | None,
) -> tuple[MetricResult, Interval | None]:
    """Without a seed there is no interval."""
    result, statistic, num_resamples = _evaluated(named, scored, indices, grouping)
    if seed is None:
        return result, None
    interval = confidence_interval(statistic, len(indices), num_resamples=num_resamples, seed=seed)
    return result, interval


def _evaluated(
    named: NamedMetric,
    scored: ScoredRecords,
    indices: Sequence[int],
    grouping: Grouping | None,
) -> tuple[MetricResult, Statistic, int]:
    """The result, its value as a function of what was drawn, and how many resamples to draw."""
    predicted, references = scored.pairs(named.reads, indices)
    total = named.metric.score(predicted, references)
    members = _members(grouping, indices)
    result = replace(total, name=named.name)
    if not members:
        statistic, is_quick = _statistic(named, result, predicted, references)
    else:
        parts = {
            name: ([predicted[i] for i in inside], [references[i] for i in inside])
            for name, inside in members.items()
        }
        results = {name: named.metric.score(*part) for name, part in parts.items()}
        group_scores = {f"group/{name}": part.value for name, part in results.items()}
        result = replace(result, details={**total.details, **group_scores})
        if grouping is not None and grouping.is_mean:
            result = replace(result, value=float(np.mean(list(group_scores.values()))))
            pieces = {name: _statistic(named, results[name], *parts[name]) for name in members}
            statistic = _mean_over(pieces, members)
            is_quick = all(quick for _, quick in pieces.values())
        else:
            statistic, is_quick = _statistic(named, total, predicted, references)
    return result, statistic, NUM_RESAMPLES if is_quick else _NUM_RESAMPLES_BY_SCORING


def _members(grouping: Grouping | None, indices: Sequence[int]) -> dict[str, list[int]]:
    """Group -> positions within `indices`; empty where all are in one group without a name."""
    members: dict[str, list[int]] = {}
    if grouping is not None:
        for position, index in enumerate(indices):
            members.setdefault(grouping.names[index], []).append(position)
    return {} if set(members) == {""} else members


def _mean_over(
    pieces: Mapping[str, tuple[Statistic, bool]], members: Mapping[str, list[int]]
) -> Statistic:
    def mean(counts: Counts) -> float:
        values = []
        for name, inside in members.items():
            drawn = counts[inside]
            # A group that was not drawn has no score, so the mean has none either.
            values.append(pieces[name][0](drawn) if drawn.any() else math.nan)
        return float(np.mean(values))

    return mean


class _Resampled(Protocol):
    def statistic(self, predictions: Any, references: Any) -> Statistic: ...


def _statistic(
    named: NamedMetric, result: MetricResult, predicted: Sequence[Any], references: Sequence[Any]
) -> tuple[Statistic, bool]:
    """The value by how often each example was drawn, and whether it is quick to compute."""
    if hasattr(named.metric, "statistic"):
        metric: _Resampled = named.metric  # type: ignore[assignment]
        return metric.statistic(predicted, references), True
    if result.per_example and math.isclose(
        float(np.mean(result.per_example)), result.value, abs_tol=1e-9
    ):
        return mean_of(result.per_example), True

    def by_scoring(counts: Counts) -> float:
        drawn = np.repeat(np.arange(len(predicted)), counts).tolist()
        return named.metric.score(
            [predicted[i] for i in drawn], [references[i] for i in drawn]
        ).value

    return by_scoring, False
