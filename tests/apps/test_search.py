"""`paligemma index` and `paligemma search`, with a model that says what the tests tell it to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import paligemma
from tests.alt.scripted import ScriptedAsker
from tests.search.test_search import Sayer


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScriptedAsker:
    """Takes the place of every model that is loaded."""
    scripted = ScriptedAsker(captions={"a.png": ("a red \x1b[2J car", 0.9), "b.png": ("red", 0.9)})
    monkeypatch.setattr(paligemma, "load", lambda *names, **options: scripted, raising=False)
    return scripted


@pytest.fixture
def index(run, model, tmp_path: Path) -> Path:
    """An index of two pictures."""
    for name in ("a", "b"):
        path = tmp_path / "pictures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    ran = run("index", tmp_path / "pictures", "--out", tmp_path / "i.db")
    assert (ran.code, ran.out) == (0, "")
    assert "2 pictures; 2 pictures read now, 0 taken out" in ran.err
    return tmp_path / "i.db"


def test_what_was_found_is_printed_with_the_words(run, index: Path, no_model) -> None:
    ran = run("search", index, "the car")
    assert (ran.code, ran.err) == (0, "not looked for: the\n")
    assert ran.out == f"{index.parent}/pictures/a.png\n    caption: a red \\x1b[2J [car]\n"
    ran = run("search", index, "car", "--json", "--quiet")
    [hit] = (json.loads(line) for line in ran.out.splitlines())
    assert hit["matches"][0]["word"] == "car"
    ran = run("search", index, "blue")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "nothing found among 2 pictures\n"
    assert run("search", index, "red", "--count", "1", "--quiet").out.count("caption") == 1


def test_the_model_orders_on_request(run, index: Path, monkeypatch) -> None:
    model = Sayer({"a.png": 0.95, "b.png": 0.7})
    monkeypatch.setattr(paligemma, "load", lambda *names, **options: model, raising=False)
    out = run("search", index, "red", "--rerank", "--count", "1").out
    assert out.startswith(f"0.95  {index.parent}/pictures/a.png")
    assert len(model.asked) == 2


def test_what_is_wrong_is_said_in_one_line(run, index: Path, no_model, tmp_path: Path) -> None:
    for arguments in (
        ["search", index, ""],
        ["search", index, "?!"],
        ["search", tmp_path / "none.db", "car"],
        ["search", tmp_path / "pictures" / "a.png", "car"],
        ["index", tmp_path / "none", "--out", tmp_path / "x.db"],
        ["index", tmp_path / "pictures", "--out", tmp_path],
        ["index", tmp_path / "pictures", "--language", "x y"],
        ["index", tmp_path / "pictures", "--out", tmp_path / "no" / "x.db"],
    ):
        ran = run(*arguments)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), arguments


def test_a_picture_that_cannot_be_read_gives_exit_code_3(run, index: Path) -> None:
    (index.parent / "pictures" / "c.png").write_bytes(b"")
    ran = run("index", index.parent / "pictures", "--out", index)
    assert ran.code == 3
    assert "error: c.png: " in ran.err
