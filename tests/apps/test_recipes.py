"""`paligemma recipes`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.apps.conftest import Run


def test_all_recipes_are_listed(run: Run) -> None:
    ran = run("recipes")
    assert ran.code == 0
    assert "cococap" in ran.out
    assert "stage2b" in ran.out
    assert "paligemma recipes NAME" in ran.err


def test_one_recipe_is_shown_with_its_command_and_scores(run: Run) -> None:
    ran = run("recipes", "ai2d", "--model", "paligemma2-10b", "--resolution", "448")
    assert ran.code == 0
    assert "'answer en  {question} choose from: {options}'" in ran.out  # both spaces
    assert "1e-06" in ran.out
    assert "84.4 ± 0.4" in ran.out
    assert (
        "paligemma train DATA --recipe ai2d --model google/paligemma2-10b-pt-448 "
        "--out runs/ai2d-448-paligemma2-10b"
    ) in ran.out
    assert (
        "paligemma eval ai2d --folder FOLDER --model runs/ai2d-448-paligemma2-10b/model" in ran.out
    )


def test_what_the_papers_do_not_state_is_said(run: Run) -> None:
    assert "not stated" in run("recipes", "stage1").out
    ran = run("recipes", "stage1", "--model", "paligemma2-10b")
    assert "5e-06" in ran.out


def test_recipes_as_json(run: Run) -> None:
    listed = json.loads(run("recipes", "--json").out)
    assert [recipe["name"] for recipe in listed][:2] == ["cococap", "coco35l"]
    shown = json.loads(run("recipes", "vqav2", "--json").out)
    assert shown["setting"]["weight_decay"] == 1e-6
    assert shown["command"].endswith("--out runs/vqav2-224")
    assert [line.split()[2] for line in shown["evaluation_commands"]] == ["vqav2", "pope", "mmvp"]
    assert {score["row"] for score in shown["published"]} >= {"VQAv2 (minival)", "POPE", "MMVP"}


def test_captions_are_scored_with_the_beams_of_the_papers(run: Run) -> None:
    lines = run("recipes", "textcaps").out.splitlines()
    assert lines[-1].endswith("--out runs/textcaps-224/eval-textcaps --num-beams 3")


def test_wrong_names_are_errors(run: Run) -> None:
    assert run("recipes", "vqa3").code == 2
    ran = run("recipes", "ai2d", "--model", "gpt")
    assert ran.code == 2
    assert "must be one of paligemma-3b, paligemma2-3b" in ran.err
    assert run("recipes", "ai2d", "--resolution", "896").code == 2


def test_a_recipe_of_ones_own_is_shown_from_its_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my_recipe.toml"
    path.write_text(
        '[mine]\ntitle = "My captions"\nprompt = "caption en"\nsuffix = "text"\ntext_length = 32\n'
        "[[mine.settings]]\nresolution = 224\nepochs = 3\n",
        encoding="utf-8",
    )
    ran = run("recipes", str(path))
    assert ran.code == 0
    assert "My captions" in ran.out
    assert f"--recipe {path} --model google/paligemma-3b-pt-224" in ran.out
