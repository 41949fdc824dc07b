"""Track objects through a film: detect them in some frames, and tell which are the same."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from paligemma.answering import ImageQuery, Query
from paligemma.documents.asker import Asker
from paligemma.errors import OptionError, PaliGemmaError, check_whole
from paligemma.processor.image import LoadedImage
from paligemma.results import Detections, TrackedDetection
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.object_grammar import MAX_OBJECTS, LabelRule
from paligemma.tasks.objects import read_phrases
from paligemma.video.assignment import check_solver
from paligemma.video.clip import Frame
from paligemma.video.tracker import TrackerOptions, TrackerState, advance
from paligemma.video.tracks import TrackedFrame, between


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """How objects are searched for and followed."""

    detect_every: int = 1
    """The model is asked about every so many of the frames taken."""
    fill_s: float = 1.0
    """Where an object was not detected, but before and after within so many seconds, its box is
    interpolated. One frame alone is always filled."""
    keep: Callable[[Detections], Detections] | None = None
    """Called with the boxes of each frame; returns those to follow, with calibrated scores for
    example: `calibration.apply`."""
    separate: bool | None = None
    """Whether each phrase is asked by itself, as for `Predictor.detect`. None: in frames where the
    answer for all together leaves one out. False takes the least time and finds the least."""
    labels: LabelRule = "asked"
    """Which labels are allowed, as for `Predictor.detect`."""
    max_objects: int = MAX_OBJECTS
    """Most objects in one frame."""
    tracker: TrackerOptions = field(default_factory=TrackerOptions)

    def __post_init__(self) -> None:
        check_whole("detect_every", self.detect_every)
        if not (math.isfinite(self.fill_s) and self.fill_s >= 0):
            raise OptionError(f"fill_s is {self.fill_s!r}; it must be at least 0 seconds.")


def track_frames(
    asker: Asker,
    frames: Iterable[tuple[Frame, LoadedImage]],
    phrases: str | Sequence[str],
    options: TrackOptions = TrackOptions(),
    *,
    batch_size: int | None = None,
) -> Iterator[TrackedFrame]:
    """What `Video.track` does, for frames with the image to be shown to the model."""
    names, notes = read_phrases(phrases)
    task = DetectTask(phrases=names, labels=options.labels, max_objects=options.max_objects)
    query = Query(task=task, separate=options.separate, notes=notes)
    check_solver()
    waiting: deque[Frame] = deque()

    def queries() -> Iterator[ImageQuery]:
        for frame, image in frames:
            waiting.append(frame)
            if frame.index % options.detect_every == 0:
                yield ImageQuery(images=(image,), query=query)

    def tracked() -> Iterator[TrackedFrame]:
        state = TrackerState()
        for answer in asker.answer(queries(), batch_size):
            if isinstance(answer, PaliGemmaError):
                raise answer
            while (frame := waiting.popleft()).index % options.detect_every:
                yield _not_asked(frame, task)
            found = answer if options.keep is None else options.keep(answer)
            state, numbers = advance(state, frame.time_s, found.objects, options.tracker)
            yield _numbered(frame, found, numbers)
        for frame in waiting:
            yield _not_asked(frame, task)

    return filled(tracked(), options.fill_s)


def filled(frames: Iterable[TrackedFrame], fill_s: float) -> Iterator[TrackedFrame]:
    """The frames with interpolated boxes for objects that were not detected for a while.

    That is for up to `fill_s` seconds, or in one frame that was asked about; and in all frames
    that were not asked about. A frame is held until no gap that it is in can be filled.
    """
    waiting: deque[TrackedFrame] = deque()
    seen: dict[int, _Seen] = {}
    number = 0  # of the frames that were asked about
    asked_s = -math.inf
    for frame in frames:
        waiting.append(frame)
        if not frame.is_detected:
            continue
        number += 1
        for obj in frame.objects:
            assert isinstance(obj, TrackedDetection)
            now = _Seen(number, frame.time_s, obj)
            before = seen.get(obj.track_id)
            if before is not None and before.is_recent(number, frame.time_s, fill_s):
                _fill(waiting, before, now)
            seen[obj.track_id] = now
        final_s = min(asked_s, frame.time_s - fill_s)
        while waiting[0].time_s <= final_s:
            yield waiting.popleft()
        asked_s = frame.time_s
        seen = {k: each for k, each in seen.items() if each.is_recent(number, asked_s, fill_s)}
    yield from waiting


@dataclass(frozen=True)
class _Seen:
    """Where an object was detected."""

    number: int
    """Of the frame, among those that were asked about."""
    time_s: float
    box: TrackedDetection

    def is_recent(self, number: int, time_s: float, fill_s: float) -> bool:
        return number - self.number <= 2 or time_s - self.time_s <= fill_s


def _fill(waiting: deque[TrackedFrame], before: _Seen, after: _Seen) -> None:
    """Give each frame in between the box that lies between."""
    for place, frame in enumerate(waiting):
        if not before.time_s < frame.time_s < after.time_s:
            continue
        share = (frame.time_s - before.time_s) / (after.time_s - before.time_s)
        first, second = before.box, after.box
        box = TrackedDetection(
            track_id=second.track_id,
            label=second.label,
            box_xyxy=between(first.box_xyxy, second.box_xyxy, share),
            box_normalized_xyxy=between(
                first.box_normalized_xyxy, second.box_normalized_xyxy, share
            ),
            score=math.nan,
            existence_score=math.nan,
            label_score=math.nan,
            coordinate_score=math.nan,
            is_interpolated=True,
        )
        objects = replace(frame.objects, objects=(*frame.objects, box))
        waiting[place] = replace(frame, objects=objects)


def _numbered(frame: Frame, found: Detections, numbers: Sequence[int | None]) -> TrackedFrame:
    pairs = list(zip(found.objects, numbers, strict=True))
    tracked = (TrackedDetection(**vars(box), track_id=n) for box, n in pairs if n is not None)
    return TrackedFrame(
        index=frame.index,
        time_s=frame.time_s,
        objects=replace(found, objects=tuple(tracked)),
        untracked=tuple(box for box, n in pairs if n is None),
    )


def _not_asked(frame: Frame, task: DetectTask) -> TrackedFrame:
    objects = Detections(
        objects=(),
        prompt=task.prompt(),
        phrases=task.phrases,
        problems=(),
        size_wh=frame.image.size,
        stop_reason="eos",
        text="",
    )
    return TrackedFrame(index=frame.index, time_s=frame.time_s, objects=objects, is_detected=False)
