"""Metrics by name, as the command line and EvalOptions take them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paligemma.errors import OptionError
from paligemma.evals.metrics.captions import Bleu, Cider, RougeL
from paligemma.evals.metrics.counting import CountAccuracy, PointingAccuracy
from paligemma.evals.metrics.detection import MeanAveragePrecision, VocAveragePrecision
from paligemma.evals.metrics.mask_iou import MaskIou
from paligemma.evals.metrics.molecules import SmilesExactMatch, TanimotoSimilarity
from paligemma.evals.metrics.result import MetricResult, Reads
from paligemma.evals.metrics.tables import Grits, Teds
from paligemma.evals.metrics.text_regions import DetEval, TextDetection
from paligemma.evals.metrics.texts import (
    Anls,
    ContainsAnswer,
    DirectAnswerAccuracy,
    ErrorRate,
    ExactMatch,
    NormalizedEditDistance,
    NormalizedMatch,
    RelaxedAccuracy,
    VqaAccuracy,
)


class Metric(Protocol):
    """Any metric, whatever it reads."""

    def score(self, predictions: Sequence[Any], references: Sequence[Any], /) -> MetricResult: ...


@dataclass(frozen=True, kw_only=True)
class NamedMetric:
    """A metric with the settings that its name stands for."""

    name: str
    metric: Metric

    @property
    def reads(self) -> Reads:
        """What it compares: the metric's `reads`, by default texts."""
        return getattr(self.metric, "reads", "text")


_MAKERS: Mapping[str, Callable[[], Metric]] = {
    "anls": Anls,
    "bleu_4": Bleu,
    "cer": ErrorRate,
    "cider": Cider,
    "contains_answer": ContainsAnswer,
    "counting_accuracy": CountAccuracy,
    "exact_match": ExactMatch,
    "exact_match_lower": lambda: ExactMatch(ignore_case=True),
    "grits_con": lambda: Grits(of="content"),
    "grits_top": Grits,
    "ler": lambda: ErrorRate(unit="line"),
    "normalized_edit_distance": NormalizedEditDistance,
    "normalized_match": NormalizedMatch,
    "relaxed_accuracy": RelaxedAccuracy,
    "rouge_l": RougeL,
    "ser": lambda: ErrorRate(unit="symbol"),
    "smiles_exact_match": SmilesExactMatch,
    "tanimoto": TanimotoSimilarity,
    "teds": Teds,
    "teds_struct": lambda: Teds(structure_only=True),
    "vqa_accuracy": VqaAccuracy,
    "vqa_accuracy_simple": DirectAnswerAccuracy,
    "wer": lambda: ErrorRate(unit="word"),
    "box_map": MeanAveragePrecision,
    "deteval_f1": DetEval,
    "pointing_f1": PointingAccuracy,
    "mask_map": lambda: MeanAveragePrecision(kind="mask"),
    "voc_ap50": VocAveragePrecision,
    "refcoco_miou": MaskIou,
    "text_detection_f1": TextDetection,
    "text_spotting_f1": lambda: TextDetection(with_text=True),
}
_OTHER_NAMES = {"coco_map": "box_map", "mask_iou": "refcoco_miou"}


def metric_names() -> tuple[str, ...]:
    """All names, sorted."""
    return tuple(sorted((*_MAKERS, *_OTHER_NAMES)))


def metric_named(name: str) -> NamedMetric:
    """The metric of a name. Raises OptionError for an unknown one, with similar names.

    >>> metric_named("exact_match").reads
    'text'
    """
    main_name = _OTHER_NAMES.get(name, name)
    if main_name not in _MAKERS:
        similar = difflib.get_close_matches(name, metric_names(), n=3)
        hint = f" Did you mean: {', '.join(similar)}?" if similar else ""
        raise OptionError(f"There is no metric {name!r}.{hint} docs/metrics.md lists them.")
    return NamedMetric(name=name, metric=_MAKERS[main_name]())
