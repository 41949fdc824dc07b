"""The guides about prescriptions and own forms: their commands run, and print what is shown."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from paligemma.cli.main import main
from paligemma.extraction import list_questions
from tests.test_readme import assert_alike

REPOSITORY = Path(__file__).parents[1]
BLOCK = r"```(sh|python|json)\n(.*?)```(?:\n\n```text\n(.*?)```)?"
WORDS = ("NORA", "STATIN", "PUREVA", "WOOL", "CLAY", "COIFT")
"""What is on examples/prescription.png and read from examples/clinic-1.png and clinic-2.png."""


def run_line(line: str) -> str:
    """What a command prints on stdout."""
    program, *arguments = shlex.split(line)
    if program == "python":
        command = [sys.executable, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert program in ("paligemma", "pip"), line
    printed = io.StringIO()
    if program == "paligemma":
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code, line
    return printed.getvalue()


def follow(guide: str, replaced: dict[str, str]) -> None:
    """Run everything in a guide, with some options replaced, and compare what it prints."""
    text = (REPOSITORY / "docs" / guide).read_text(encoding="utf-8")
    for before, after in replaced.items():
        assert before in text
        text = text.replace(before, after)
    for language, code, expected in re.findall(BLOCK, text, re.DOTALL):
        printed = io.StringIO()
        if language == "json" and guide == "prescriptions.md":
            Path("refill.json").write_text(code, encoding="utf-8")
        elif language == "json":
            assert json.loads(code)["fields"]
        elif language == "sh":
            for line in filter(None, code.splitlines()):
                printed.write(run_line(line))
        elif code.startswith("# refill.py\n"):
            Path("refill.py").write_text(code, encoding="utf-8")
        else:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, guide, "exec"), {})
        if expected and not replaced:
            assert_alike(printed.getvalue(), expected)


def test_the_guide_to_prescriptions(
    clone: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    temporary = clone / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with caplog.at_level(logging.DEBUG):
        follow("prescriptions.md", {})
    assert sorted(path.name for path in Path("read").iterdir()) == [
        "clinic-2.html",
        "clinic-2.json",
        "fields.csv",
    ]
    assert Path("boxes.png").is_file()
    assert not list(temporary.iterdir())
    assert not [word for word in WORDS if word in caplog.text]


def test_the_guide_to_own_forms_with_few_steps(clone: Path) -> None:
    few = {"--steps 600": "--steps 2", "--count 60": "--count 2", "--count 40": "--count 1"}
    follow("own-forms.md", few)
    lines = Path("forms/train.jsonl").read_text(encoding="utf-8").splitlines()
    asked = {json.loads(line)["prefix"] for line in lines}
    schema = json.loads(Path("examples/receipt.json").read_text(encoding="utf-8"))
    assert asked == {prompt for _, prompt in list_questions(schema)}
    for name in ("before/report.json", "after/report.json", "read/000.html"):
        assert Path(name).is_file()


def test_no_text_of_a_document_is_logged_left_behind_or_in_errors(
    clone: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a reader that reads the words, and a file that then cannot be written."""
    from paligemma.cli.model_options import LoadOptions
    from tests.extraction.scripted import Fact, ScriptedAsker

    class Reader(ScriptedAsker):
        note = None

    facts = [
        Fact("What is the name of the patient?", "NORA"),
        Fact("Which medicines are mentioned in the prescription?", "STATIN"),
        Fact("What is the date of the prescription?", "PUREVA"),
    ]
    reader = Reader(facts)
    monkeypatch.setattr(LoadOptions, "load", lambda self: reader)
    (clone / "cut.pdf").write_bytes(b"%PDF-1.7\n")
    temporary = clone / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (clone / "out" / "fields.csv").mkdir(parents=True)
    arguments = "extract examples/prescription.png cut.pdf --schema prescription --out out"
    with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit):
        main([*arguments.split(), "--to", "csv"])
    assert reader.asked
    printed = capsys.readouterr()
    said = caplog.text + printed.out + printed.err
    assert "cut.pdf" in said
    assert "fields.csv" in said
    assert not [word for word in WORDS if word in said]
    assert not list(temporary.iterdir())
    assert not [path for path in (clone / "out").rglob("*") if path.is_file()]
