"""Files of results, and what is left when a run fails."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

import paligemma
from paligemma.data.open import open_data

PHOTO = SimpleNamespace(name="photo")


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
    assert (ran.code, ran.out) == (3, "")
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
    for row in rows:
        del row["image"], row["error"]
    assert rows[1:] == list(csv.DictReader(io.StringIO(stand_in.detect(PHOTO, "wall").to_csv())))
    run("ask", picture, broken, "what?", "--output", out)
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert [row["text"] for row in rows] == ["blue", ""]


def test_a_table_has_nothing_that_a_spreadsheet_takes_for_a_formula(
    run, picture, stand_in, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    picture.rename("=A1.jpg")
    for command in (("ask", "=A1.jpg", "what?"), ("detect", "=A1.jpg", "wall")):
        run(*command, "--output", "out.csv")
        row, *_ = csv.DictReader((tmp_path / "out.csv").read_text("utf-8").splitlines())
        assert row["image"] == "'=A1.jpg"


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
        ("generate", "out", ".jsonl or .csv file. Choose"),
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
    words = [] if command == "caption" else ["wall"]
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


def test_nothing_is_begun_while_the_model_loads(run, picture, stand_in, tmp_path, monkeypatch):
    """Ctrl-C ends the process at once then, and would leave it behind."""
    seen = []

    def load(*names, **options):
        seen.extend(tmp_path.iterdir())
        return stand_in

    monkeypatch.setattr(paligemma, "load", load)
    assert run("caption", picture, "--output", tmp_path / "out.csv").code == 0
    assert seen == [picture]


@pytest.mark.skipif(os.name == "nt", reason="has no /dev")
def test_a_device_gets_the_results_and_stays_a_device(run, picture, stand_in, tmp_path):
    (link := tmp_path / "out.csv").symlink_to(os.devnull)
    for arguments in ((link,), (os.devnull, "--output-format", "jsonl")):
        assert run("caption", picture, "--output", *arguments).code == 0
    assert link.is_symlink()
    assert link.is_char_device()


@pytest.mark.skipif(os.name == "nt", reason="has no /dev")
def test_a_dash_is_stdout(picture, tmp_path):
    command = [sys.executable, "-m", "paligemma", "caption", picture, "--quiet"]
    command += ["--output", "-", "--output-format", "csv"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("image,text,score,error\n")
    assert list(tmp_path.iterdir()) == [picture]


@pytest.mark.parametrize("name", ["-", os.devnull])
def test_what_is_neither_file_nor_folder_needs_a_format(name, run, picture, no_model, tmp_path):
    ran = run("caption", picture, "--output", name)
    assert (ran.code, "--output-format" in ran.err) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ("caption", "PICTURE", "--output", "OUT/a.csv"),
        ("data", "check", "PICTURE", "--out", "OUT/a.html"),
        ("certify", "mini", "--out", "OUT/a"),
        ("index", "FOLDER", "--out", "OUT/a.db"),
        ("alt", "PICTURE", "--output", "OUT/a.csv"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_said_before_any_work(
    words, run, picture, no_model, tmp_path, monkeypatch
):
    (out := tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(out))
    places = {"PICTURE": str(picture), "FOLDER": str(tmp_path), "OUT": str(out)}
    for place, path in places.items():
        words = [word.replace(place, path) for word in words]
    ran = run(*words)
    assert (ran.code, f"The folder {out} for a" in ran.err) == (2, True)
    assert "is not writable" in ran.err


def test_stdout_needs_no_folder_that_can_be_written_to(
    run, picture, stand_in, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    ran = run("caption", picture, "--output", os.devnull, "--output-format", "csv")
    assert ran.code == 0


@pytest.mark.parametrize("flag", ["-o", "--out", "--output"])
def test_the_name_of_the_output_may_be_given_as_to_other_commands(
    flag, run, picture, stand_in, tmp_path
):
    assert run("caption", picture, flag, tmp_path / "out.jsonl").code == 0
    assert (tmp_path / "out.jsonl").is_file()


def test_the_format_can_be_chosen(run, picture, stand_in, tmp_path):
    out = tmp_path / "out.json"
    run("caption", picture, "--output", out, "--output-format", "jsonl")
    assert json.loads(out.read_text(encoding="utf-8"))["image"] == str(picture)


@pytest.fixture
def folder(tmp_path):
    """Two images in a folder."""
    (folder := tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20), "blue").save(folder / name)
    return folder


def test_texts_next_to_images_are_captions_to_train_on(run, folder, stand_in):
    assert run("caption", folder, "--output-format", "txt", "--quiet").code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "a.txt", "b.png", "b.txt"]
    assert (folder / "a.txt").read_text(encoding="utf-8") == "a blue \x1b[2Jwall\n"
    records = list(open_data(folder).records)
    assert [record.references for record in records] == [("a blue \x1b[2Jwall",)] * 2


def test_texts_can_go_into_a_folder_of_their_own(run, folder, stand_in, tmp_path):
    assert run("ask", folder, "what?", "--output", tmp_path / "texts").code == 0
    assert sorted(path.name for path in (tmp_path / "texts").iterdir()) == ["a.txt", "b.txt"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png"]


def test_texts_that_exist_are_never_overwritten(run, folder, no_model):
    (folder / "b.txt").write_text("mine", encoding="utf-8")
    ran = run("caption", folder, "--output-format", "txt")
    assert (ran.code, "b.txt" in ran.err, "--skip-existing" in ran.err) == (2, True, True)
    assert not (folder / "a.txt").exists()


def test_images_of_one_name_cannot_share_a_text(run, folder, no_model):
    Image.new("RGB", (4, 4)).save(folder / "a.jpg")
    ran = run("caption", folder, "--output-format", "txt")
    assert (ran.code, "a.txt" in ran.err) == (2, True)


def test_an_image_without_a_file_has_no_text_next_to_it(run, no_model):
    image = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    ran = run("caption", image, "--output-format", "txt")
    assert (ran.code, "--output FOLDER" in ran.err) == (2, True)


def test_skipped_texts_stay_and_the_others_are_written(run, folder, stand_in):
    (folder / "b.txt").write_text("mine", encoding="utf-8")
    ran = run("caption", folder, "--output-format", "txt", "--skip-existing")
    assert (ran.code, "skipped: 1 image" in ran.err) == (0, True)
    assert (folder / "b.txt").read_text(encoding="utf-8") == "mine"
    assert (folder / "a.txt").exists()
    ran = run("caption", folder, "--output-format", "txt", "--skip-existing")
    assert (ran.code, "all of them" in ran.err, len(stand_in.asked)) == (0, True, 1)


def test_json_lines_are_continued(run, folder, broken, stand_in, tmp_path):
    out = tmp_path / "out.jsonl"
    skip = ("--output", out, "--skip-existing")
    assert run("caption", folder / "b.png", broken, *skip).code == 3
    assert run("caption", folder, *skip).code == 0
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["image"] for line in lines] == [str(folder / "b.png"), str(folder / "a.png")]
    assert len(stand_in.asked) == 2
    ran = run("ocr", folder, *skip)
    assert (ran.code, "not of ocr by mini" in ran.err) == (2, True)


def test_an_interrupted_run_leaves_its_lines_for_the_next(
    run, folder, stand_in, tmp_path, monkeypatch
):
    out = tmp_path / "out.jsonl"
    answer = type(stand_in).caption

    def fail_at_b(self, image, *args, **options):
        if image.name == "b.png":
            raise KeyboardInterrupt
        return answer(self, image, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(stand_in), "caption", fail_at_b)
        assert run("caption", folder, "--output", out, "--skip-existing").code == 130
    [line] = out.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["image"] == str(folder / "a.png")
    assert run("caption", folder, "--output", out, "--skip-existing").code == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_drawings_that_exist_are_skipped(run, folder, stand_in, tmp_path):
    (drawn := tmp_path / "drawn").mkdir()
    (drawn / "a.png").write_bytes(b"mine")
    assert run("detect", folder, "wall", "--draw", drawn, "--skip-existing").code == 0
    assert (drawn / "a.png").read_bytes() == b"mine"
    assert [asked[2] for asked in stand_in.asked] == ["b.png"]


@pytest.mark.parametrize("options", [("--output", "out.csv"), ("--output", "labels"), ()])
def test_where_nothing_can_be_skipped_it_is_said(
    options, run, picture, no_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for words in ((*("detect", picture, "x"), *options), ("generate", picture, "caption en")):
        ran = run(*words, "--skip-existing")
        assert (ran.code, "--skip-existing" in ran.err) == (2, True)


@pytest.mark.parametrize("words", [("generate", "caption en"), ("detect", "wall")])
def test_only_commands_with_a_text_for_each_image_write_text_files(words, run, picture, no_model):
    command, prompt = words
    ran = run(command, picture, prompt, "--output-format", "txt")
    assert (ran.code, "Choose one with --output." in ran.err) == (2, True)
