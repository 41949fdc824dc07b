"""`paligemma train` and `paligemma estimate-memory` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six pictures of a red square with a question each, as JSON Lines."""
    lines = []
    for number in range(6):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).rectangle((5 * number, 8, 5 * number + 20, 28), fill="red")
        picture.save(tmp_path / f"{number}.png")
        answer = "yes" if number % 2 else "no"
        line = {"image": f"{number}.png", "prefix": "answer en is there a dog?", "suffix": answer}
        lines.append(json.dumps(line))
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "data.jsonl"


def test_one_command_makes_an_adapter_that_the_next_one_uses(run, data, tmp_path):
    out = tmp_path / "run"
    ran = run(
        "train", data, "--out", out, "--steps", 2, "--batch-size", 2, "--validation-split", 0.34
    )
    assert ran.code == 0, ran.err
    assert "exact_match" in ran.out
    assert str(out / "report.html") in ran.out
    assert "step 2 of 2: loss" in ran.err
    assert "Confusion matrix" in (out / "report.html").read_text()
    asked = run("ask", data.parent / "1.png", "is there a dog?", "--adapter", out / "adapter")
    assert asked.code == 0, asked.err
    assert asked.out.strip() in ("yes", "no")


def test_json_holds_scores_and_paths(run, data, tmp_path):
    ran = run("train", data, "--out", tmp_path / "run", "--steps", 1, "--batch-size", 2,
              "--validation-split", 0.34, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert Path(found["saved"]).is_dir()
    assert found["scores"][0]["name"] == "exact_match"
    assert found["scores"][0]["num_records"] == 2


def test_several_wishes_that_contradict_are_one_clear_line(run, data, tmp_path):
    ran = run("train", data, "--out", tmp_path / "run", "--steps", 1, "--epochs", 2)
    assert ran.code == 2
    assert ran.err == "error: epochs is 2.0 and steps is 1; give one of the two.\n"


def test_missing_data_are_named(run, tmp_path):
    ran = run("train", tmp_path / "nothing.jsonl", "--out", tmp_path / "run")
    assert ran.code == 2
    assert "nothing.jsonl" in ran.err


def test_curves_go_to_tensorboard_when_asked(run, data, tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    ran = run("train", data, "--out", out, "--steps", 1, "--batch-size", 2, "--validation-split", 0,
              "--tensorboard")  # fmt: skip
    assert ran.code == 0, ran.err
    assert list((out / "tensorboard").glob("events.*"))


def test_what_fits_is_told_without_any_weights(run, monkeypatch):
    rate = "paligemma.finetune.run.memory_estimate.measure_rate"
    monkeypatch.setattr(rate, lambda device: 1e11)
    ran = run("estimate-memory", "--model", "google/paligemma2-28b-pt-224", "--examples", 100)
    assert ran.code == 0, ran.err
    rows = [line for line in ran.out.splitlines() if line.strip().startswith(("full", "qlora"))]
    assert len(rows) == 2
    assert "GB" in rows[0]
    assert "whole run" in ran.out
    assert "whole run" not in run("estimate-memory", "--model", "mini").out


def test_what_fits_is_plain_numbers_in_json(run):
    ran = run("fit", "--json", "--examples", 60, "--epochs", 2)
    found = json.loads(ran.out)
    assert found["methods"]["lora"]["fits"]
    assert found["methods"]["full"]["total"] > found["methods"]["lora"]["total"]
    assert found["methods"]["lora"]["seconds"] == pytest.approx(
        15 * found["methods"]["lora"]["seconds_a_step"]
    )


def test_a_run_that_has_no_place_is_one_line(run, data):
    ran = run("train", data, "--out", data / "run", "--steps", 1)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"The folder {data / 'run'} cannot be created: Not a directory." in ran.err
