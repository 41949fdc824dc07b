"""Images on the command line: files, folders, patterns, addresses and stdin."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from paligemma.cli.image_arguments import find_images
from paligemma.errors import ImageError, OptionError


def png(color: int = 0) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 3), (color, 0, 0)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images and other files."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.PNG", "sub/c.png", ".hidden.png", "note.txt", "sub/.d/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(png() if "png" in name.lower() else b"text")
    return tmp_path


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("b.png", ["b.png"]),
        ("./b.png", ["./b.png"]),
        (".", ["a.PNG", "b.png"]),
        ("*.png", ["b.png"]),
        ("*", ["a.PNG", "b.png"]),
        ("**/*.png", ["b.png", "sub/c.png"]),
        ("*/c.p?g", ["sub/c.png"]),
    ],
)
def test_files_folders_and_patterns(word: str, names: list[str], here: Path) -> None:
    images = find_images([word])
    assert [image.name for image in images] == names
    assert all(image.read().size_wh == (4, 3) for image in images)


def test_folders_within_a_folder_are_searched_on_request(here: Path) -> None:
    assert [i.name for i in find_images(["."], recursive=True)] == ["a.PNG", "b.png", "sub/c.png"]


def test_a_name_with_the_letters_of_a_pattern_is_a_file_where_it_exists(here: Path) -> None:
    (here / "scan[1].png").write_bytes(png())
    (here / "data:x.png").write_bytes(png())
    assert find_images(["scan[1].png"])[0].read().size_wh == (4, 3)


def test_addresses_of_files(here: Path) -> None:
    (here / "my image.png").write_bytes(png())
    for prefix in ("file://", "file://localhost", "FILE://"):
        [image] = find_images([f"{prefix}{here}/my%20image.png"])
        assert image.read().size_wh == (4, 3)
    with pytest.raises(ImageError, match="host 'server'"):
        find_images(["file://server/b.png"])


def test_a_tilde_that_the_shell_left_is_the_home_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert find_images(["~/b.png"])[0].read().size_wh == (4, 3)
    assert [image.stem for image in find_images(["~/sub/*.png"])] == ["c"]


def test_images_within_addresses(here: Path) -> None:
    text = base64.b64encode(png()).decode()
    for uri in (f"data:image/png;base64,{text}", f"DATA:;base64,{text[:20]} \n{text[20:]}"):
        [image] = find_images([uri])
        assert image.read().size_wh == (4, 3)
        assert len(image.name) <= 60
    for uri, reason in (("data:image/png;base64,%", "base64"), ("data:image/png", "comma")):
        with pytest.raises(ImageError, match=reason):
            find_images([uri])


@pytest.mark.parametrize("word", ["-", "/dev/stdin"])
def test_stdin_is_an_image(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, png())
    [image] = find_images([word])
    assert (image.name, image.stem) == (word, "stdin")
    assert image.read().size_wh == (4, 3)
    assert image.read().size_wh == (4, 3)
    with pytest.raises(OptionError, match="once"):
        find_images([word, "-"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_an_image(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    writer = threading.Thread(target=pipe.write_bytes, args=(png(),))
    writer.start()
    [image] = find_images([str(pipe)])
    writer.join()
    assert image.read().size_wh == (4, 3)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("", "path is empty"),
        ("nowhere.png", "does not exist"),
        ("*.jpg", "No file matches"),
        ("no\0where.png", "cannot be opened"),
        ("note.txt", "unknown format"),
        ("empty.png", "empty"),
        ("scan.pdf.png", "PDF"),
        ("page.png", "HTML"),
        ("bare", "contains no images. Check"),
        ("nested", "Add --recursive"),
        ("broken", "None of the 2 files"),
        ("https://example.com/a.png", "--allow-urls"),
        ("s3://bucket/a.png", "only http and https"),
        ("/dev/null", "empty"),
        ("~nobody-of-this-name/a.png", "does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["caption", "detect"])
def test_what_is_wrong_is_found_before_the_model_is_loaded(
    command, word, reason, run, here, no_model
):
    (here / "empty.png").touch()
    (here / "scan.pdf.png").write_bytes(b"%PDF-1.7")
    (here / "page.png").write_bytes(b"<html>")
    (here / "bare").mkdir()
    (here / "nested" / "x").mkdir(parents=True)
    (here / "nested" / "x" / "a.png").write_bytes(png())
    (here / "broken").mkdir()
    (here / "broken" / "a.png").touch()
    (here / "broken" / "b.png").write_bytes(b"text")
    if "\0" in word:  # no command line can have it
        with pytest.raises(ImageError, match=reason):
            find_images([word])
        return
    ran = run(command, word, *(["dog"] if command == "detect" else []))
    assert ran.code == 2
    assert reason in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "reason"),
    [("nowhere.png", "does not exist"), ("note.txt", "unknown format"), ("*.jpg", "No file")],
)
def test_one_of_several_files_that_cannot_be_read_is_listed_and_the_others_are_answered(
    word, reason, run, here, stand_in
):
    ran = run("caption", "b.png", word, "a.PNG", "--json")
    assert ran.code == 3
    assert [("error" in json.loads(line)) for line in ran.out.splitlines()] == [False, True, False]
    assert reason in ran.err
    assert run("caption", word, word, "--json").out == ""


def test_a_prompt_about_all_images_needs_all_of_them(run, here, no_model):
    ran = run("generate", "b.png", "note.txt", "describe")
    assert (ran.code, ran.out) == (2, "")
    assert "unknown format" in ran.err


@pytest.mark.parametrize("word", ["", "https://example.com/a.png", "s3://bucket/a.png"])
def test_what_is_not_to_be_read_at_all_stops_before_the_others_are_read(word, run, here, no_model):
    assert run("caption", "b.png", word).code == 2


def test_empty_stdin_and_a_terminal_are_refused(run, no_model, monkeypatch):
    give_stdin(monkeypatch, b"")
    assert "empty" in run("caption", "-").err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert "terminal" in run("caption", "-").err


def test_a_file_of_a_folder_that_is_no_image_is_reported_in_its_place(run, here, stand_in):
    (here / "b.png").write_bytes(b"text")
    ran = run("caption", ".")
    assert ran.code == 3
    assert "'b.png' has an unknown format" in ran.err
    assert ran.out.count("\n") == 1


def test_an_address_is_fetched_once(monkeypatch):
    from paligemma.processor import fetch

    fetched = []

    def fetch_image_bytes(address: str) -> bytes:
        fetched.append(address)
        return png()

    monkeypatch.setattr(fetch, "fetch_image_bytes", fetch_image_bytes)
    [image] = find_images(["https://example.com/cat.png?size=1"], allow_urls=True)
    assert fetched == []
    assert image.read().size_wh == image.read().size_wh == (4, 3)
    assert len(fetched) == 1
    assert image.stem == "cat"


def test_an_error_names_what_was_piped(run, stand_in, monkeypatch):
    give_stdin(monkeypatch, png()[:40])
    assert run("caption", "-").err.splitlines()[-1].startswith("error: -: The image is damaged")
