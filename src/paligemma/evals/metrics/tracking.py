"""Tracks compared with true ones: IDF1, MOTA and HOTA.

IDF1: Ristani et al. 2016, arXiv 1609.01775, section 2.2. MOTA: Bernardin and Stiefelhagen 2008,
doi 10.1155/2008/246309, with matches that go on from one frame to the next. HOTA: Luiten et al.
2020, arXiv 2009.07736, section 4. Boxes match by IoU, and only where their labels are equal. The
figures of a set are those of its films taken together, as the MOT challenges add them up: errors
are summed before they are divided, so that a film counts by its boxes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paligemma.data.overlap import box_iou
from paligemma.errors import DataError
from paligemma.evals.metrics.result import MetricResult, check_lengths
from paligemma.results import BoxXyxy
from paligemma.video.assignment import best_pairs

_MIN_IOU = 0.5
_HOTA_IOUS = tuple(i / 20 for i in range(1, 20))
_TINY = 1e-12  # an IoU that is 0.5 but for rounding is 0.5

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TrackedBox:
    """A box in one frame, with the number of the object that it belongs to."""

    track_id: int
    box_xyxy: BoxXyxy
    label: str = ""


TrackedFilm = Sequence[Sequence[TrackedBox]]
"""The boxes of each frame."""


@dataclass(frozen=True, kw_only=True)
class Idf1:
    """F1 of boxes under the best one-to-one assignment of found objects to true ones.

    `details`: `id_precision` and `id_recall`.
    """

    def score(
        self, predictions: Sequence[TrackedFilm], references: Sequence[TrackedFilm]
    ) -> MetricResult:
        """Raises DataError for films of different lengths or a number twice in a frame."""
        films = _pair(predictions, references)
        counts = np.array([_identities(film) for film in films])
        same, found, true = counts.sum(axis=0).tolist()
        return MetricResult(
            name="idf1",
            value=_share(2 * same, found + true),
            per_example=tuple(_share(2 * s, f + t) for s, f, t in counts.tolist()),
            details={"id_precision": _share(same, found), "id_recall": _share(same, true)},
        )


def _identities(film: _Film) -> tuple[float, float, float]:
    """Boxes with the right number, found boxes, true boxes."""
    together = np.zeros((film.num_true, film.num_found))
    for frame in film.frames:
        together[np.ix_(frame.true, frame.found)] += frame.ious >= _MIN_IOU - _TINY
    same = sum(float(together[pair]) for pair in best_pairs(together))
    return same, float(film.found_counts.sum()), float(film.true_counts.sum())


@dataclass(frozen=True, kw_only=True)
class Mota:
    """1 - (missed boxes + false boxes + switches) / true boxes: at most 1, and may be negative.

    A switch is a true object whose box has another number than when it was last matched.
    `details`, over all films: `missed`, `false`, `switches`, `num_true`, and `motp`, the mean IoU
    of matched boxes.
    """

    def score(
        self, predictions: Sequence[TrackedFilm], references: Sequence[TrackedFilm]
    ) -> MetricResult:
        """Raises DataError for films of different lengths or a number twice in a frame."""
        films = [_errors(film) for film in _pair(predictions, references)]
        total = {name: sum(film[name] for film in films) for name in films[0]}
        matched, overlap = total.pop("matched"), total.pop("overlap")
        return MetricResult(
            name="mota",
            value=_accuracy(total),
            per_example=tuple(map(_accuracy, films)),
            details={**total, "motp": _share(overlap, matched)},
        )


def _accuracy(errors: Mapping[str, float]) -> float:
    wrong = errors["missed"] + errors["false"] + errors["switches"]
    return 1.0 - _share(wrong, errors["num_true"])


def _errors(film: _Film) -> dict[str, float]:
    names = ("missed", "false", "switches", "num_true", "matched", "overlap")
    counts = dict.fromkeys(names, 0.0)
    number_of: dict[int, int] = {}  # true object -> its number when it was last matched
    before: dict[int, int] = {}  # the same, of the frame before alone
    for frame in film.frames:
        goes_on = [[before.get(t) == f for f in frame.found] for t in frame.true]
        fits = frame.ious >= _MIN_IOU - _TINY
        # A match that goes on comes before any other, and else the larger overlap.
        weights = np.array(goes_on, dtype=np.float64).reshape(fits.shape) * 1000.0 + frame.ious
        now = {}
        for row, column in best_pairs(np.where(fits, weights, 0.0)):
            if fits[row, column]:
                true, found = frame.true[row], frame.found[column]
                now[true] = found
                counts["switches"] += number_of.get(true, found) != found
                counts["overlap"] += float(frame.ious[row, column])
        counts["matched"] += len(now)
        counts["missed"] += len(frame.true) - len(now)
        counts["false"] += len(frame.found) - len(now)
        counts["num_true"] += len(frame.true)
        number_of |= now
        before = now
    return counts


@dataclass(frozen=True, kw_only=True)
class Hota:
    """The geometric mean of how well boxes and how well tracks are found, over IoUs 0.05 to 0.95.

    `details`, each a mean over these IoUs: `detection` (DetA), `association` (AssA) and
    `localization` (LocA, the mean IoU of matched boxes).
    """

    def score(
        self, predictions: Sequence[TrackedFilm], references: Sequence[TrackedFilm]
    ) -> MetricResult:
        """Raises DataError for films of different lengths or a number twice in a frame."""
        counts = np.array([_hota_counts(film) for film in _pair(predictions, references)])
        hota, detection, association, localization = _hota_of(counts.sum(axis=0))
        return MetricResult(
            name="hota",
            value=hota,
            per_example=tuple(_hota_of(film)[0] for film in counts),
            details={
                "detection": detection,
                "association": association,
                "localization": localization,
            },
        )


def _hota_counts(film: _Film) -> Matrix:
    """float64[IoUs, 4]: matched boxes, matched or missed or false ones, and the sums over matched
    boxes of the association of their pair (equation 8) and of their IoU."""
    # How well a found object fits a true one over the whole film decides whom it matches in a
    # frame, so that one matching serves all objects (section 4.5).
    fit = np.zeros((film.num_true, film.num_found))
    for frame in film.frames:
        ious = frame.ious
        either = ious.sum(axis=0)[None, :] + ious.sum(axis=1)[:, None] - ious
        share = np.divide(ious, either, out=np.zeros_like(ious), where=either > _TINY)
        fit[np.ix_(frame.true, frame.found)] += share
    all_boxes = film.true_counts[:, None] + film.found_counts[None, :]
    fit /= np.maximum(all_boxes - fit, 1.0)
    pairs = np.zeros((len(_HOTA_IOUS), film.num_true, film.num_found))
    overlap = np.zeros(len(_HOTA_IOUS))
    thresholds = np.array(_HOTA_IOUS) - _TINY
    for frame in film.frames:
        weights = fit[np.ix_(frame.true, frame.found)] * frame.ious
        for row, column in best_pairs(weights):
            iou = frame.ious[row, column]
            matches = iou >= thresholds
            pairs[matches, frame.true[row], frame.found[column]] += 1
            overlap += matches * iou
    matched = pairs.sum(axis=(1, 2))
    association = (pairs * pairs / np.maximum(all_boxes - pairs, 1.0)).sum(axis=(1, 2))
    either = film.true_counts.sum() + film.found_counts.sum() - matched
    return np.stack([matched, either, association, overlap], axis=1)


def _hota_of(counts: Matrix) -> tuple[float, float, float, float]:
    """HOTA, DetA, AssA and LocA; NaN where there is no box at all."""
    matched, either, association, overlap = counts.T
    if not either.any():
        return math.nan, math.nan, math.nan, math.nan
    detection = matched / np.maximum(either, 1.0)
    association = association / np.maximum(matched, 1.0)
    localization = np.where(matched > 0, overlap / np.maximum(matched, 1.0), 1.0)
    hota = np.sqrt(detection * association)
    means = (hota, detection, association, localization)
    return tuple(float(values.mean()) for values in means)  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frame:
    true: list[int]
    """Indices of the true objects with a box here."""
    found: list[int]
    ious: Matrix
    """[true, found]; 0 where labels differ."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Film:
    frames: list[_Frame]
    true_counts: Matrix
    """Boxes of each true object."""
    found_counts: Matrix

    @property
    def num_true(self) -> int:
        return len(self.true_counts)

    @property
    def num_found(self) -> int:
        return len(self.found_counts)


def _pair(predictions: Sequence[TrackedFilm], references: Sequence[TrackedFilm]) -> list[_Film]:
    check_lengths(len(predictions), len(references))
    films = []
    for number, (found, true) in enumerate(zip(predictions, references, strict=True)):
        if len(found) != len(true):
            raise DataError(
                f"Film {number} has {len(found)} frames with found boxes and {len(true)} with true "
                "ones. Give a list for each frame; it may be empty."
            )
        found_counts, true_counts = _counts(found, number), _counts(true, number)
        found_index = {track_id: index for index, track_id in enumerate(found_counts)}
        true_index = {track_id: index for index, track_id in enumerate(true_counts)}
        films.append(
            _Film(
                frames=[
                    _Frame(
                        true=[true_index[box.track_id] for box in true_boxes],
                        found=[found_index[box.track_id] for box in found_boxes],
                        ious=_ious(true_boxes, found_boxes),
                    )
                    for true_boxes, found_boxes in zip(true, found, strict=True)
                ],
                true_counts=np.array(list(true_counts.values()), dtype=np.float64),
                found_counts=np.array(list(found_counts.values()), dtype=np.float64),
            )
        )
    return films


def _counts(film: TrackedFilm, number: int) -> Counter[int]:
    """Boxes of each object, in the order of appearance."""
    counts: Counter[int] = Counter()
    for index, boxes in enumerate(film):
        ids = Counter(box.track_id for box in boxes)
        if ids and max(ids.values()) > 1:
            twice = max(ids, key=lambda track_id: ids[track_id])
            raise DataError(
                f"Frame {index} of film {number} has {ids[twice]} boxes with the number {twice}. "
                "An object has at most one box in a frame."
            )
        counts.update(ids)
    return counts


def _ious(true: Sequence[TrackedBox], found: Sequence[TrackedBox]) -> Matrix:
    first, second = _boxes(true), _boxes(found)
    same = [[t.label == f.label for f in found] for t in true]
    return box_iou(first, second) * np.array(same, dtype=np.float64).reshape(len(true), len(found))


def _boxes(boxes: Sequence[TrackedBox]) -> Matrix:
    return np.array([box.box_xyxy for box in boxes], dtype=np.float64).reshape(-1, 4)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
