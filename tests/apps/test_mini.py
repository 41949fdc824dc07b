"""`paligemma mini`: pictures with their truth, and the built-in model's scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import paligemma
from mini import evaluate, scene
from paligemma.cli import console


def truth_in(folder: Path) -> dict:
    return json.loads((folder / "truth.json").read_text(encoding="utf-8"))


def test_scenes_are_written_with_their_truth(run, tmp_path):
    out = tmp_path / "new" / "folder"
    ran = run("mini", "scene", "--seed", "3", "--count", "2", "--out", out)
    assert ran.code == 0
    names = ["scene_0000.png", "scene_0001.png", "truth.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    truth = truth_in(out)
    assert (truth["seed"], truth["split"], truth["resolution"]) == (3, "test", 384)
    for one, name in zip(truth["scenes"], names, strict=False):
        assert one["image"] == name
        assert one["captions"].keys() == {"en", "de", "fr", "es", "it", "pt"}
        assert sum(one["counts"].values()) == len(one["objects"])
        assert all(pair["prompt"].startswith("answer ") for pair in one["questions"])
        for found in one["objects"]:
            assert found["mask"]["size"] == [384, 384]
        with Image.open(out / name) as picture:
            assert picture.size == (384, 384)


def test_the_same_seed_gives_the_same_files(run, tmp_path):
    for folder in ("a", "b"):
        run("mini", "scene", "--count", "2", "--out", tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_other_files_in_the_folder_are_left_alone(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run("mini", "scene", "--count", "1", "--out", tmp_path)
    run("mini", "scene", "--count", "1", "--seed", "8", "--out", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert truth_in(tmp_path)["seed"] == 8


def test_nothing_is_written_when_something_fails(run, tmp_path, monkeypatch):
    run("mini", "scene", "--count", "1", "--out", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make = scene.make_scene

    def fail_at_one(split: scene.Split, seed: int, index: int) -> scene.Scene:
        if index == 1:
            raise MemoryError
        return make(split, seed, index)

    monkeypatch.setattr(scene, "make_scene", fail_at_one)
    assert run("mini", "scene", "--count", "2", "--seed", "8", "--out", tmp_path).code == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_place_that_is_no_folder_is_refused(run, tmp_path):
    (tmp_path / "file").touch()
    ran = run("mini", "scene", "--out", tmp_path / "file")
    assert ran.code == 2
    assert ran.err.startswith("error: The folder ")


@pytest.mark.slow
def test_mini_is_measured(run, mini_folder):
    report = json.loads(run("mini", "eval", "--scenes", "10", "--json").out)
    assert {"map50", "caption_exact", "ocr_exact", "mask_iou"} <= report.keys()


def test_scores_are_shown_as_a_table_or_as_json(run, monkeypatch):
    def measure(predictor, scenes, seed, on_progress):
        on_progress(scenes, scenes)
        return {"seed": seed, "map50": 0.8125, "caption_exact": {"de": 1.0}, "records": [{}]}

    monkeypatch.setattr(paligemma, "load", lambda model, **options: None, raising=False)
    monkeypatch.setattr(evaluate, "evaluate", measure)
    assert json.loads(run("mini", "eval", "--seed", "5", "--json").out)["seed"] == 5
    rows = [line.split() for line in run("mini", "eval").out.splitlines()]
    assert ["map50", "0.812"] in rows
    assert ["caption_exact", "de", "1.000"] in rows
    assert not any("records" in row for row in rows)


@pytest.mark.parametrize("words", [("mini", "scene", "--out", "x"), ("mini", "eval")])
def test_without_the_repository_the_error_says_what_to_do(run, monkeypatch, words):
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    ran = run(*words)
    assert ran.code == 2
    assert "pip install -e ." in " ".join(ran.err.split())
