"""The questions are true of their scenes, and answers are counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import questions
from mini.scene import make_scene


def test_every_kind_of_question_is_asked_about_some_scene() -> None:
    asked = {
        name for i in range(20) for name, _, _ in questions._questions(make_scene("test", 1, i))
    }
    assert len(asked) == 6


def test_right_answers_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["questions", "--scenes", "2", "--out", str(out)])
    questions.main()
    report = json.loads(out.read_text())
    expected = [
        name for i in range(2) for name, _, _ in questions._questions(make_scene("test", 1007, i))
    ]
    assert sum(report["asked"].values()) == len(expected)
    assert 0.8 * report["asked"]["is there a dog?"] <= report["right"]["is there a dog?"]
    assert report["right"].keys() <= report["asked"].keys()
    assert "is there a dog?" in capsys.readouterr().out
