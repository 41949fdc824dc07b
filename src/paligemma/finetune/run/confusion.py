"""Which class was taken for which: of boxes that lie on each other, or of short answers.

Knows what was found and what is there; knows no pictures and no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paligemma.data.overlap import match_boxes
from paligemma.evals.metrics.objects import FoundObject, ReferenceImage

NOTHING = "(nothing)"
"""On the side of the truth: a box where nothing is; on the side of the model: a thing missed."""
_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """`counts[i][j]`: how often `names[i]` is there and the model says `names[j]`."""

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
    for mine, picture in zip(found, known, strict=True):
        kept = [thing for thing in mine if thing.score >= min_score]
        matches = match_boxes(
            np.array([t.box_xyxy for t in kept], dtype=np.float64).reshape(-1, 4),
            [t.score for t in kept],
            np.array([t.box_xyxy for t in picture.objects], dtype=np.float64).reshape(-1, 4),
            _IOU,
        )
        taken = set()
        for thing, match in zip(kept, matches, strict=True):
            if match is None:
                pairs[NOTHING, thing.label] += 1
            else:
                taken.add(match)
                pairs[picture.objects[match].label, thing.label] += 1
        for place, missed in enumerate(picture.objects):
            if place not in taken:
                pairs[missed.label, NOTHING] += 1
    return _table(pairs, max_names)


def confusion_of_answers(
    said: Sequence[str], right: Sequence[str], *, max_names: int
) -> Confusion | None:
    """None where there are more different answers than `max_names`: those are no classes."""
    if len(set(right)) > max_names:
        return None
    names = set(right)
    pairs = Counter(
        (truth, guess if guess in names else "(other)")
        for truth, guess in zip(right, said, strict=True)
    )
    return _table(pairs, max_names + 1)


def _table(pairs: Counter[tuple[str, str]], max_names: int) -> Confusion | None:
    totals: Counter[str] = Counter()
    for (truth, guess), count in pairs.items():
        totals[truth] += count
        totals[guess] += count
    last = [name for name in (NOTHING, "(other)") if name in totals]
    names = sorted(name for name, _ in totals.most_common(max_names) if name not in last) + last
    if not names:
        return None
    return Confusion(
        names=tuple(names),
        counts=tuple(tuple(pairs[truth, guess] for guess in names) for truth in names),
    )
