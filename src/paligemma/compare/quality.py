"""How good the answers are, by the metrics of `evals`, and whether two contestants differ.

Scores, and their intervals, are those of `paligemma eval`. A difference of two contestants gets the
interval of its values on the same resamples of the records (a paired bootstrap), which is narrower
than their own intervals suggest, because both had the same hard records. Right and wrong answers
are compared by McNemar's test in its exact form: only records count that one of the two has right,
and under the null hypothesis each of them is as likely to be the one's as the other's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from paligemma.compare.contest import Answers
from paligemma.compare.questions import Questions
from paligemma.compare.reply import failed_prediction
from paligemma.data.record import Record
from paligemma.evals.bootstrap import Interval, interval_of
from paligemma.evals.metrics.result import MetricResult, ReferenceObject
from paligemma.evals.named_metrics import NamedMetric, metric_named
from paligemma.evals.options import TaskName
from paligemma.evals.predictions import OBJECT_TASKS, Prediction, SuffixReader
from paligemma.evals.scoring import (
    Measured,
    ScoredRecords,
    default_metrics,
    measure,
    suits,
)

FOR_FREE_ANSWERS = ("normalized_match", "contains_answer")
"""Also computed for questions, since chat models write "Three." for "3". The first decides what is
right, where it would be equality."""
_HALF = 0.5
_SIMILARITIES = ("cider", "bleu_4", "rouge_l")
"""Metrics that say of no single text whether it is right."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One metric of one contestant."""

    contestant: str
    task: TaskName
    measured: Measured
    num_records: int

    @property
    def result(self) -> MetricResult:
        return self.measured.result

    @property
    def interval(self) -> Interval | None:
        return self.measured.interval


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Records that exactly one of two contestants has right."""

    first_only: int
    second_only: int
    both: int
    neither: int

    @property
    def p_value(self) -> float:
        """Two-sided, from the binomial distribution (McNemar 1947, doi 10.1007/BF02295996).

        >>> McNemar(first_only=1, second_only=8, both=5, neither=0).p_value
        0.0390625
        """
        count = self.first_only + self.second_only
        fewer = min(self.first_only, self.second_only)
        tail = sum(math.comb(count, k) for k in range(fewer + 1))
        return min(1.0, float(2 * tail / 2**count))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What the first contestant scores more than the second, on records that both were asked."""

    first: str
    second: str
    task: TaskName
    metric: str
    value: float
    interval: Interval | None
    num_records: int
    higher_is_better: bool
    mcnemar: McNemar | None
    """None where the metric does not say of one answer whether it is right."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and 0.0 not in self.interval


class Judge:
    """Scores the answers to questions whose true answers are known."""

    def __init__(
        self,
        questions: Questions,
        answers: Sequence[Answers],
        sizes: Mapping[str, tuple[int, int]],
        readers: Mapping[str, SuffixReader],
    ) -> None:
        """`readers` read true objects in suffixes, by contestant, where there are any."""
        self._questions, self._answers = questions, answers
        self._sizes, self._readers = sizes, readers

    @cached_property
    def tasks(self) -> tuple[TaskName, ...]:
        """All kinds of answers."""
        first = self._scored(self._answers[0])
        return tuple(dict.fromkeys(prediction.task for prediction in first.predictions))

    def metrics(self, task: TaskName) -> list[NamedMetric]:
        """Those of a task: as named by the options, else the usual ones. The first decides."""
        names = self._questions.options.metrics
        if names:
            return [named for name in names if suits((named := metric_named(name)).reads, task)]
        scored = self._scored(self._answers[0])
        usual = default_metrics(scored, task, scored.indices(task))
        names = (*usual, *FOR_FREE_ANSWERS) if task == "answer" else usual
        if names[0] == "exact_match" and task == "answer":
            names = ("normalized_match", *(name for name in names if name != "normalized_match"))
        return [metric_named(name) for name in names]

    @cached_property
    def qualities(self) -> tuple[Quality, ...]:
        """Every metric of every contestant."""
        found = []
        for task in self.tasks:
            for named in self.metrics(task):
                for answers in self._answers:
                    scored = self._scored(answers)
                    indices = scored.indices(task)
                    if indices:
                        found.append(
                            Quality(
                                contestant=answers.contestant.name,
                                task=task,
                                measured=self._measure(named, scored, indices),
                                num_records=len(indices),
                            )
                        )
        return tuple(found)

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Of every pair of contestants, by every metric."""
        found = []
        for task in self.tasks:
            for named in self.metrics(task):
                for index, first in enumerate(self._answers):
                    for second in self._answers[index + 1 :]:
                        found += self._difference(task, named, first, second)
        return tuple(found)

    @cached_property
    def right(self) -> Mapping[str, Mapping[str, bool]]:
        """Contestant -> record id -> whether the answer is right, by the first metric that says so
        of single answers."""
        verdicts: dict[str, dict[str, bool]] = {a.contestant.name: {} for a in self._answers}
        decided: set[tuple[str, TaskName]] = set()
        by_name = {answers.contestant.name: answers for answers in self._answers}
        for quality in self.qualities:
            outcomes = right_of(quality.result)
            key = (quality.contestant, quality.task)
            if outcomes is None or key in decided:
                continue
            decided.add(key)
            scored = self._scored(by_name[quality.contestant])
            for index, outcome in zip(scored.indices(quality.task), outcomes, strict=True):
                if outcome is not None:
                    verdicts[quality.contestant][scored.records[index].record_id] = outcome
        return verdicts

    def true_objects(self) -> Mapping[str, tuple[ReferenceObject, ...]]:
        """Record id -> the true objects, where objects are asked for."""
        scored = self._scored(self._answers[0])
        return {
            record.record_id: scored.reference_image(index).objects
            for index, record in enumerate(scored.records)
            if scored.predictions[index].task in OBJECT_TASKS
        }

    def _measure(
        self, named: NamedMetric, scored: ScoredRecords, indices: Sequence[int]
    ) -> Measured:
        return measure(named, scored, indices, seed=self._questions.options.seed)

    def _difference(
        self, task: TaskName, named: NamedMetric, first: Answers, second: Answers
    ) -> list[Difference]:
        common = {r.record_id for r in first.data.records} & {
            r.record_id for r in second.data.records
        }
        both = [self._on_common(task, named, answers, common) for answers in (first, second)]
        if both[0] is None or both[1] is None:
            return []
        one, two = both[0], both[1]
        value = one.result.value - two.result.value
        outcomes = right_of(one.result), right_of(two.result)
        mcnemar = None
        if outcomes[0] is not None and outcomes[1] is not None:
            mcnemar = compare_right(outcomes[0], outcomes[1])
        return [
            Difference(
                first=first.contestant.name,
                second=second.contestant.name,
                task=task,
                metric=one.result.name,
                value=value,
                interval=interval_of(one.resamples - two.resamples, one.estimate - two.estimate),
                num_records=len(common),
                higher_is_better=one.result.higher_is_better,
                mcnemar=mcnemar,
            )
        ]

    def _on_common(
        self, task: TaskName, named: NamedMetric, answers: Answers, common: set[str]
    ) -> Measured | None:
        """A metric on the records that both were asked."""
        scored = self._scored(answers)
        indices = [i for i in scored.indices(task) if scored.records[i].record_id in common]
        if len(common) == len(scored.records):
            name = answers.contestant.name
            for quality in self.qualities:
                key = (quality.contestant, quality.task, quality.result.name)
                if key == (name, task, named.name):
                    return quality.measured
        return self._measure(named, scored, indices) if indices else None

    def _scored(self, answers: Answers) -> ScoredRecords:
        predictions: list[Prediction] = []
        for record in answers.data.records:
            reply = answers.replies.get(record.record_id)
            predictions.append(self._failed(record) if reply is None else reply.prediction)
        return ScoredRecords(
            records=answers.data.records,
            predictions=predictions,
            predictor=self._readers.get(answers.contestant.name),
            dont_care=answers.data.dont_care,
        )

    def _failed(self, record: Record) -> Prediction:
        task = self._questions.task_of(record)
        return failed_prediction(record, task, self._sizes[record.record_id])


def right_of(result: MetricResult) -> tuple[bool | None, ...] | None:
    """Whether each answer is right: at least half of a score from 0 to 1, no error at all, or, for
    lists of objects, everything found and nothing else.

    None of an answer that does not count; None for a metric that says nothing of single answers.
    """
    values = np.array(result.per_example, dtype=np.float64)
    if not values.size:
        return None
    if not result.higher_is_better:
        return tuple(None if math.isnan(v) else bool(v == 0) for v in values)
    is_share = bool(((values >= 0) & (values <= 1))[~np.isnan(values)].all())
    if result.name in _SIMILARITIES or not is_share:
        return None
    needed = _HALF if metric_named(result.name).reads in ("text", "expression") else 1.0
    return tuple(None if math.isnan(v) else bool(v >= needed) for v in values)


def compare_right(first: Sequence[bool | None], second: Sequence[bool | None]) -> McNemar:
    """Counts of the records that count for both."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return McNemar(
        first_only=pairs.count((True, False)),
        second_only=pairs.count((False, True)),
        both=pairs.count((True, True)),
        neither=pairs.count((False, False)),
    )
