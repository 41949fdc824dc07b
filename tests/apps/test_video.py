"""`paligemma video CLIP caption|ask`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import paligemma
from paligemma.predictor import Predictor
from tests.video.clips import film
from tests.video.scripted import ScriptedModel


class Scripted(ScriptedModel):
    note = "This is a stand-in."
    trained_on = None
    video = Predictor.video


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScriptedModel:
    scripted = Scripted(lambda n: (f"a \x1b[2Jdog {'early' if n[0] < 10 else 'late'}", 0.5))
    monkeypatch.delenv("PALIGEMMA_MODEL", raising=False)
    monkeypatch.setattr(paligemma, "load", lambda *names, **options: scripted)
    return scripted


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(film())
    return path


def test_a_film_is_captioned_as_a_whole_or_every_few_seconds(run, clip, model):
    ran = run("video", clip, "caption")
    assert (ran.code, ran.out, ran.err) == (0, "a \\x1b[2Jdog early\n", "This is a stand-in.\n")
    ran = run("video", clip, "caption", "--every", "0.5s", "--quiet")
    assert ran.out == "0:00-0:01  a \\x1b[2Jdog early\n0:01-0:02  a \\x1b[2Jdog late\n"
    assert ran.err == ""


def test_the_film_may_come_after_the_command(run, clip, model):
    assert run("video", "caption", clip).out == run("video", clip, "caption").out


def test_questions_are_asked_about_a_part(run, clip, model):
    ran = run("video", clip, "ask", "What is it?", "--from", "0:01", "--every", "500ms", "--json")
    assert ran.code == 0
    [line] = [json.loads(line) for line in ran.out.splitlines()]
    assert (line["video"], line["task"], line["model"]) == (str(clip), "ask", "mini")
    assert (line["result"]["start_s"], line["result"]["end_s"]) == (1.0, 2.0)
    assert [frame["time_s"] for frame in line["result"]["frames"]] == [1.2, 1.7]
    assert model.prompts == ["answer en What is it?"] * 2
    run("video", clip, "ask", "What is it?", "--language", "")
    assert model.prompts[-1] == "What is it?"


def test_subtitles_are_written_whole(run, clip, model, tmp_path):
    names = [tmp_path / name for name in ("a.srt", "a.vtt", "a.jsonl")]
    options = [word for name in names for word in (f"--{name.suffix[1:]}", name)]
    ran = run("video", clip, "caption", "--every", "0.5", *options)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.endswith(f"written: {', '.join(map(str, names))}\n")
    srt, vtt, lines = (name.read_text() for name in names)
    assert srt.startswith("1\n00:00:00,000 --> 00:00:01,000\na \\x1b[2Jdog early\n\n2\n")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n")
    assert json.loads(lines.splitlines()[1])["text"] == "a \x1b[2Jdog late"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.jsonl", "a.srt", "a.vtt", "clip.mp4",
    ]  # fmt: skip


def test_joint_prompts_come_with_a_note(run, clip, model):
    ran = run("video", clip, "caption", "--joint", "--frames", "4")
    assert "no released checkpoint was" in ran.err
    assert model.shown == [(2, 7, 12, 17)]


def test_a_damaged_film_gives_what_can_be_read_and_exit_code_3(run, tmp_path, model):
    data = film([k / 4 for k in range(40)], movflags="faststart")
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[:-400])
    ran = run("video", path, "caption", "--every", "1")
    assert ran.code == 3
    assert "dog early" in ran.out
    assert "error: " in ran.err
    assert str(path) in ran.err


def test_what_is_wrong_is_said_before_a_model_is_loaded(run, clip, tmp_path, no_model):
    text = tmp_path / "list.mp4"
    text.write_text("ffconcat version 1.0\nfile clip.mp4\n")
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((text, "caption"), "'list.mp4' is a list of other video files (ffconcat)"),
        (("missing.mp4", "caption"), "does not exist"),
        (("https://example.org/a.mp4", "caption"), "is an address"),
        ((clip, "caption", "--every", "soon"), "'soon' is not a time"),
        ((clip, "caption", "--every", "0"), "above 0"),
        ((clip, "caption", "--from", "9"), "2.00 s long"),
        ((clip, "caption", "--from", "1", "--to", "0.5"), "later than the start"),
        ((clip, "ask", " "), "at least one word"),
        ((clip, "caption", "--srt", tmp_path), "is a folder"),
        ((clip, "caption", "--srt", tmp_path / "no" / "a.srt"), "does not exist"),
        ((clip, "caption", "--srt", "same", "--vtt", "same"), "would be written twice"),
        ((clip, "caption", "--jsonl", clip), "is the film itself"),
        ((clip, "caption", "--json", "--vtt", "a.vtt"), "--jsonl FILE"),
    ]
    for arguments, message in wrong:
        ran = run("video", *arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
        assert message in ran.err
        assert ran.err.startswith("error: ")
        assert ran.err.count("\n") == 1


def test_a_film_without_a_command_gets_the_commands(run, clip, no_model):
    for arguments in ((clip,), (clip, "captoin"), (clip, "--every", "2")):
        ran = run("video", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert "There is no command in" in ran.err
        assert "paligemma video CLIP caption, paligemma video CLIP ask QUESTION" in ran.err


def test_commands_for_images_point_to_this_one(run, clip, no_model):
    for command in (("caption", clip), ("ocr", clip), ("detect", clip, "dog")):
        ran = run(*command)
        assert ran.code == 2
        assert "looks like a video" in ran.err
        assert "paligemma video" in ran.err


def test_a_missing_extra_is_one_line(run, clip, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    ran = run("video", clip, "caption")
    assert ran.err.startswith("error: Reading videos needs the package 'av'")
    assert "pip install 'paligemma[video]'" in ran.err
