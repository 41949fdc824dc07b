"""`paligemma video CLIP track`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import paligemma
from paligemma import Detection, Detections
from paligemma.predictor import Predictor
from paligemma.video import open_clip
from tests.video.clips import film

SIZE = (320, 240)


class Model:
    """Finds a dog that moves 20 pixels a second, of whatever it is asked for."""

    note = None
    trained_on = None
    processor = SimpleNamespace(resolution=224)
    video = Predictor.video

    def __init__(self) -> None:
        self.phrases: list[tuple[str, ...]] = []

    def answer(self, queries, batch_size=None, num_beams=1):
        for query in queries:
            [image] = query.images
            task = query.query.task
            self.phrases.append(task.phrases)
            time_s = float(image.name.split()[-2])
            x = 40 + 20 * time_s
            dog = Detection(
                label="dog",
                box_xyxy=(x, 100.0, x + 60, 160.0),
                box_normalized_xyxy=(x / 320, 100 / 240, (x + 60) / 320, 160 / 240),
                score=0.8,
                existence_score=0.8,
                label_score=1.0,
                coordinate_score=1.0,
            )
            yield Detections(
                objects=(dog,),
                prompt=task.prompt(),
                phrases=task.phrases,
                problems=(),
                size_wh=image.size_wh,
                stop_reason="eos",
                text="",
            )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    stand_in = Model()
    monkeypatch.delenv("PALIGEMMA_MODEL", raising=False)
    monkeypatch.setattr(paligemma, "load", lambda *names, **options: stand_in)
    return stand_in


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(film(size=SIZE))
    return path


def test_tracks_are_printed_as_a_table(run, clip, model):
    ran = run("video", clip, "track", "dog ; cat")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "1 object in 10 frames of 320 x 240 pixels",
        "  id    from      to  boxes  score  label",
        "   1    0.00    1.80     10   0.80  dog",
        "not found: cat",
    ]
    assert model.phrases == [("dog", "cat")] * 10
    assert run("video", "track", clip, "dog ; cat").out == ran.out


def test_tracks_are_written_as_json_and_mot_text(run, clip, model, tmp_path):
    ran = run("video", clip, "track", "dog", "--fps", "2", "--out", tmp_path / "t.json")
    assert (ran.code, ran.out, ran.err) == (0, "", f"written: {tmp_path / 't.json'}\n")
    values = json.loads((tmp_path / "t.json").read_text())
    assert (values["video"], values["model"], values["task"]) == (str(clip), "mini", "track")
    [track] = values["result"]["tracks"]
    assert [box["time_s"] for box in track["boxes"]] == pytest.approx([0.0, 0.5, 1.0, 1.5])
    for name, options in (("t.txt", ()), ("t.mot", ("--format", "mot"))):
        run("video", clip, "track", "dog", "--fps", "2", "--out", tmp_path / name, *options)
        lines = (tmp_path / name).read_text().splitlines()
        assert lines[1] == "2,1,50.00,100.00,60.00,60.00,0.8000,-1,-1,-1"


def test_frames_are_printed_as_they_come(run, clip, model):
    ran = run("video", clip, "track", "dog", "--from", "1", "--detect-every", "2", "--json")
    lines = [json.loads(line)["result"] for line in ran.out.splitlines()]
    assert [line["time_s"] for line in lines] == pytest.approx([1.0, 1.2, 1.4, 1.6, 1.8])
    assert [line["is_detected"] for line in lines] == [True, False, True, False, True]
    [dog] = lines[1]["objects"]["objects"]
    assert (dog["track_id"], dog["is_interpolated"], dog["score"]) == (1, True, None)
    assert dog["box_xyxy"][0] == pytest.approx(64)


def test_a_drawn_film_is_written(run, clip, model, tmp_path):
    ran = run("video", clip, "track", "dog", "--draw", tmp_path / "drawn.mp4", "--quiet")
    assert ran.code == 0
    assert len(list(open_clip(tmp_path / "drawn.mp4").frames())) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "drawn.mp4"]
    part = ("--from", "0.5", "--to", "1.2", "--fps", "2")
    run("video", clip, "track", "dog", "--draw", tmp_path / "drawn.mp4", *part)
    times = [frame.time_s for frame in open_clip(tmp_path / "drawn.mp4").frames()]
    assert times == pytest.approx([k / 10 for k in range(7)])


def test_boxes_below_the_minimum_score_are_left_out(run, clip, model):
    assert "0 objects in 10 frames" in run("video", clip, "track", "dog", "--min-score", "0.9").out


def test_a_damaged_film_gives_what_can_be_read_and_exit_code_3(run, tmp_path, model):
    data = film([k / 4 for k in range(40)], size=SIZE, movflags="faststart")
    (tmp_path / "cut.mp4").write_bytes(data[:-400])
    ran = run("video", tmp_path / "cut.mp4", "track", "dog", "--fps", "1")
    assert ran.code == 3
    assert "1 object" in ran.out
    assert "error: " in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dog", "--out", "t.gif"), "a .json file, or to a .txt file for MOT"),
        (("dog", "--out", "no/t.json"), "The folder no for t.json does not exist"),
        (("dog", "--format", "mot"), "--format mot needs --out FILE"),
        (("dog", "--draw", "d.avi"), "ends in .mp4"),
        (("dog", "--fps", "0"), "--fps is 0; it must be above 0"),
        (("dog", "--from", "9"), "the video is 2.00 s long"),
        ((" ; ",), "phrases"),
    ],
)
def test_wrong_usage_is_told_before_a_model_is_loaded(
    words, message, run, clip, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paligemma, "load", lambda *names, **options: pytest.fail("loaded"))
    ran = run("video", clip, "track", *words)
    assert (ran.code, ran.out) == (2, "")
    assert message in " ".join(ran.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_film_itself_is_not_overwritten(run, clip, model):
    ran = run("video", clip, "track", "dog", "--draw", clip)
    assert ran.code == 2
    assert "is the film itself" in ran.err
