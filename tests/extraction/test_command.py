"""`paligemma extract`: schemas from files, outputs, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from paligemma.cli.extract import load_schema
from paligemma.cli.main import main
from paligemma.cli.model_options import LoadOptions
from paligemma.errors import OptionError
from tests.extraction.scripted import Fact, ScriptedAsker

SCHEMA = {
    "title": "Note",
    "type": "object",
    "required": ["number"],
    "properties": {
        "number": {"type": "string", "maxLength": 20},
        "amount": {"type": "number"},
    },
}


class Model(ScriptedAsker):
    """What `--model` loads in these tests."""

    note = None


@pytest.fixture
def asker(monkeypatch: pytest.MonkeyPatch) -> Model:
    asker = Model([Fact("What is the number?", "=7\x1b[2J"), Fact("What is the amount?", "5,50")])
    monkeypatch.setattr(LoadOptions, "load", lambda self: asker)
    return asker


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        image = Image.new("RGB", (300, 400), "white")
        ImageDraw.Draw(image).text((20, 20), "some print", fill="black", font_size=16)
        image.save(f"{name}.png")
    Path("cut.pdf").write_bytes(b"%PDF-1.7\n")
    Path("note.json").write_text(json.dumps(SCHEMA))
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["extract", *arguments])
    return int(caught.value.code or 0)


def test_a_table_on_stdout(asker: Model, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a.png", "--schema", "note.json") == 0
    shown = capsys.readouterr().out
    assert "number  =7\\x1b[2J" in shown
    assert "5.5" in shown
    assert "\x1b" not in shown


def test_safe_csv_is_for_every_text_and_for_csv_alone(asker: Model, folder: Path) -> None:
    """Names of files are text of others, too; names may be as long as file systems allow."""
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ["=cmd.png", "l" * 250 + ".png"]
    for name in names:
        shutil.copy("a.png", name)
    formats = ("--to", "csv", "--to", "parquet", "--to", "json", "--to", "html")
    assert run(*names, "--schema", "note.json", "--safe-csv", "--out", "out", *formats) == 0
    rows = list(csv.reader(Path("out/fields.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1::2]] == [f"'{names[0]}", names[1]]
    assert rows[1][2] == "'=7\\x1b[2J"
    table = parquet.read_table("out/fields.parquet").to_pydict()
    assert (table["file"][0], table["value"][0]) == (names[0], "=7\x1b[2J")
    assert not list(Path("out").glob("*.unfinished"))


def test_json_lines_csv_and_errors(
    asker: Model, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("a.png", "cut.pdf", "b.png", "--schema", "note.json", "--json") == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == ["a.png", "cut.pdf", "b.png"]
    assert lines[0]["result"]["value"] == {"number": "=7 [2J".replace(" ", "\x1b"), "amount": 5.5}
    assert "error" in lines[1]
    assert run("cut.pdf", "--schema", "note.json") == 2
    capsys.readouterr()
    assert run("a.png", "--schema", "note.json", "--to", "csv", "--safe-csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == ["number", "amount"]
    assert rows[0]["value"].startswith("'=7")


def test_files_in_a_folder(asker: Model, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats = [word for name in ("json", "csv", "parquet", "html") for word in ("--to", name)]
    assert run("a.png", "b.png", "--schema", "note.json", "--out", "out", *formats) == 0
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == ["a.html", "a.json", "b.html", "b.json", "fields.csv", "fields.parquet"]
    line = json.loads(Path("out/a.json").read_text())
    assert line["result"]["fields"][0]["path"] == "number"
    assert "written: json, csv, parquet, html in out" in capsys.readouterr().err
    assert run("a.png", "--schema", "note.json", "--to", "html") == 2
    assert run("a.png", "a.png", "--schema", "note.json", "--out", "out") == 2
    assert run("a.png", "--schema", "note.json", "--out", "no/out") == 2


def test_a_python_file_and_names(
    asker: Model, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.py").write_text(
        "from pydantic import BaseModel\n"
        "class Note(BaseModel):\n    number: str\n    amount: float\n"
    )
    Path("names.txt").write_text("=7\n=8\n")
    assert run("a.png", "--schema", "my.py:Note", "--names", "number=names.txt", "--json") == 0
    line = json.loads(capsys.readouterr().out)
    assert line["result"]["fields"][0]["matched"]["text"] == "=7"
    Path("broken.py").write_text("raise ValueError('no')")
    for schema in ("my.py:Missing", "none.py:Note", "broken.py:Note", "missing.json", "nothing"):
        assert run("a.png", "--schema", schema) == 2
    assert run("a.png", "--schema", "note.json", "--names", "missing.txt") == 2
    assert not [name for name in sys.modules if name == "my"]


def test_names_of_files_that_are_not_utf8(
    asker: Model, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9\x1b[2J.png")
    shutil.copy("a.png", name)
    kinds = ("json", "csv", "html", "parquet")
    formats = [word for kind in kinds for word in ("--to", kind)]
    assert run(name, "--schema", "note.json", "--out", "out", *formats) == 0
    (written,) = Path("out").glob("*.json")
    assert json.loads(written.read_text())["file"] == name
    assert "\x1b" not in Path("out/fields.csv").read_text()
    assert "\\udce9" in Path("out/fields.csv").read_text()
    capsys.readouterr()
    assert run(name, "--schema", "note.json", "--to", "csv") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_nothing_is_loaded_for_what_cannot_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(options: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(LoadOptions, "load", load)
    assert run("a.png", "--schema", "prescription", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "medicines[].dose" in shown
    assert "answer en Which medicines are mentioned in the prescription?" in shown
    assert run("a.png", "--schema", "invoice", "--dry-run", "--source", "xml") == 0
    assert "Nothing is asked" in capsys.readouterr().err
    for unknown in ("bill", "my.py", "my:Bill", "bill.yaml"):
        assert run("a.png", "--schema", unknown) == 2
        assert "my.py:Invoice" in capsys.readouterr().err
    Path("bad.json").write_text('{"type": "object", "properties": {"a": {"type": "any"}}}')
    assert run("a.png", "--schema", "bad.json") == 2
    assert "#/properties/a/type" in capsys.readouterr().err
    assert run("missing.pdf", "--schema", "invoice") == 2
    assert run("", "--schema", "invoice") == 2
    assert run("https://example.com/a.pdf", "--schema", "invoice") == 2
    assert "web address" in capsys.readouterr().err
    assert run("a.png", "--schema", "invoice", "--out", "/proc/no") == 2
    assert run("a.png", "--schema", "invoice", "--date-order", "xyz") == 2


@pytest.mark.parametrize("word", ["cut.pdf", "note.json", "nowhere.pdf"])
def test_a_document_that_cannot_be_read_does_not_stop_the_others(
    word: str, asker: Model, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(word, "a.png", "--schema", "note.json", "--json") == 3
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [("error" in line, line["file"]) for line in lines] == [(True, word), (False, "a.png")]
    assert word in err


def test_nothing_is_loaded_where_no_document_can_be_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LoadOptions, "load", lambda self: pytest.fail("loaded"))
    assert run("cut.pdf", "note.json", "--schema", "note.json") == 2
    err = capsys.readouterr().err
    assert "cut.pdf" in err
    assert "note.json" in err


def test_a_document_without_the_pages_asked_for_does_not_stop_the_others(
    asker: Model, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.open("a.png")
    image.save("two.tiff", save_all=True, append_images=[image])
    documents = ("a.png", "two.tiff")
    assert run(*documents, "--schema", "note.json", "--json", "--pages", "2") == 3
    assert ["error" in json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        True,
        False,
    ]


def test_a_key_that_a_schema_file_has_twice(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "string"}, "a": {}}}')
    with pytest.raises(OptionError, match="'a' twice"):
        load_schema(str(schema))
