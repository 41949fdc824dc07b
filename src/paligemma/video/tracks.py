"""The objects of a film, each with its boxes along the time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from paligemma.errors import OptionError, counted
from paligemma.results import BoxXyxy, Detection, Detections, Result, TrackedDetection, one_line

if TYPE_CHECKING:
    from paligemma.video.clip import Clip


@dataclass(frozen=True, kw_only=True)
class TrackedFrame(Result):
    """What was found in one frame of a film."""

    index: int
    """Its place among the frames that were taken, from 0."""
    time_s: float
    """Seconds from the beginning of the film."""
    objects: Detections
    """Each a `TrackedDetection`, in pixels of the film."""
    untracked: tuple[Detection, ...] = ()
    """Boxes that belong to no object known so far, and were not sure enough to begin one."""
    is_detected: bool = True
    """Whether the model was asked about this frame."""

    def __str__(self) -> str:
        return f"{self.time_s:.2f} s: {', '.join(map(str, self.objects)) or 'nothing'}"


@dataclass(frozen=True, kw_only=True)
class TrackBox(Result):
    """Where an object was in one frame."""

    frame: int
    """Index of the frame among those taken, from 0."""
    time_s: float
    box_xyxy: BoxXyxy
    """Pixels of the film."""
    score: float
    """That of the detection; NaN where the box was not detected."""
    is_interpolated: bool


@dataclass(frozen=True, kw_only=True, repr=False)
class Track(Result):
    """One object of a film."""

    track_id: int
    label: str
    """What its boxes were called, the one with the largest sum of scores."""
    boxes: tuple[TrackBox, ...]
    """In order of time."""

    @property
    def start_s(self) -> float:
        """When it was first seen."""
        return self.boxes[0].time_s

    @property
    def end_s(self) -> float:
        """When it was last seen."""
        return self.boxes[-1].time_s

    @property
    def num_detected(self) -> int:
        """Number of boxes that were detected."""
        return sum(not box.is_interpolated for box in self.boxes)

    @property
    def score(self) -> float:
        """The mean score of the boxes that were detected."""
        return math.fsum(b.score for b in self.boxes if not b.is_interpolated) / self.num_detected

    def to_dict(self) -> dict[str, Any]:
        return {
            "track_id": self.track_id,
            "label": self.label,
            "score": None if math.isnan(self.score) else self.score,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "boxes": [box.to_dict() for box in self.boxes],
        }

    def __str__(self) -> str:
        return f"{self.track_id}: {self.label} from {self.start_s:.2f} to {self.end_s:.2f} s"

    def __repr__(self) -> str:
        return f"Track({self.track_id}, {self.label!r}, {counted(len(self.boxes), 'box', 'boxes')})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Tracks(Result, Sequence[Track]):
    """All objects of a film, or of a part of it, in order of appearance.

    >>> tracks = Tracks.of(predictor.video("clip.mp4").track("person ; dog"))
    >>> Path("tracks.txt").write_text(tracks.to_mot())
    """

    tracks: tuple[Track, ...]
    phrases: tuple[str, ...]
    """The phrases asked for."""
    times_s: tuple[float, ...]
    """When the frames were, in seconds from the beginning of the film."""
    size_wh: tuple[int, int]
    """Width and height of the film, in pixels."""
    num_untracked: int = 0
    """Boxes that belong to no track, as they were not sure enough to begin one."""

    @classmethod
    def of(cls, frames: Iterable[TrackedFrame]) -> Tracks:
        """Collect what `Video.track` yields, without the images. Raises OptionError for none."""
        boxes: dict[int, list[TrackBox]] = {}
        labels: dict[int, dict[str, float]] = {}
        times: list[float] = []
        objects: Detections | None = None
        num_untracked = 0
        for frame in frames:
            objects = frame.objects
            times.append(frame.time_s)
            num_untracked += len(frame.untracked)
            for obj in objects:
                assert isinstance(obj, TrackedDetection)
                boxes.setdefault(obj.track_id, []).append(_box_of(obj, frame))
                sums = labels.setdefault(obj.track_id, {})
                score = 0.0 if math.isnan(obj.score) else obj.score
                sums[obj.label] = sums.get(obj.label, 0.0) + score
        if objects is None:
            raise OptionError("There are no frames. The film, or the part of it, has none.")
        return cls(
            tracks=tuple(
                Track(
                    track_id=number,
                    label=max(labels[number], key=lambda label: labels[number][label]),
                    boxes=tuple(found),
                )
                for number, found in boxes.items()
            ),
            phrases=objects.phrases,
            times_s=tuple(times),
            size_wh=objects.size_wh,
            num_untracked=num_untracked,
        )

    def __len__(self) -> int:
        return len(self.tracks)

    @overload
    def __getitem__(self, index: int) -> Track: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Track, ...]: ...
    def __getitem__(self, index: int | slice) -> Track | tuple[Track, ...]:
        return self.tracks[index]

    def to_mot(self) -> str:
        """Lines of the MOT challenges: `frame,id,x,y,width,height,score,-1,-1,-1`.

        Frames count from 1, boxes are in pixels from the top left. The format has no labels. The
        score of a box that was not detected is -1.
        """
        lines = []
        for track in self.tracks:
            for box in track.boxes:
                x1, y1, x2, y2 = box.box_xyxy
                edges = ",".join(f"{edge:.2f}" for edge in (x1, y1, x2 - x1, y2 - y1))
                score = "-1" if math.isnan(box.score) else f"{box.score:.4f}"
                line = f"{box.frame + 1},{track.track_id},{edges},{score},-1,-1,-1\n"
                lines.append((box.frame, track.track_id, line))
        return "".join(line for _, _, line in sorted(lines))

    def draw(
        self,
        clip: Clip,
        path: str | Path,
        *,
        end_s: float | None = None,
        font: str | Path | None = None,
    ) -> Path:
        """Write the film with the objects drawn on every frame, as an MP4 file without sound.

        `clip` is the film that was searched. The drawn one begins with the first frame that was
        taken, and ends at `end_s`, or where the next frame would have been taken. Between the
        frames that were taken, boxes move straight on. Each object has a color, its label and its
        number; boxes that were detected in the frame have their score.

        Returns the path. Raises OptionError for a path that cannot be written, VideoError for
        another film.
        """
        from paligemma.video.drawing import draw_tracks

        return draw_tracks(clip, self, path, end_s=end_s, font=font)

    def __str__(self) -> str:
        width, height = self.size_wh
        lines = [
            f"{counted(len(self), 'object')} in {counted(len(self.times_s), 'frame')} of "
            f"{width} x {height} pixels"
        ]
        if self.tracks:
            lines.append("  id    from      to  boxes  score  label")
        for track in self.tracks:
            score = "  -" if math.isnan(track.score) else f"{track.score:.2f}"
            lines.append(
                f"{track.track_id:4d} {track.start_s:7.2f} {track.end_s:7.2f} {len(track.boxes):6d}"
                f"  {score:>5}  {one_line(track.label)}"
            )
        found = {track.label.casefold() for track in self.tracks}
        missing = [phrase for phrase in self.phrases if phrase.casefold() not in found]
        if missing:
            lines.append(f"not found: {', '.join(missing)}")
        if self.num_untracked:
            boxes = counted(self.num_untracked, "unsure box", "unsure boxes")
            lines.append(f"left out: {boxes} of no object")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Tracks({list(self.tracks)!r}, frames={len(self.times_s)})"


def _box_of(obj: TrackedDetection, frame: TrackedFrame) -> TrackBox:
    return TrackBox(
        frame=frame.index,
        time_s=frame.time_s,
        box_xyxy=obj.box_xyxy,
        score=obj.score,
        is_interpolated=obj.is_interpolated,
    )


def between(first: BoxXyxy, second: BoxXyxy, share: float) -> BoxXyxy:
    """The box at this share of the way.

    >>> between((0, 0, 10, 10), (4, 0, 14, 10), 0.25)
    (1.0, 0.0, 11.0, 10.0)
    """
    x1, y1, x2, y2 = (a + share * (b - a) for a, b in zip(first, second, strict=True))
    return x1, y1, x2, y2
