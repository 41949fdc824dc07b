"""Objects are followed through films, in a stream, and written as JSON, MOT text and films."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma import Detection, Detections, OptionError, PromptError, TrackedDetection
from paligemma.answering import ImageQuery
from paligemma.errors import ImageError, VideoError
from paligemma.processor.image import LoadedImage
from paligemma.tasks.detect import DetectTask
from paligemma.video import TrackerOptions, TrackOptions, Tracks, open_clip
from paligemma.video.clip import Frame
from paligemma.video.tracking import track_frames
from tests.video.clips import film

SIZE = (320, 240)
Boxes = dict[int, list[tuple[str, float, float]]]
"""Frame -> label, left edge and score of each box."""


@dataclass
class Scripted:
    """Finds what the script says, frame by frame."""

    script: Boxes
    asked: list[int] = field(default_factory=list)

    @property
    def processor(self) -> Any:
        raise NotImplementedError

    def answer(
        self, queries: Iterable[ImageQuery], batch_size: int | None = None
    ) -> Iterator[Detections | ImageError]:
        for query in queries:
            [image] = query.images
            assert isinstance(image, LoadedImage)
            number = int(image.name)
            self.asked.append(number)
            task = query.query.task
            assert isinstance(task, DetectTask)
            yield Detections(
                objects=tuple(box(*each) for each in self.script.get(number, [])),
                prompt=task.prompt(),
                phrases=task.phrases,
                problems=(),
                size_wh=SIZE,
                stop_reason="eos",
                text="",
            )


def box(label: str, x: float, score: float) -> Detection:
    return Detection(
        label=label,
        box_xyxy=(x, 100.0, x + 16, 116.0),
        box_normalized_xyxy=(x / 320, 100 / 240, (x + 16) / 320, 116 / 240),
        score=score,
        existence_score=score,
        label_score=1.0,
        coordinate_score=1.0,
    )


def frames(number: int, fps: float = 5) -> Iterator[tuple[Frame, LoadedImage]]:
    image = Image.new("RGB", SIZE)
    for index in range(number):
        yield Frame(index, index / fps, image), LoadedImage(rgb=image, name=str(index))


def seen(objects: Sequence[Detection]) -> list[tuple[int, float, bool]]:
    """Number, left edge and whether it is interpolated."""
    return [
        (obj.track_id, round(obj.box_xyxy[0], 3), obj.is_interpolated)
        for obj in objects
        if isinstance(obj, TrackedDetection)
    ]


MOVING: Boxes = {k: [("dog", 2.0 * k, 0.9)] for k in range(12)}


def test_every_frame_has_its_objects_with_their_numbers() -> None:
    found = list(track_frames(Scripted(MOVING), frames(4), "dog ; cat"))
    assert [frame.index for frame in found] == [0, 1, 2, 3]
    assert [frame.time_s for frame in found] == [0.0, 0.2, 0.4, 0.6]
    assert [seen(frame.objects) for frame in found] == [[(1, 2.0 * k, False)] for k in range(4)]
    assert found[0].objects.phrases == ("dog", "cat")
    assert found[0].objects.missing == ("cat",)


def test_a_frame_without_the_object_gets_the_box_in_between_marked() -> None:
    script = {k: boxes for k, boxes in MOVING.items() if k not in (3, 4)}
    found = list(track_frames(Scripted(script), frames(8), "dog"))
    assert seen(found[3].objects) == [(1, 6.0, True)]
    assert seen(found[4].objects) == [(1, 8.0, True)]
    [filled] = found[3].objects
    assert math.isnan(filled.score)
    assert found[3].to_dict()["objects"]["objects"][0]["score"] is None
    assert found[3].objects.missing == ()


def test_a_gap_is_filled_up_to_the_time_given_and_one_frame_alone_always() -> None:
    script = {k: boxes for k, boxes in MOVING.items() if k not in (3, 4)}
    found = list(track_frames(Scripted(script), frames(8), "dog", TrackOptions(fill_s=0.5)))
    assert [len(frame.objects) for frame in found] == [1, 1, 1, 0, 0, 1, 1, 1]
    assert seen(found[5].objects)[0][0] == 1
    script = {k: boxes for k, boxes in MOVING.items() if k != 3}
    found = list(track_frames(Scripted(script), frames(8, fps=1), "dog", TrackOptions(fill_s=0)))
    assert [len(frame.objects) for frame in found] == [1] * 8


def test_only_every_few_frames_are_asked_about_and_the_others_filled() -> None:
    model = Scripted(MOVING)
    found = list(track_frames(model, frames(11), "dog", TrackOptions(detect_every=4)))
    assert model.asked == [0, 4, 8]
    assert [frame.is_detected for frame in found] == [k in (0, 4, 8) for k in range(11)]
    # After the last frame that was asked about, nothing is known.
    assert [seen(frame.objects) for frame in found] == [
        *([(1, 2.0 * k, k not in (0, 4, 8))] for k in range(9)), [], [],
    ]  # fmt: skip


def test_frames_come_as_soon_as_no_gap_can_be_filled_and_none_is_kept() -> None:
    model = Scripted(dict.fromkeys(range(10_000), MOVING[0]))
    stream = track_frames(model, frames(10_000), "dog")
    for index in range(50):
        frame = next(stream)
        assert frame.index == index
        # The answers of the scripted model come one by one: 1 s at 5 frames a second.
        assert len(model.asked) <= index + 7


def test_unsure_boxes_of_no_object_are_told() -> None:
    script: Boxes = {0: [("dog", 0, 0.8)], 1: [("dog", 0, 0.8), ("dog", 40, 0.1)]}
    found = list(track_frames(Scripted(script), frames(2), "dog"))
    assert [box.score for box in found[1].untracked] == [0.1]
    tracks = Tracks.of(found)
    assert tracks.num_untracked == 1
    assert "left out: 1 unsure box of no object" in str(tracks)


def test_boxes_can_be_rescored_before_they_are_followed() -> None:
    def half(found: Detections) -> Detections:
        return replace(found, objects=tuple(replace(o, score=o.score / 2) for o in found.objects))

    options = TrackOptions(keep=half, tracker=TrackerOptions(start_score=0.5))
    found = list(track_frames(Scripted(MOVING), frames(3), "dog", options))
    assert [len(frame.objects) for frame in found] == [0, 0, 0]
    assert [frame.untracked[0].score for frame in found] == [0.45] * 3


def test_wrong_options_are_refused_before_the_model_is_asked() -> None:
    model = Scripted(MOVING)
    wrong: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (OptionError, "detect_every is 0", lambda: TrackOptions(detect_every=0)),
        (OptionError, "fill_s is -1", lambda: TrackOptions(fill_s=-1)),
        (PromptError, "phrases", lambda: track_frames(model, frames(3), " ; ")),
    ]
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message):
            call()
    assert model.asked == []


def two() -> Tracks:
    script: Boxes = {
        k: [("dog", 2.0 * k, 0.9), *([("cat", 40, 0.6)] if k > 1 else [])] for k in range(5)
    }
    del script[3]
    return Tracks.of(track_frames(Scripted(script), frames(5), "dog ; cat ; owl"))


def test_tracks_tell_what_was_where_from_when_to_when() -> None:
    tracks = two()
    assert [(track.track_id, track.label) for track in tracks] == [(1, "dog"), (2, "cat")]
    dog, cat = tracks
    assert (dog.start_s, dog.end_s, cat.start_s) == (0.0, 0.8, 0.4)
    assert (len(dog.boxes), dog.num_detected) == (5, 4)
    assert dog.score == pytest.approx(0.9)
    assert tracks.times_s == (0.0, 0.2, 0.4, 0.6, 0.8)
    assert str(tracks).splitlines() == [
        "2 objects in 5 frames of 320 x 240 pixels",
        "  id    from      to  boxes  score  label",
        "   1    0.00    0.80      5   0.90  dog",
        "   2    0.40    0.80      3   0.60  cat",
        "not found: owl",
    ]


def test_tracks_become_json() -> None:
    values = json.loads(two().to_json())
    assert values["size_wh"] == [320, 240]
    [dog, cat] = values["tracks"]
    assert dog["boxes"][3] == {
        "frame": 3,
        "time_s": pytest.approx(0.6),
        "box_xyxy": pytest.approx([6.0, 100.0, 22.0, 116.0]),
        "score": None,
        "is_interpolated": True,
    }
    assert (cat["label"], cat["start_s"], cat["end_s"]) == ("cat", 0.4, 0.8)


def test_tracks_become_mot_text() -> None:
    assert two().to_mot().splitlines() == [
        "1,1,0.00,100.00,16.00,16.00,0.9000,-1,-1,-1",
        "2,1,2.00,100.00,16.00,16.00,0.9000,-1,-1,-1",
        "3,1,4.00,100.00,16.00,16.00,0.9000,-1,-1,-1",
        "3,2,40.00,100.00,16.00,16.00,0.6000,-1,-1,-1",
        "4,1,6.00,100.00,16.00,16.00,-1,-1,-1,-1",
        "4,2,40.00,100.00,16.00,16.00,-1,-1,-1,-1",
        "5,1,8.00,100.00,16.00,16.00,0.9000,-1,-1,-1",
        "5,2,40.00,100.00,16.00,16.00,0.6000,-1,-1,-1",
    ]


def test_a_label_is_what_most_of_the_score_says() -> None:
    script: Boxes = {0: [("dog", 0, 0.9)], 1: [("cat", 0, 0.5)], 2: [("cat", 0, 0.5)]}
    [track] = Tracks.of(track_frames(Scripted(script), frames(3), "dog ; cat"))
    assert track.label == "cat"


def test_a_film_without_frames_is_told() -> None:
    with pytest.raises(OptionError, match="There are no frames"):
        Tracks.of([])
    assert len(Tracks.of(track_frames(Scripted({}), frames(2), "dog"))) == 0


def test_numbers_reach_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    frame, *_ = track_frames(Scripted({0: MOVING[0] + [("cat", 40, 0.5)]}), frames(1), "dog ; cat")
    detections = frame.objects.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.tracker_id.tolist() == [1, 2]
    plain = replace(frame.objects, objects=(box("dog", 0, 0.5),))
    assert plain.to_supervision().tracker_id is None


# Drawn films


def grey(number: int, size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (128, 128, 128))


def colored(image: Image.Image) -> tuple[float, float]:
    """The left-most and right-most columns with color, at the boxes' lower edge, below tags."""
    pixels = np.asarray(image).astype(int)[112:119]
    columns = np.flatnonzero((np.ptp(pixels, axis=2) > 60).any(axis=0))
    return float(columns[0]), float(columns[-1])


def test_every_frame_of_the_film_is_drawn_and_boxes_move_in_between(tmp_path: Path) -> None:
    clip = open_clip(film([k / 10 for k in range(12)], size=SIZE, draw=grey))
    script: Boxes = {k: [("dog", 16.0 * k, 0.9)] for k in range(3)}
    tracks = Tracks.of(track_frames(Scripted(script), frames(3, fps=2), "dog"))
    assert tracks.draw(clip, tmp_path / "out.mp4") == tmp_path / "out.mp4"
    drawn = list(open_clip(tmp_path / "out.mp4").frames())
    assert [frame.time_s for frame in drawn] == pytest.approx([k / 10 for k in range(12)])
    for frame in drawn:
        # After the last frame that was taken, the box stands still.
        left = 32 * min(frame.time_s, 1.0)
        assert colored(frame.image)[0] == pytest.approx(left, abs=2.5)


def test_each_object_has_its_own_color_all_along(tmp_path: Path) -> None:
    clip = open_clip(film([k / 5 for k in range(5)], size=SIZE, draw=grey))
    tracks = two()
    tracks.draw(clip, tmp_path / "out.mp4")
    for frame in open_clip(tmp_path / "out.mp4").frames():
        pixels = np.asarray(frame.image).astype(int)
        index = round(frame.time_s * 5)
        # Thin lines are mixed with the gray around them: orange and blue.
        red, _, blue = pixels[115, 2 * index + 5]
        assert red > blue + 40
        if index > 1:
            red, _, blue = pixels[115, 50]
            assert blue > red + 40


def test_another_film_or_name_is_refused(tmp_path: Path) -> None:
    clip = open_clip(film(size=(32, 32)))
    with pytest.raises(
        VideoError, match="The film is 32 x 32, and the tracks are of one of 320 x 240"
    ):
        two().draw(clip, tmp_path / "out.mp4")
    with pytest.raises(OptionError, match=r"ends in .mp4"):
        two().draw(clip, tmp_path / "out.gif")
    assert list(tmp_path.iterdir()) == []
