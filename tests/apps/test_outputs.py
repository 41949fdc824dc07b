"""Files of results, and what is left when a run fails."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from paligemma.data.open import open_data


@pytest.fixture
def broken(tmp_path):
    """An image whose first bytes alone are right."""
    (folder := tmp_path / "in").mkdir()
    path = folder / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return path


def test_json_lines_have_a_line_for_each_image(run, picture, broken, stand_in, tmp_path):
    out = tmp_path / "out.jsonl"
    ran = run("caption", picture, broken, picture, "--output", out)
    assert (ran.code, ran.out) == (2, "")
    assert f"written: {out}" in ran.err
    first, second, third = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert first["result"]["text"] == third["result"]["text"]
    assert second.keys() == {"image", "error"}


def test_a_table_of_objects_and_one_of_texts(run, picture, broken, stand_in, tmp_path):
    out = tmp_path / "out.csv"
    run("detect", broken, picture, "wall ; dog", "--output", out)
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert [(row["label"], row["x2"]) for row in rows] == [
        ("", ""),
        ("wall", "40.00"),
        ("dog", "9.00"),
    ]
    assert "damaged" in rows[0]["error"]
    run("ask", picture, broken, "what?", "--output", out)
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert [row["text"] for row in rows] == ["blue", ""]


def test_coco_numbers_images_and_objects_through(run, picture, broken, stand_in, tmp_path):
    out = tmp_path / "out.json"
    run("segment", picture, broken, picture, "dog ; wall", "--output", out)
    made = json.loads(out.read_text(encoding="utf-8"))
    assert [image["id"] for image in made["images"]] == [1, 2]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in made["annotations"]] == [
        (1, 1, 2),
        (2, 2, 2),
    ]
    assert [item["name"] for item in made["categories"]] == ["dog", "wall"]
    assert made["annotations"][0]["segmentation"]["size"] == [20, 40]


@pytest.mark.parametrize("command", ["detect", "segment"])
def test_a_yolo_folder_can_be_read_as_data(command, run, picture, stand_in, tmp_path):
    out = tmp_path / "labels of it"
    assert run(command, picture, "dog ; wall", "--output", out).code == 0
    text = (out / "labels" / "blue.txt").read_text(encoding="utf-8").splitlines()
    assert text[0].split()[0] == "1"
    (out / "images").mkdir()
    Image.open(picture).save(out / "images" / "blue.jpg")
    data = open_data(out)
    assert data.class_names == ("dog", "wall")
    assert len(data) == 1


@pytest.mark.parametrize(
    ("command", "name", "reason"),
    [
        ("caption", "out.json", ".jsonl or .csv"),
        ("caption", "out", ".jsonl or .csv"),
        ("detect", "out.txt", "folder (YOLO)"),
        ("detect", "no/out.csv", "does not exist"),
        ("detect", "full", "already exists"),
        ("caption", "folder.csv", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(
    command, name, reason, run, picture, no_model, tmp_path
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "folder.csv").mkdir()
    words = ["wall"] if command == "detect" else []
    ran = run(command, picture, *words, "--output", tmp_path / name)
    assert ran.code == 2
    assert reason in ran.err


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.json", "out"])
def test_a_run_that_fails_leaves_the_file_as_it_was(
    name, run, picture, stand_in, tmp_path, monkeypatch
):
    before = sorted(tmp_path.iterdir())

    def fail(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(stand_in), "detect", fail)
    assert run("detect", picture, "wall", "--output", tmp_path / name).code == 130
    assert sorted(tmp_path.iterdir()) == before


def test_the_format_can_be_chosen(run, picture, stand_in, tmp_path):
    out = tmp_path / "out.json"
    run("caption", picture, "--output", out, "--output-format", "jsonl")
    assert json.loads(out.read_text(encoding="utf-8"))["image"] == str(picture)
