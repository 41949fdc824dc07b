"""`paligemma alt`, with a model that says what the tests tell it to."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

import paligemma
from tests.alt.scripted import ScriptedAsker


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScriptedAsker:
    """Takes the place of every model that is loaded."""
    scripted = ScriptedAsker(
        captions={"a.png": ("=a dog", 0.9), "b.png": ("a cat", 0.1)}, note="A stand-in."
    )
    monkeypatch.setattr(paligemma, "load", lambda *names, **options: scripted, raising=False)
    return scripted


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of two pages."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    (folder / "index.html").write_text("<img src=a.png>\n<img src=b.png>\n")
    (folder / "more.html").write_text("<img src=a.png alt=''>\n")
    return folder


def test_proposals_are_printed_and_no_page_changes(run, site: Path, model) -> None:
    before = (site / "index.html").read_bytes()
    ran = run("alt", site)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0] == (
        f"{site}/index.html: 2 images to describe, 0 with a good alternative text, 0 decorative"
    )
    assert lines[2].split(None, 4) == ["1", "a.png", "no", "alt", "0.90   =a dog"]
    assert "A cat (low score: below 0.3)" in lines[3]
    assert "no page changed: add --write, or --patch FILE" in ran.err
    assert (site / "index.html").read_bytes() == before


def test_pages_are_written_on_request(run, site: Path, model) -> None:
    ran = run("alt", site / "index.html", "--write", "--json", "--quiet")
    assert ran.code == 0
    assert (site / "index.html").read_text() == '<img alt="=a dog" src=a.png>\n<img src=b.png>\n'
    first, second = (json.loads(line) for line in ran.out.splitlines())
    assert (first["alt"], first["problem"], first["line"]) == ("=a dog", None, 1)
    assert second["problem"] == "low score: below 0.3"
    assert run("alt", site, "--write", "--min-score", "0", "--quiet").code == 0
    assert "A cat" in (site / "index.html").read_text()


def test_a_file_has_all_proposals(run, site: Path, model, tmp_path: Path) -> None:
    for name in ("out.csv", "out.json", "out.jsonl"):
        assert run("alt", site, "--output", tmp_path / name).out == ""
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["alt"]) for row in rows] == [
        ("a.png", "'=a dog"),
        ("b.png", "A cat"),
    ]
    listed = json.loads((tmp_path / "out.json").read_text())
    assert listed == [
        json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()
    ]
    assert listed[0]["alt"] == "=a dog"


def test_a_template_that_is_named_is_a_page(run, site: Path, model) -> None:
    page = site / "page.php"
    page.write_text("<?php if ($a > 1) { ?>\n<img src=a.png><?php } echo '<img src=a.png>' ?>")
    assert run("alt", page, "--write", "--quiet").code == 0
    assert page.read_text() == (
        """<?php if ($a > 1) { ?>\n<img alt="=a dog" src=a.png><?php } echo '<img src=a.png>' ?>"""
    )


def test_pictures_without_a_page_are_listed(run, site: Path, model, tmp_path: Path) -> None:
    (site / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    for page in site.glob("*.html"):
        page.unlink()
    ran = run("alt", site, "--output", tmp_path / "alt.csv")
    assert ran.code == 3
    assert "bad.png" in ran.err
    with (tmp_path / "alt.csv").open(newline="") as file:
        assert [row["alt"] for row in csv.DictReader(file)] == ["'=a dog", "A cat", ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.html"], "does not exist"),
        (["site", "--write", "--patch", "x.patch"], "excludes"),
        (["site", "--output", "x.txt"], "must end in one of"),
        (["site", "--patch", "none/x.patch"], "does not exist"),
        (["site/a.png", "--write"], "there is no HTML page"),
        (["site", "site/a.png"], "pages and pictures"),
        (["site", "--language", "x y"], "language"),
        (["site", "--patch", "site"], "is a folder"),
        (["site", "--patch", "site/index.html"], "is one of the pages"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    run, site: Path, no_model, monkeypatch: pytest.MonkeyPatch, arguments, message: str
) -> None:
    monkeypatch.chdir(site.parent)
    ran = run("alt", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_what_cannot_be_described_is_listed_with_exit_code_3(run, site: Path, model) -> None:
    (site / "index.html").write_text("<img src=none.png><img src=a.png>")
    ran = run("alt", site)
    assert ran.code == 3
    assert "the file none.png does not exist" in ran.out
    (site / "index.html").write_bytes(b"<html lang=xx><img src=a.png>")
    assert "language 'xx'" in run("alt", site / "index.html").err
    assert run("alt", site / "index.html").code == 2
