"""Confusion matrices: of boxes that overlap, or of short answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paligemma.data.overlap import match_boxes
from paligemma.evals.metrics.objects import FoundObject, ReferenceImage

NOTHING = "(nothing)"
"""As true class: a detection of nothing; as predicted class: an object that was missed."""
_OTHER = "(other)"
_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """`counts[i][j]`: how often the truth is `names[i]` and the model's answer `names[j]`."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def confusion_of_boxes(
    found: Sequence[Sequence[FoundObject]],
    known: Sequence[ReferenceImage],
    *,
    max_names: int,
    min_score: float = 0.0,
) -> Confusion | None:
    """Boxes are matched at IoU 0.5 whatever their labels, best scores first; None for no boxes."""
    pairs: Counter[tuple[str, str]] = Counter()
    for detections, truth in zip(found, known, strict=True):
        kept = [detection for detection in detections if detection.score >= min_score]
        matches = match_boxes(
            np.array([d.box_xyxy for d in kept], dtype=np.float64).reshape(-1, 4),
            [d.score for d in kept],
            np.array([t.box_xyxy for t in truth.objects], dtype=np.float64).reshape(-1, 4),
            _IOU,
        )
        for detection, match in zip(kept, matches, strict=True):
            label = NOTHING if match is None else truth.objects[match].label
            pairs[label, detection.label] += 1
        for index, missed in enumerate(truth.objects):
            if index not in matches:
                pairs[missed.label, NOTHING] += 1
    return _table(pairs, max_names)


def confusion_of_answers(
    answers: Sequence[str], truths: Sequence[str], *, max_names: int
) -> Confusion | None:
    """None where more than `max_names` different answers are true: they are not classes."""
    names = set(truths)
    if len(names) > max_names:
        return None
    pairs = Counter(
        (truth, answer if answer in names else _OTHER)
        for truth, answer in zip(truths, answers, strict=True)
    )
    return _table(pairs, max_names + 1)


def _table(pairs: Counter[tuple[str, str]], max_names: int) -> Confusion | None:
    totals: Counter[str] = Counter()
    for (truth, answer), count in pairs.items():
        totals[truth] += count
        totals[answer] += count
    last = [name for name in (NOTHING, _OTHER) if name in totals]
    names = sorted(name for name, _ in totals.most_common(max_names) if name not in last) + last
    if not names:
        return None
    return Confusion(
        names=tuple(names),
        counts=tuple(tuple(pairs[truth, answer] for answer in names) for truth in names),
    )
