"""Captions and answers along a film: right times, votes, joined neighbors, bounded memory."""

from __future__ import annotations

import importlib
import json
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from paligemma import OptionError
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.errors import CheckpointError, NumericalError
from paligemma.video import Video, VideoSegment, open_clip
from paligemma.video.segment import FrameTime, merged
from paligemma.video.times import clock, parse_time, short_clock
from paligemma.video.windows import frames_of, sharpness, windows_of
from tests.video.clips import film, numbered
from tests.video.scripted import ScriptedModel

TWENTY = film()  # 2 s, a frame every 0.1 s


def video(says: Any, data: bytes = TWENTY, **options: Any) -> tuple[Video, ScriptedModel]:
    model = ScriptedModel(says)
    return Video(asker=model, clip=open_clip(data), **options), model


def number(numbers: Any) -> tuple[str, float]:
    return f"frame {numbers[0]}", 0.9


def told(segments: Any) -> list[tuple[float, float, str]]:
    return [(round(s.start_s, 3), round(s.end_s, 3), s.text) for s in segments]


def test_a_window_is_captioned_by_the_frame_in_its_middle() -> None:
    film_, model = video(number)
    assert told(film_.captions(every=0.5)) == [
        (0.0, 0.5, "frame 2"),
        (0.5, 1.0, "frame 7"),
        (1.0, 1.5, "frame 12"),
        (1.5, 2.0, "frame 17"),
    ]
    assert model.prompts == ["caption en"] * 4


def test_neighbors_that_say_the_same_become_one_segment() -> None:
    film_, _ = video(lambda n: ("A dog." if n[0] < 10 else "a cat", 0.5 if n[0] < 3 else 0.9))
    segments = list(film_.captions(every=0.5))
    assert told(segments) == [(0.0, 1.0, "A dog."), (1.0, 2.0, "a cat")]
    assert segments[0].score == pytest.approx(0.7)
    assert [frame.time_s for frame in segments[0].frames] == [0.2, 0.7]
    apart = list(film_.captions(every=0.5, merge=False))
    assert len(apart) == 4
    assert list(merged(apart)) == segments


def test_frames_of_a_window_vote_by_their_scores() -> None:
    said = {1: ("yes", 0.4), 3: ("no", 0.6), 6: ("Yes", 0.5), 8: ("yes.", 0.1)}
    film_, model = video(lambda n: said.get(n[0], ("no", 0.3)))
    segment = next(film_.answers("Is it?", every=1.0, frames=4, language="en", merge=False))
    assert segment.text == "Yes", "the surest of those that won"
    assert segment.score == pytest.approx((0.4 + 0.5 + 0.1) / 4)
    assert segment.question == "Is it?"
    assert model.prompts[0] == "answer en Is it?"
    assert [frame.time_s for frame in segment.frames] == [0.1, 0.3, 0.6, 0.8]


def test_a_whole_film_is_judged_by_sixteen_frames() -> None:
    film_, model = video(lambda n: ("early" if n[0] < 12 else "late", 0.8))
    assert told([film_.caption()]) == [(0.0, 2.0, "early")]
    assert len(model.shown) == 16
    assert film_.ask("When?").frames == film_.caption().frames


def test_a_film_with_fewer_frames_than_asked_for_shows_each_once() -> None:
    film_, model = video(number, film([0.0, 1.0, 2.0]))
    assert len(film_.caption().frames) == 3
    assert model.shown == [(0,), (1,), (2,)]


def test_joint_prompts_have_all_frames_in_order_and_say_what_they_need() -> None:
    film_, model = video(lambda n: (f"{len(n)} frames", 0.9))
    segment = film_.caption(joint=True)
    assert segment.text == "16 frames"
    assert model.shown == [(0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 18, 19)]
    assert any("no released checkpoint" in note for note in segment.notes)
    by_window = list(film_.captions(every=1.0, joint=True, frames=2, merge=False))
    assert [len(s.frames) for s in by_window] == [2, 2]
    trained = Video(asker=model, clip=film_.clip, trained_frames=16)
    assert trained.caption(joint=True).notes == ()


def test_a_part_of_a_film_has_the_times_of_the_film() -> None:
    film_, _ = video(number, start_s=0.5, end_s=1.2)
    assert told(film_.captions(every=0.5)) == [(0.5, 1.0, "frame 7"), (1.0, 1.2, "frame 11")]
    with pytest.raises(OptionError, match=r"2\.00 s long"):
        video(number, start_s=5.0)
    with pytest.raises(OptionError, match="later than the start"):
        video(number, start_s=1.0, end_s=0.5)


def test_a_cut_film_gives_the_captions_before_the_cut() -> None:
    def noise(number: int, size: tuple[int, int]) -> Image.Image:
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3))
        return Image.fromarray(pixels.astype(np.uint8))

    data = film([k / 4 for k in range(40)], movflags="faststart", size=(96, 64), draw=noise)
    film_, _ = video(lambda n: ("noise", 0.5), data[: len(data) // 2])
    segments = list(film_.captions(every=1.0, merge=False))
    assert 2 <= len(segments) <= 8
    assert film_.problems
    assert film_.clip.is_damaged


def test_memory_does_not_grow_with_the_film(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more frames are alive than a few batches have, and none is decoded before its turn."""
    module: Any = importlib.import_module("paligemma.video.clip")
    made_images: list[weakref.ref[Any]] = []
    made = module.upright

    def counted(frame: Any) -> Any:
        image, is_upright = made(frame)
        made_images.append(weakref.ref(image))
        return image, is_upright

    monkeypatch.setattr(module, "upright", counted)
    data = film([k / 4 for k in range(200)], size=(32, 32), draw=lambda n, s: numbered(n % 25, s))
    film_, model = video(lambda n: ("x", 0.5), data)
    most = 0
    segments = film_.captions(every=0.5, merge=False)
    next(segments)
    assert model.num_taken == 4
    for _ in segments:
        most = max(most, sum(image() is not None for image in made_images))
    assert model.num_taken == 100
    assert most <= 8


def test_large_frames_are_made_smaller_for_the_model_and_keep_twice_its_size() -> None:
    data = film([0.0, 0.1], size=(400, 300), codec="mpeg4")
    model = ScriptedModel(number, resolution=32)
    Video(asker=model, clip=open_clip(data)).caption()
    assert set(model.sizes) == {(100, 75)}


def test_an_error_of_the_model_is_raised_when_it_comes() -> None:
    film_, _ = video(lambda n: NumericalError.of_model() if n[0] > 10 else ("fine", 0.5))
    segments = film_.captions(every=0.5, merge=False)
    assert next(segments).text == "fine"
    assert next(segments).text == "fine"
    with pytest.raises(NumericalError):
        next(segments)


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": float("nan")}, {"every": 1e-9}, {"frames": 0}]
)
def test_what_cannot_be_asked_is_said_before_the_model_works(options: dict[str, Any]) -> None:
    film_, model = video(number)
    with pytest.raises(OptionError):
        film_.captions(**options)
    assert model.num_taken == 0


def test_the_sharpest_of_several_frames_can_stand_for_a_window() -> None:
    def draw(number: int, size: tuple[int, int]) -> Image.Image:
        checks = np.indices((size[1], size[0])).sum(0) // 4 % 2 * 200
        image = Image.fromarray(checks.astype(np.uint8)).convert("RGB")
        return image if number in (3, 11) else image.filter(ImageFilter.GaussianBlur(4))

    clip = open_clip(film(draw=draw))
    found = list(frames_of(clip, windows_of(0.0, 2.0, 1.0), 1, "sharpest"))
    assert [round(frames[0].time_s, 3) for _, frames in found] == [0.3, 1.1]
    assert sharpness(Image.new("RGB", (1, 1))) == 0.0


def test_windows_cover_the_film_without_gaps() -> None:
    for length, every in ((10.0, 5.0), (10.9, 5.0), (11.0, 5.0), (0.3, 5.0), (1.0, 0.1)):
        windows = windows_of(2.0, 2.0 + length, every)
        assert windows[0].start_s == 2.0
        assert windows[-1].end_s == 2.0 + length
        assert all(a.end_s == b.start_s for a, b in pairwise(windows))
        assert all(w.end_s - w.start_s < 1.2 * every + 1e-9 for w in windows)
    assert len(windows_of(0.0, 1.0, 0.1)) == 10


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("2.5s", 2.5), ("500 ms", 0.5), ("2m", 120.0), ("1h", 3600.0),
     ("0:10", 10.0), ("90:00", 5400.0), ("1:02:03.5", 3723.5)],
)  # fmt: skip
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "1:75", "1:60:00", "5 parsecs", "1e3", "٣"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is not a time"):
        parse_time(text)


def test_times_are_printed_to_the_millisecond_and_never_as_sixty_seconds() -> None:
    assert clock(3599.9996) == "01:00:00.000"
    assert clock(360000.0, ",") == "100:00:00,000"
    assert short_clock(59.96) == "1:00"
    assert short_clock(3661.25) == "1:01:01.3"


def test_a_segment_as_json_has_its_frames_and_nothing_empty() -> None:
    segment = VideoSegment(
        start_s=0.0, end_s=5.0, text="a cat", score=0.5, frames=(FrameTime(0, 2.5),)
    )
    assert json.loads(segment.to_json()) == {
        "start_s": 0.0,
        "end_s": 5.0,
        "text": "a cat",
        "score": 0.5,
        "frames": [{"index": 0, "time_s": 2.5}],
    }
    assert str(segment) == "0:00-0:05  a cat"


def test_a_checkpoint_says_how_many_images_a_prompt_had_in_its_training(tmp_path: Any) -> None:
    (tmp_path / "trained_on.json").write_bytes(TrainedOn(num_images=16).to_bytes())
    read = TrainedOn.read(tmp_path)
    assert read is not None
    assert read.num_images == 16
    (tmp_path / "trained_on.json").write_text('{"num_images": "many"}')
    with pytest.raises(CheckpointError, match="num_images"):
        TrainedOn.read(tmp_path)
