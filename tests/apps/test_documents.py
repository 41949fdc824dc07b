"""`paligemma ocr` on documents: pages, formats, files, exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from paligemma.documents import open_document
from tests.documents.pdf_files import pdf_of_pages, text_at

HELLO = text_at(20, 70, "Hello brave world")


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    path = tmp_path / "letter.pdf"
    path.write_bytes(pdf_of_pages([HELLO, text_at(20, 70, "Second page")]))
    return path


LAYER = ("--source", "text layer", "--quiet")


def test_the_text_layer_is_printed_page_by_page(run, letter):
    ran = run("ocr", letter, *LAYER)
    assert ran.code == 0
    assert ran.out == f"{letter}, page 1:\nHello brave world\n\n{letter}, page 2:\nSecond page\n\n"
    assert run("ocr", letter, *LAYER, "--pages", "2").out == "Second page\n"


def test_the_text_of_several_files_says_which_one_it_is_of(run, letter, tmp_path):
    short = tmp_path / "short.pdf"
    short.write_bytes(pdf_of_pages([HELLO]))
    ran = run("ocr", short, letter, *LAYER, "--pages", "1")
    assert ran.out == (
        f"{short}, page 1:\nHello brave world\n\n{letter}, page 1:\nHello brave world\n\n"
    )


def test_mini_reads_the_pages_of_a_pdf_and_a_tiff(run, letter, tmp_path):
    image = Image.open("examples/scene.png").convert("RGB")
    tiff = tmp_path / "pages.tiff"
    image.save(tiff, save_all=True, append_images=[image])
    ran = run("ocr", letter, tiff, "--model", "mini", "--json", "--no-turn", "--no-tiles")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 0
    assert [(line["document"], line["page"]) for line in lines] == [
        (str(letter), 1), (str(letter), 2), (str(tiff), 1), (str(tiff), 2),
    ]  # fmt: skip
    assert {line["task"] for line in lines} == {"ocr"}
    for line in lines:
        for read in line["result"]["lines"]:
            assert read["source"] == "model"
            assert 0 <= read["score"] <= 1


@pytest.mark.parametrize(
    ("to", "name"),
    [("txt", "a.txt"), ("json", "a.json"), ("hocr", "a.hocr"), ("alto", "a.xml")],
)
def test_formats_are_printed_or_written(run, letter, tmp_path, to, name):
    out = tmp_path / name
    assert run("ocr", letter, *LAYER, "--output", out).code == 0
    printed = run("ocr", letter, *LAYER, "--to", to)
    if to != "txt":
        assert printed.out == out.read_text(encoding="utf-8")
    text = out.read_text(encoding="utf-8")
    match to:
        case "txt":
            assert text == "Hello brave world\fSecond page\n"
        case "json":
            assert json.loads(text)["pages"][1]["lines"][0]["text"] == "Second page"
        case _:
            assert ElementTree.fromstring(text) is not None
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]


def test_a_searchable_pdf_is_written(run, letter, tmp_path):
    assert run("ocr", letter, *LAYER, "--to", "searchable-pdf").code == 2
    out = tmp_path / "out.pdf"
    assert run("ocr", letter, *LAYER, "--output", out).code == 0
    with open_document(out) as document:
        assert [word.text for word in document.pages[1].words] == ["Second", "page"]
    ran = run("ocr", letter, *LAYER, "--output", letter)
    assert (ran.code, "would overwrite the document" in ran.err) == (2, True)


def test_pages_with_a_text_layer_are_not_read_to_be_searchable(run, letter, tmp_path):
    out = tmp_path / "out.pdf"
    ran = run("ocr", letter, "--model", "mini", "--output", out)
    assert ran.code == 0
    assert "2 pages have a text layer already, which stays as it is" in ran.err
    with open_document(out) as document:
        assert [word.text for word in document.pages[1].words] == ["Second", "page"]


def test_an_image_is_read_as_a_page_where_the_output_is_a_documents(run, tmp_path):
    for name in ("a.hocr", "a.txt", "a.json", "a.pdf"):
        ran = run("ocr", "examples/scene.png", "--output", tmp_path / name, "--no-turn")
        assert (ran.code, (tmp_path / name).is_file()) == (0, True)
    assert json.loads((tmp_path / "a.json").read_text())["pages"][0]["unit"] == "px"
    assert run("ocr", "examples/scene.png", "--output", tmp_path / "a.docx").code == 2


def test_what_cannot_be_written_is_one_line(run, letter, tmp_path):
    (tmp_path / "out" / "letter.txt").mkdir(parents=True)
    for output in (tmp_path / "out", "/proc/x.txt", "/dev/full"):
        ran = run("ocr", letter, *LAYER[:2], "--output", output)
        assert ran.code in (2, 3)
        assert "cannot be written" in ran.err or "not writable" in ran.err


def test_several_documents_go_to_a_folder(run, letter, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / "in" / name).write_bytes(letter.read_bytes())
    out = tmp_path / "out"
    assert run("ocr", tmp_path / "in", *LAYER, "--output", out, "--to", "txt").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "b.txt"]
    again = run("ocr", tmp_path / "in", *LAYER[:2], "--output", out, "--skip-existing")
    assert "skipped: 2 documents" in again.err


def test_a_bad_file_does_not_stop_the_others(run, letter, tmp_path):
    bad = tmp_path / "bad.pdf"
    bad.write_bytes(letter.read_bytes()[:200])
    ran = run("ocr", letter, bad, *LAYER)
    assert ran.code == 3
    assert "Hello brave world" in ran.out
    assert "bad.pdf is no PDF file that can be read" in ran.err
    ran = run("ocr", bad, *LAYER)
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize("content", [None, b"", b"some text"])
def test_a_file_of_an_unknown_format_does_not_stop_the_others(run, letter, tmp_path, content):
    bad = tmp_path / "notes"
    if content is not None:
        bad.write_bytes(content)
    ran = run("ocr", bad, letter, *LAYER)
    assert ran.code == 3
    assert "Hello brave world" in ran.out
    assert ran.err.count("notes") == 1
    ran = run("ocr", bad, bad, *LAYER)
    assert (ran.code, ran.out) == (2, "")


def test_a_document_without_the_pages_asked_for_does_not_stop_the_others(run, letter, tmp_path):
    short = tmp_path / "short.pdf"
    short.write_bytes(pdf_of_pages([HELLO]))
    ran = run("ocr", short, letter, *LAYER, "--pages", "2")
    assert ran.code == 3
    assert "Second page" in ran.out
    assert "the document has 1 page" in ran.err


def test_passwords_and_pages_are_checked_before_the_model_is_loaded(run, letter):
    ran = run("ocr", letter, "--pages", "3", "--model", "no/such/model")
    assert ran.code == 2
    assert "has 2 pages" in ran.err
    ran = run("ocr", letter, "--max-pages", "1", "--model", "no/such/model")
    assert (ran.code, "the limit is 1" in ran.err) == (2, True)
    ran = run("ocr", letter, "--source", "both")
    assert (ran.code, "--source is 'both'" in ran.err) == (2, True)


def test_images_are_read_as_before(run):
    ran = run("ocr", "examples/scene.png", "--json", "--model", "mini")
    assert set(json.loads(ran.out)) == {"image", "model", "task", "result"}


@pytest.mark.parametrize("command", [["caption"], ["ask"], ["detect"]])
def test_other_commands_say_which_ones_take_documents(run, letter, command):
    prompt = [] if command == ["caption"] else ["what?"]
    ran = run(*command, letter, *prompt)
    assert ran.code == 2
    assert "`paligemma ocr` and `paligemma extract`" in ran.err


def test_a_pdf_comes_through_stdin_too(run, letter, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(letter.read_bytes())

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("sys.stdin", Stdin())
    assert "Hello brave world" in run("ocr", "-", *LAYER).out


def test_an_empty_folder_has_neither_images_nor_documents(run, tmp_path):
    ran = run("ocr", tmp_path)
    assert ran.code == 2
    assert "contains no images or documents" in ran.err
