"""`paligemma table` and `paligemma chart`, with a model that knows what is on the page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import paligemma
from paligemma.documents.tables import ChartOptions, PartOptions, read_chart, read_table
from paligemma.predictor import Predictor
from tests.documents.scripted import ScriptedModel

TABLE = "<table><tr><td>a\x1b</td><td colspan=2>=1+1</td></tr></table> bye"


@dataclass(kw_only=True)
class Scripted(ScriptedModel):
    def table(self, source: Any, box_xyxy: Any = None, **options: Any) -> Any:
        return read_table(self, source, PartOptions(box_xyxy=box_xyxy, **options))

    def chart(self, source: Any, box_xyxy: Any = None, **options: Any) -> Any:
        return read_chart(self, source, ChartOptions(box_xyxy=box_xyxy, **options))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScriptedModel:
    texts = {"table": TABLE, "chart": "A 3 ; B 5%"}
    scripted = Scripted(reply=lambda prompt, image: texts.get(prompt, "7"))
    monkeypatch.setattr(paligemma, "load", lambda *arguments, **options: scripted)
    return scripted


def test_a_table_is_printed_in_any_form(run, picture, model):
    ran = run("table", picture)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.split("\n")[0] == "a\\x1b  =1+1"
    assert "skipped, malformed: Text outside of cells: 'bye'." in ran.out
    assert run("table", picture, "--to", "csv").out == "a\\x1b,=1+1,=1+1\n"
    assert run("table", picture, "--to", "csv", "--spans", "blank").out == "a\\x1b,=1+1,\n"
    assert run("table", picture, "--to", "csv", "--safe-csv").out == "a\\x1b,'=1+1,'=1+1\n"
    ran = run("table", picture, "--to", "html")
    assert '<td colspan="2">=1+1</td>' in ran.out
    assert ran.err == "malformed: Text outside of cells: 'bye'.\n"
    value = json.loads(run("table", picture, "--to", "json", "--quiet").out)
    assert (value["file"], value["task"]) == (str(picture), "table")
    assert [cell["text"] for cell in value["result"]["cells"]] == ["a\x1b", "=1+1"]


def test_a_chart_is_printed_or_written(run, picture, model, tmp_path: Path):
    assert run("chart", picture).out.split("\n")[:3] == ["chart", "A  3", "B  5%"]
    out = tmp_path / "chart.csv"
    ran = run("chart", picture, "--to", "csv", "--output", out)
    assert (ran.code, ran.out) == (0, "")
    assert out.read_text().split("\n")[2].startswith(",B,5.0,5%,0.")
    asked = ("--labels", "x", "--language", "")
    assert "note: " in run("chart", picture, *asked).out
    assert "note: " not in run("chart", picture, *asked, "--quiet").out
    assert run("chart", picture, "--output", tmp_path / ("c" * 250 + ".csv")).code == 0
    ran = run("chart", picture, "--labels", "x; y", "--series", "s", "--language", "")
    assert "s\nx  7\ny  7" in ran.out.replace("   ", "")
    assert model.prompts[-1] == "what is the value of y for s?"


def test_the_name_of_the_output_says_its_form(run, picture, model, tmp_path: Path):
    starts = {"a.csv": "a", "a.html": "<table>", "a.json": "{", "a.txt": "a\\x1b  ", "a": "a"}
    for name, start in starts.items():
        assert run("table", picture, "--output", tmp_path / name).code == 0
        assert (tmp_path / name).read_text().startswith(start)
    assert (tmp_path / "a.csv").read_text() == "a\\x1b,=1+1,=1+1\n"
    assert run("chart", picture, "--output", tmp_path / "b.csv").code == 0
    assert (tmp_path / "b.csv").read_text().startswith("series,x,y,")
    for command, name in (("table", "a.xlsx"), ("chart", "a.html")):
        ran = run(command, picture, "--output", tmp_path / name)
        assert (ran.code, "Choose such a name" in ran.err) == (2, True)
    assert run("table", picture, "--output", tmp_path / "a.md", "--to", "html").code == 0


def test_a_chart_shows_labels_that_repeat(run, picture, model):
    model.reply = lambda prompt, image: "J 1 ; F 2 ; J 3" if prompt == "chart" else "7"
    assert run("chart", picture).out.split("\n")[1:4] == ["J  1", "F  2", "J  3"]


def test_parts_are_checked_before_the_model_is_loaded(run, picture, no_model):
    for options in (("--box", "1,2,3"), ("--box", "90,0,99,9"), ("--page", "2")):
        ran = run("table", picture, *options)
        assert ran.code == 2
        assert ran.err.startswith("error: ")
    assert run("chart", picture, "--output", "missing/folder.csv").code == 2
    assert run("table", "missing.pdf").code == 2


def test_a_box_is_in_pixels_of_the_image(run, picture, model):
    assert run("table", picture, "--box", "10, 0 30 20").code == 0
    assert model.sizes == [(20, 20)]


def test_the_predictor_reads_tables_and_charts() -> None:
    assert {"table", "chart"} <= set(vars(Predictor))
