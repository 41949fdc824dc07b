"""`paligemma batch`."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma.cli import batch as command
from tests.apps.conftest import Run
from tests.batch.test_job import SCRIPTED, make_images


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs have a worker whose answers are known."""
    make: Callable[..., Any] = command._job

    def with_scripted_worker(*arguments: Any) -> Any:
        return replace(make(*arguments), worker=SCRIPTED, model={"model": "scripted"})

    monkeypatch.setattr(command, "_job", with_scripted_worker)


def test_a_job_with_mini_writes_texts_next_to_the_images(run: Run, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20), (0, 0, 200)).save(tmp_path / name)
    out = tmp_path / "out"
    ran = run("batch", tmp_path, "caption", "--out", out, "--sidecar", "txt", "-n", 4)
    assert ran.code == 0, ran.err
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b.txt").read_text() != "\n"
    assert "2 images: 0 done, 0 failed, 2 to do" in ran.err
    assert "2 of 2 images, " in ran.err
    assert "images/s" in ran.err


def test_rows_of_a_table_ask_mini_and_what_it_does_not_use_is_told(
    run: Run, tmp_path: Path
) -> None:
    Image.new("RGB", (30, 20), (0, 0, 200)).save(tmp_path / "a.png")
    table, out = tmp_path / "rows.jsonl", tmp_path / "out"
    questions = ("how many frogs are there?", "what color is it?")
    rows = [{"image": "a.png", "question": question, "split": 1} for question in questions]
    table.write_text("\n".join(map(json.dumps, rows)))
    words = ("batch", table, "ask", "--out", out, "-n", 4)
    ran = run(*words)
    assert ran.code == 0, ran.err
    assert "not use: 'split'" in ran.err
    assert "2 images" in ran.err
    found = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(f["question"], f["result"]["question"]) for f in found] == [(q, q) for q in questions]
    ran = run("batch", table, "ocr", "--out", tmp_path / "texts")
    assert ran.code == 2
    assert "line 2" in ran.err.lower()
    ran = run("batch", table, "ask", "why?", "--out", tmp_path / "other")
    assert ran.code == 2
    assert "'how many frogs are there?', and the task has 'why?'" in ran.err


@pytest.mark.usefixtures("scripted")
def test_failed_images_are_listed_and_end_with_code_3(run: Run, tmp_path: Path) -> None:
    make_images(tmp_path / "in", 5)
    (tmp_path / "in" / "002.jpg").write_bytes(b"bad")
    words = ("batch", tmp_path / "in", "read", "--out", tmp_path / "out", "--to", "csv")
    ran = run(*words, "--batch-size", 2, "--json")
    assert ran.code == 3
    assert "error: 002.jpg: bad" in ran.err
    assert json.loads(ran.out) == {
        "done": 4, "failed": {"002.jpg": "bad"}, "left": 0,
        "files": [str(tmp_path / "out" / "results.csv")],
    }  # fmt: skip
    shown = run("batch", "status", tmp_path / "out")
    assert shown.code == 0
    assert shown.out.splitlines()[0] == "5 images: 4 done, 1 failed, 0 left"
    assert "failed: 002.jpg: bad" in shown.out
    status = json.loads(run("batch", "status", tmp_path / "out", "--json").out)
    assert (status["total"], status["running"], status["left"]) == (5, 0, 0)
    (tmp_path / "in" / "002.jpg").write_bytes(b"good")
    again = run(*words, "--quiet")
    assert (again.code, again.out, again.err) == (0, "", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_while_nothing_is_done_a_line_now_and_then_says_so(
    quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_SECONDS_BETWEEN_LINES", 0.05)
    with command._Shown(command.BatchCommandOptions(quiet=quiet)).running(1, 12):
        time.sleep(0.3)
    said = capsys.readouterr().err
    assert ("1 of 12 images, 11 left; running for 0." in said) is not quiet
    assert bool(said) is not quiet


@pytest.mark.usefixtures("scripted")
def test_a_job_in_which_every_image_failed_ends_with_code_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"bad")
    assert run("batch", tmp_path / "a.jpg", "read", "--out", tmp_path / "out").code == 2


@pytest.mark.usefixtures("scripted")
def test_a_dry_run_counts_measures_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    make_images(tmp_path / "in", 3)
    ran = run("batch", tmp_path / "in", "read", "--out", tmp_path / "out", "--dry-run")
    assert ran.code == 0
    assert "3 images: 0 done, 0 failed, 3 to do" in ran.err
    assert ran.out.startswith("about ")
    assert "for 3 images at " in ran.out
    assert not (tmp_path / "out").exists()


def test_wrong_usage_is_told_before_the_model_is_loaded(run: Run, tmp_path: Path) -> None:
    make_images(tmp_path / "in", 1)
    folder, out = tmp_path / "in", ("--out", tmp_path / "out")
    for words, told in (
        ((folder, "sing", *out), "There is no task at the end"),
        ((folder, "ask", *out), "ask needs a question"),
        ((folder, "caption"), "add --out FOLDER"),
        ((folder, "caption", *out, "--shard", "3"), "such as 3/16"),
        ((folder, "caption", *out, "--shard", "4/3"), "from 1 to 3"),
        ((folder, "caption", *out, "--check", "never"), "check is 'never'"),
        ((folder, "caption", *out, "--to", "coco"), "--to coco is for the objects"),
        ((folder, "extract", *out, "--schema", "my.py:Invoice"), "takes no Python files"),
        ((folder, "extract", *out), "extract needs a schema"),
        ((folder, "caption", *out, "--schema", "form"), "caption takes no schema"),
        ((folder, "caption", "a cat", *out), "caption takes no text, but got 'a cat'"),
        (("status", folder), "not the folder of a job"),
        ((tmp_path / "nothing", "caption", *out), "does not exist"),
    ):
        ran = run("batch", *words)
        assert ran.code == 2, words
        assert told in ran.err
    assert not (tmp_path / "out").exists()


def test_the_text_of_a_task_is_the_last_word() -> None:
    assert command._split(["a", "detect", "cat ; dog"]) == (["a"], "detect", "cat ; dog")
    assert command._split(["a", "b", "ocr"]) == (["a", "b"], "ocr", None)
    assert command._split(["ask", "caption"]) == (["ask"], "caption", None)
    assert command._split(["a", "ask", "caption"]) == (["a"], "ask", "caption")


def test_the_first_interrupt_asks_to_stop_and_the_second_stops(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with command._asking_to_stop() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "press Ctrl-C again" in capsys.readouterr().err


@pytest.mark.usefixtures("scripted")
def test_a_stopped_job_says_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(tmp_path / "in", 12)
    report = command._Shown.report

    def interrupted(self: Any, progress: Any) -> None:
        report(self, progress)
        if progress.finished <= 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command._Shown, "report", interrupted)
    words = ("batch", tmp_path / "in", "read", "--out", tmp_path / "out", "--batch-size", 2)
    ran = run(*words)
    assert ran.code == 130
    assert "8 done, 0 failed, 4 left" in ran.err
    assert "The same command goes on." in ran.err
    assert run(*words).code == 0
