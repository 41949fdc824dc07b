"""A film with the objects drawn on it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from paligemma.draw import draw_detections
from paligemma.errors import VideoError
from paligemma.results import BoxXyxy, Detection, Detections
from paligemma.video.clip import Clip
from paligemma.video.encoding import check_film_name, write_film
from paligemma.video.tracks import TrackBox, Tracks, between

_SAME_TIME_S = 1e-3


def draw_tracks(
    clip: Clip,
    tracks: Tracks,
    path: str | Path,
    *,
    end_s: float | None = None,
    font: str | Path | None = None,
) -> Path:
    """What `Tracks.draw` does."""
    path = Path(path).expanduser()
    check_film_name(path)
    if (clip.info.width, clip.info.height) != tracks.size_wh:
        raise VideoError(
            f"The film is {clip.info.width} x {clip.info.height}, and the tracks are of one of "
            f"{tracks.size_wh[0]} x {tracks.size_wh[1]} pixels. Pass the film that was searched."
        )
    write_film(path, _drawn(clip, tracks, end_s, font))
    return path


def _drawn(
    clip: Clip, tracks: Tracks, end_s: float | None, font: str | Path | None
) -> Iterator[tuple[float, Image.Image]]:
    """Every frame of the part of the film that was searched."""
    boxes = _BoxesByTime(tracks)
    start_s = tracks.times_s[0]
    if end_s is None and len(tracks.times_s) > 1:
        end_s = 2 * tracks.times_s[-1] - tracks.times_s[-2]
    for frame in clip.frames(start_s=start_s, end_s=end_s):
        objects = boxes.at(frame.time_s)
        yield frame.time_s - start_s, draw_detections(frame.image, objects, font=font)


class _BoxesByTime:
    """The boxes of tracks at any time."""

    def __init__(self, tracks: Tracks) -> None:
        self._times_s = tracks.times_s
        self._size_wh = tracks.size_wh
        self._names = {track.track_id: f"{track.label} {track.track_id}" for track in tracks}
        self._frames: dict[int, dict[int, TrackBox]] = {}
        for track in tracks:
            for box in track.boxes:
                self._frames.setdefault(box.frame, {})[track.track_id] = box

    def at(self, time_s: float) -> Detections:
        """Between two frames that have the object, its box moves straight; else it stands still
        until the next frame."""
        number = bisect.bisect_right(self._times_s, time_s + _SAME_TIME_S) - 1
        now, then = self._frames.get(number, {}), self._frames.get(number + 1, {})
        objects = []
        for track_id, box in now.items():
            edges, score = box.box_xyxy, box.score
            if time_s - box.time_s > _SAME_TIME_S:
                score = math.nan
                if (after := then.get(track_id)) is not None:
                    share = (time_s - box.time_s) / (after.time_s - box.time_s)
                    edges = between(edges, after.box_xyxy, share)
            objects.append(self._object(track_id, edges, score))
        return Detections(
            objects=tuple(objects),
            prompt="",
            # All names in the same order for each frame, so that each keeps its color.
            phrases=tuple(self._names.values()),
            problems=(),
            size_wh=self._size_wh,
            stop_reason="eos",
            text="",
        )

    def _object(self, track_id: int, box_xyxy: BoxXyxy, score: float) -> Detection:
        width, height = self._size_wh
        x1, y1, x2, y2 = box_xyxy
        return Detection(
            label=self._names[track_id],
            box_xyxy=box_xyxy,
            box_normalized_xyxy=(x1 / width, y1 / height, x2 / width, y2 / height),
            score=score,
            existence_score=score,
            label_score=score,
            coordinate_score=score,
        )
