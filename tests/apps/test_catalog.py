"""`paligemma catalog`, with a model that knows what the tests tell it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import paligemma
from tests.catalog.scripted import Seer, draw
from tests.catalog.test_catalog import SAID, SCHEMA


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    """A file with the schema, and two photos in `photos`."""
    draw(tmp_path / "photos" / "a.png", "red")
    draw(tmp_path / "photos" / "b.png", "green")
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


@pytest.fixture
def seer(monkeypatch: pytest.MonkeyPatch) -> Seer:
    """Takes the place of every model that is loaded."""
    model = Seer(SAID)
    monkeypatch.setattr(paligemma, "load", lambda *names, **options: model, raising=False)
    return model


def test_a_folder_becomes_a_table(run, schema: Path, seer: Seer, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    ran = run("catalog", tmp_path / "photos", "--schema", schema, "--out", out)
    assert (ran.code, ran.out) == (0, "")
    assert "2 articles, 2 photos read now. Cells filled: kind 1, print 2" in ran.err
    assert out.read_text().splitlines()[1].startswith("a,1,hat,0.75,'=SUM(A1),0.9,2,0.95,")
    ran = run("catalog", tmp_path / "photos", "-s", schema, "-o", out, "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert [json.loads(line)["article"] for line in ran.out.splitlines()] == ["a", "b"]
    (tmp_path / "photos" / "c.png").write_bytes(b"")
    ran = run("catalog", tmp_path / "photos", "-s", schema, "-o", out)
    assert ran.code == 3
    assert "error: c.png: " in ran.err


def test_questions_are_shown_without_a_model(run, schema: Path, no_model, tmp_path: Path) -> None:
    ran = run("catalog", tmp_path, "--schema", "product", "--out", "x.csv", "--dry-run")
    assert ran.code == 0
    assert "category    answer en What kind of product is this?" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "--schema", "product", "--out", "x.csv"], "is not a folder"),
        (["photos", "--schema", "product", "--out", "x.xls"], "must end in"),
        (["photos", "--schema", "receipt", "--out", "x.csv"], "does not fit into a row"),
        (["photos", "--schema", "none.json", "--out", "x.csv"], "cannot be opened"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    run, schema: Path, no_model, monkeypatch, arguments, message: str
) -> None:
    monkeypatch.chdir(schema.parent)
    ran = run("catalog", *arguments)
    assert ran.code == 2
    assert message in ran.err
