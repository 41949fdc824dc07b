"""`python -m mini.scene` and `python -m mini.evaluate`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mini import evaluate, scene, scene_files


def truth_in(folder: Path) -> dict:
    return json.loads((folder / "truth.json").read_text(encoding="utf-8"))


def draw(*arguments: object) -> None:
    scene_files.main([str(argument) for argument in arguments])


def test_scenes_are_written_with_their_truth(tmp_path):
    out = tmp_path / "new" / "folder"
    draw("--seed", 3, "--count", 2, "--out", out)
    names = ["scene_0000.png", "scene_0001.png", "truth.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    truth = truth_in(out)
    assert (truth["seed"], truth["split"], truth["resolution"]) == (3, "test", 384)
    for drawn, name in zip(truth["scenes"], names, strict=False):
        assert drawn["image"] == name
        assert drawn["captions"].keys() == {"en", "de", "fr", "es", "it", "pt"}
        assert sum(drawn["counts"].values()) == len(drawn["objects"])
        assert all(pair["prompt"].startswith("answer ") for pair in drawn["questions"])
        for thing in drawn["objects"]:
            assert thing["mask"]["size"] == [384, 384]
        with Image.open(out / name) as image:
            assert image.size == (384, 384)


def test_the_same_seed_gives_the_same_files(tmp_path):
    for folder in ("a", "b"):
        draw("--count", 2, "--out", tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    draw("--count", 1, "--out", tmp_path)
    draw("--count", 1, "--seed", 8, "--out", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert truth_in(tmp_path)["seed"] == 8


def test_nothing_is_written_when_something_fails(tmp_path, monkeypatch):
    draw("--count", 1, "--out", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make = scene.make_scene

    def fail_at_one(split: scene.Split, seed: int, index: int) -> scene.Scene:
        if index == 1:
            raise MemoryError
        return make(split, seed, index)

    monkeypatch.setattr(scene, "make_scene", fail_at_one)
    with pytest.raises(MemoryError):
        draw("--count", 2, "--seed", 8, "--out", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "file"], "Cannot write to the folder"),
        (["--out", ".", "--count", "0"], "from 1"),
    ],
)
def test_wrong_options_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit, match="2"):
        draw(*arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("module", ["mini.scene", "mini.evaluate", "mini.train"])
def test_the_commands_start(module):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", module, "--help"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert f"python -m {module}" in ran.stdout


@pytest.mark.slow
def test_mini_is_measured(capsys):
    evaluate.main(["--scenes", "10", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert {"map50", "caption_exact", "ocr_exact", "mask_iou"} <= report.keys()


def test_scores_are_shown_as_a_table_or_as_json(capsys, monkeypatch):
    def measure(predictor, scenes, seed, on_progress):
        on_progress(scenes, scenes)
        return {"seed": seed, "map50": 0.8125, "caption_exact": {"de": 1.0}, "records": [{}]}

    monkeypatch.setattr(evaluate, "load", lambda model, **options: None)
    monkeypatch.setattr(evaluate, "evaluate", measure)
    evaluate.main(["--seed", "5", "--json"])
    assert json.loads(capsys.readouterr().out)["seed"] == 5
    evaluate.main([])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["map50", "0.812"] in rows
    assert ["caption_exact", "de", "1.000"] in rows
    assert not any("records" in row for row in rows)
