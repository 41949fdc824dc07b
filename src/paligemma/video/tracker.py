"""Which box of a frame belongs to which box of the frames before.

A small tracker of boxes alone, for few frames a second and for scores that need not be near 1:

- Each edge of a box moves at a constant velocity, estimated by a Kalman filter as in SORT
  (arXiv 1602.00763), here in seconds and in units of the box's size, so that it does not matter how
  far apart frames are. Edges rather than centers: an object that leaves the image has one that
  stands still.
- The cost of a box for a track is 1 - IoU plus the distance of their centers by their size, so that
  boxes that do not overlap can be compared too (the terms of DIoU, arXiv 1911.08287), plus a
  penalty for another label. It may be higher where the track's place is less certain.
- Two rounds as in BYTE (arXiv 2110.06864, algorithm 1): sure boxes choose among all tracks, then
  the other boxes among those tracks that were there a frame ago. Only sure boxes begin a track.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from paligemma.errors import OptionError
from paligemma.results import Detection
from paligemma.video.assignment import best_pairs

Edges = npt.NDArray[np.float64]
"""float64[4], x1, y1, x2, y2 in pixels, or their velocities in pixels per second."""

# In units of the box's size, the square root of its area, and seconds.
_BOX_NOISE = 0.05  # of a detected edge
_FIRST_VELOCITY = 1.0  # standard deviation of the velocity of something seen once
_ACCELERATION = 1.0  # how much a velocity changes in a second
_OTHER_LABEL = 1.0
_LEAST_START = 0.05  # the model itself takes a box below this score for wrong
_LEAST_SIDE = 0.25  # of its last side, to which a predicted box may shrink


@dataclass(frozen=True, kw_only=True)
class TrackerOptions:
    """When a track begins and ends."""

    start_score: float | None = None
    """Least score of a box that begins a track: 0.5 for calibrated scores, say. None: half the mean
    score of all boxes of that label so far, and at least 0.05, since scores of models that are not
    calibrated may all be low."""
    max_lost_s: float = 3.0
    """A track ends when its object was not found for longer than this, in seconds."""

    def __post_init__(self) -> None:
        if self.start_score is not None and not 0 <= self.start_score <= 1:
            raise OptionError(f"start_score is {self.start_score!r}; it must be from 0 to 1.")
        if not (math.isfinite(self.max_lost_s) and self.max_lost_s >= 0):
            raise OptionError(f"max_lost_s is {self.max_lost_s!r}; it must be at least 0 seconds.")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Track:
    """Where an object was when it was last found, and how it moves."""

    track_id: int
    label: str
    label_score: float
    """Score of the box that gave the label, the surest so far."""
    edges: Edges
    velocity: Edges
    covariance: npt.NDArray[np.float64]
    """float64[2, 2] of position and velocity, the same for each edge, in units of the size."""
    time_s: float

    def at(self, time_s: float) -> _Track:
        """The prediction for a later time."""
        dt = time_s - self.time_s
        step = np.array([[1.0, dt], [0.0, 1.0]])
        noise = _ACCELERATION**2 * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
        return replace(
            self,
            edges=_not_too_small(self.edges + dt * self.velocity, self.edges),
            covariance=step @ self.covariance @ step.T + noise,
            time_s=time_s,
        )

    def found(self, box: Detection) -> _Track:
        """The prediction corrected by the box that was found."""
        gain = self.covariance[:, 0] / (self.covariance[0, 0] + _BOX_NOISE**2)
        error = np.array(box.box_xyxy) - self.edges
        is_surer = not box.score <= self.label_score
        return replace(
            self,
            label=box.label if is_surer else self.label,
            label_score=box.score if is_surer else self.label_score,
            edges=self.edges + gain[0] * error,
            velocity=self.velocity + gain[1] * error,
            covariance=self.covariance - np.outer(gain, self.covariance[0]),
        )

    @property
    def max_cost(self) -> float:
        """More where it is less certain where the object is."""
        return 1.0 + 2.0 * math.sqrt(self.covariance[0, 0])


@dataclass(frozen=True, kw_only=True, eq=False)
class TrackerState:
    """What is known after some frames. Begin with `TrackerState()`."""

    time_s: float = -math.inf
    next_id: int = 1
    present: tuple[_Track, ...] = ()
    """Found in the last frame."""
    lost: tuple[_Track, ...] = ()
    scores: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Number and sum of the scores of each label."""


def advance(
    state: TrackerState,
    time_s: float,
    boxes: Sequence[Detection],
    options: TrackerOptions = TrackerOptions(),
) -> tuple[TrackerState, tuple[int | None, ...]]:
    """The state after one more frame, and the number of the track of each of its boxes.

    Numbers begin at 1. None: a box that belongs to no track and is not sure enough to begin one.
    Raises OptionError for a frame that is not later than the one before.
    """
    if not time_s > state.time_s:
        raise OptionError(f"The frame at {time_s} s follows one at {state.time_s} s.")
    scores = _counted(state.scores, boxes)
    sure = [i for i, box in enumerate(boxes) if _is_sure(box, scores, options)]
    unsure = [i for i in range(len(boxes)) if i not in set(sure)]
    present = [track.at(time_s) for track in state.present]
    lost = [track.at(time_s) for track in state.lost]

    matched = _match([*present, *lost], boxes, sure, 1.0)
    still = [track for track in present if track.track_id not in matched.values()]
    matched |= _match(still, boxes, unsure, 0.5)

    tracks = {track.track_id: track for track in (*present, *lost)}
    found = [tracks[number].found(boxes[index]) for index, number in matched.items()]
    next_id = state.next_id
    for index in sure:
        if index not in matched:
            matched[index] = next_id
            found.append(_begun(next_id, time_s, boxes[index]))
            next_id += 1
    numbers = set(matched.values())
    after = TrackerState(
        time_s=time_s,
        next_id=next_id,
        present=tuple(found),
        lost=tuple(
            track
            for track in (*state.present, *state.lost)
            if track.track_id not in numbers and time_s - track.time_s <= options.max_lost_s
        ),
        scores=scores,
    )
    return after, tuple(matched.get(index) for index in range(len(boxes)))


def _match(
    tracks: Sequence[_Track], boxes: Sequence[Detection], indices: Sequence[int], share: float
) -> dict[int, int]:
    """Index of a box -> number of its track, at costs of up to `share` of the track's limit."""
    if not tracks or not indices:
        return {}
    costs = _costs(tracks, [boxes[index] for index in indices])
    limits = np.array([[share * track.max_cost] for track in tracks])
    # Whatever pair is within the limits counts for more than none, and the cheaper for more.
    gains = np.where(costs <= limits, limits.max() + 1.0 - costs, 0.0)
    return {
        indices[column]: tracks[row].track_id
        for row, column in best_pairs(gains)
        if gains[row, column] > 0
    }


def _costs(tracks: Sequence[_Track], boxes: Sequence[Detection]) -> npt.NDArray[np.float64]:
    """float64[tracks, boxes]."""
    first = np.stack([track.edges for track in tracks])[:, None]
    second = np.array([box.box_xyxy for box in boxes], dtype=np.float64)[None]
    sides, other_sides = (edges[..., 2:] - edges[..., :2] for edges in (first, second))
    size = (_size(sides) + _size(other_sides)) / 2
    offset = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    distance = np.hypot(offset[..., 0], offset[..., 1]) / size
    labels = [[track.label != box.label for box in boxes] for track in tracks]
    overlap = _iou(first, second)
    costs: npt.NDArray[np.float64] = 1.0 - overlap + distance + _OTHER_LABEL * np.array(labels)
    return costs


def _size(sides: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    size: npt.NDArray[np.float64] = np.maximum(np.sqrt(sides.prod(axis=-1)), 1e-6)
    return size


def _iou(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Of each pair, float64[N, M], of boxes float64[N, 1, 4] and float64[1, M, 4]."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    both = np.clip(high - low, 0.0, None).prod(axis=-1)
    areas = [(edges[..., 2:] - edges[..., :2]).prod(axis=-1) for edges in (first, second)]
    iou: npt.NDArray[np.float64] = both / np.maximum(areas[0] + areas[1] - both, 1e-9)
    return iou


def _begun(track_id: int, time_s: float, box: Detection) -> _Track:
    return _Track(
        track_id=track_id,
        label=box.label,
        label_score=box.score,
        edges=np.array(box.box_xyxy, dtype=np.float64),
        velocity=np.zeros(4),
        covariance=np.diag([_BOX_NOISE**2, _FIRST_VELOCITY**2]),
        time_s=time_s,
    )


def _not_too_small(edges: Edges, before: Edges) -> Edges:
    """Edges that move toward each other for long would pass each other."""
    center = (edges[:2] + edges[2:]) / 2
    sides = np.maximum(edges[2:] - edges[:2], _LEAST_SIDE * (before[2:] - before[:2]))
    return np.concatenate([center - sides / 2, center + sides / 2])


def _counted(
    scores: Mapping[str, tuple[int, float]], boxes: Sequence[Detection]
) -> dict[str, tuple[int, float]]:
    counted = dict(scores)
    for box in boxes:
        if not math.isnan(box.score):
            number, total = counted.get(box.label, (0, 0.0))
            counted[box.label] = number + 1, total + box.score
    return counted


def _is_sure(
    box: Detection, scores: Mapping[str, tuple[int, float]], options: TrackerOptions
) -> bool:
    """Whether a box may begin a track. One without a score may."""
    if math.isnan(box.score):
        return True
    if options.start_score is not None:
        return box.score >= options.start_score
    number, total = scores[box.label]
    return box.score >= max(_LEAST_START, 0.5 * total / number)
