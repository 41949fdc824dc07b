"""`paligemma data check`: what a person sees of a data set, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.annotated import coco, jsonl
from tests.server.page.browser import PHONE, chromium


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mini_folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PALIGEMMA_MODEL", raising=False)


def boxes() -> list[dict[str, Any]]:
    return [
        {"image_id": 1, "category_id": 1, "bbox": [5, 3, 10, 4]},
        {"image_id": 2, "category_id": 2, "bbox": [15, 3, 10, 8]},
    ]


def test_good_data_end_well_with_a_page(run, tmp_path):
    ran = run("data", "check", coco(tmp_path / "set", boxes()))
    assert ran.code == 0
    assert "coco, 2 images and 2 annotations" in ran.out
    assert "box IoU after encoding as tokens" in ran.out
    assert "data-check.html" in ran.err
    page = (tmp_path / "data-check.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2
    assert "&lt;loc" in page


def test_rows_that_teach_nothing_end_badly(run, tmp_path):
    path = jsonl(tmp_path / "set", [{"prefix": "caption en", "suffix": s} for s in ("a", "b")])
    ran = run("data", "check", path, "--max-tokens", 100, "--out", tmp_path / "page.html")
    assert ran.code == 2
    assert "no token that counts in the loss" in ran.err
    assert "error: 2 of 2 records have no token" in ran.out
    assert (tmp_path / "page.html").is_file()


def test_all_faults_are_shown_at_once(run, tmp_path):
    path = jsonl(
        tmp_path / "set",
        [{"prefix": "caption en", "suffix": s} for s in ("a cat", "", "a dog", "an owl")],
    )
    (tmp_path / "set" / "0.png").write_bytes(b"no picture")
    ran = run("data", "check", path)
    assert ran.code == 2
    assert "The data set has 2 errors" in ran.err
    assert "empty suffix" in ran.out
    assert "unknown format" in ran.out


def test_json_is_one_object_and_nothing_else(run, tmp_path):
    ran = run("data", "check", coco(tmp_path / "set", boxes()), "--json")
    report = json.loads(ran.out)
    assert ran.code == 0
    assert report["class_counts"] == [["cat", 1], ["dog", 1]]
    assert report["round_trip"]["num_boxes"] == 2
    assert len(report["rows"]) == 2


def test_the_first_batch_is_the_one_that_training_sees_first(run, tmp_path):
    lines = [{"prefix": "caption en", "suffix": f"number {i}", "id": f"r{i}"} for i in range(9)]
    path = jsonl(tmp_path / "set", lines)
    pages = []
    for seed in (0, 0, 1):
        assert run("data", "check", path, "--batch-size", 2, "--seed", seed).code == 0
        pages.append((tmp_path / "data-check.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1] != pages[2]
    assert pages[0].count("<img ") == 2


def test_a_noise_token_that_the_model_lacks_is_one_clear_error(run, tmp_path):
    path = coco(tmp_path / "set", boxes())
    ran = run("data", "check", path, "--max-objects", 5, "--noise-token", "<nothing>")
    assert ran.code == 2
    assert "must be a single token that no text uses" in ran.err


def test_data_that_are_not_there_are_one_line(run, tmp_path):
    ran = run("data", "check", tmp_path / "nowhere")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1


def test_a_page_that_cannot_be_written_is_said(run, tmp_path):
    path = coco(tmp_path / "set", boxes())
    ran = run("data", "check", path, "--out", tmp_path / "none" / "page.html")
    assert ran.code == 2
    assert f"The folder {tmp_path / 'none'} for page.html does not exist." in ran.err


def test_the_page_fits_a_telephone(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("data", "check", coco(tmp_path / "set", boxes()))
    with chromium() as browser:
        page = browser.new_page(viewport=PHONE, is_mobile=True)
        page.goto((tmp_path / "data-check.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
