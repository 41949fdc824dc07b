"""The guides to small applications: their commands run, and print what is shown."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paligemma.cli.main import main
from tests.test_readme import assert_alike

REPOSITORY = Path(__file__).parents[1]
BLOCK = r"```(sh|python)\n(.*?)```(?:[^`]*?\n\n```text\n(.*?)```)?"


def run_line(line: str, codes: dict[str, int]) -> str:
    """What a command prints on stdout."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "paligemma":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
            main(arguments)
        assert (ended.value.code or 0) == codes.get(line, 0), line
        return printed.getvalue()
    assert program in ("python", "cp", "mkdir"), line
    command = [sys.executable if program == "python" else program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def follow(guide: str, codes: dict[str, int]) -> None:
    """Run everything in a guide and compare what it prints; `codes` are exit codes other than 0."""
    text = (REPOSITORY / "docs" / guide).read_text(encoding="utf-8")
    namespace: dict[str, object] = {}
    for language, code, expected in re.findall(BLOCK, text, re.DOTALL):
        printed = io.StringIO()
        if language == "sh":
            for line in filter(None, code.splitlines()):
                printed.write(run_line(line, codes))
        else:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, guide, "exec"), namespace)
        if expected:
            assert_alike(printed.getvalue(), expected)


def test_the_guide_to_alternative_texts(clone: Path) -> None:
    some_fail = [
        "paligemma alt site --quiet",
        "paligemma alt site --patch alt.patch",
        "paligemma alt site --write",
    ]
    follow("alt.md", dict.fromkeys(some_fail, 3))
    written = Path("site/index.html").read_bytes()
    shutil.copytree("examples/site", "patched/site")
    subprocess.run(["git", "apply", "../alt.patch"], check=True, cwd="patched")
    assert Path("patched/site/index.html").read_bytes() == written
    assert b'alt="Zwei K&#228;se und ein Schwein"' in Path("site/de.html").read_bytes()
    assert len(Path("alt.csv").read_text(encoding="utf-8").splitlines()) == 15


def test_the_guide_to_catalogs(clone: Path) -> None:
    follow("catalog.md", {})
    assert len(Path("toys.csv").read_text(encoding="utf-8").splitlines()) == 14
    assert len(Path("toys.jsonl").read_text(encoding="utf-8").splitlines()) == 14


def test_the_guide_to_searching(clone: Path) -> None:
    follow("search.md", {})
