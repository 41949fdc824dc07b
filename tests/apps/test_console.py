"""What a terminal, a pipe and a file get to see of text in any language."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from paligemma.cli.console import print_table, print_text, warnings_as_notes
from paligemma.escaping import visible
from paligemma.results import one_line

WRITTEN_AS_THEY_ARE = (
    "می\u200cروم",  # Persian: "I go", joined with ZWNJ
    "क्\u200dष",  # Hindi: a half form, with ZWJ
    "👨\u200d👩\u200d👧",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # England, in tags
    "deux chats\u00a0!",
    "1\u202f000",
    "二匹の猫\u3000と犬",
    "שלום\u200f!",
    "Donau\u00addampfer",
    "e\u0301",
)
ESCAPED = {
    "a\x1b[2Jb": "a\\x1b[2Jb",
    "a\rb": "a\\rb",
    "\x9b31m": "\\x9b31m",
    "\x7f": "\\x7f",
    "abc\u202egpj.exe": "abc\\u202egpj.exe",
    "\u2066x\u2069": "\\u2066x\\u2069",
    "a\u2028b": "a\\u2028b",
    "\udcff": "\\udcff",
    "\ufffe": "\\ufffe",
}


@pytest.mark.parametrize("text", WRITTEN_AS_THEY_ARE)
def test_text_of_every_language_is_printed_as_it_is(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visible(text) == text
    print_text(text)
    print_table(None, ("label",), [(text,)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == text
    assert text in [line.strip() for line in lines[1:]]


@pytest.mark.parametrize(("text", "expected"), ESCAPED.items())
def test_what_could_change_the_terminal_is_escaped(text: str, expected: str) -> None:
    assert visible(text) == expected


@pytest.mark.parametrize("text", WRITTEN_AS_THEY_ARE)
def test_a_label_keeps_its_spaces_on_one_line(text: str) -> None:
    assert one_line(f" {text}\n\t {text} ") == f"{text} {text}"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
@pytest.mark.parametrize(
    "writer", ["print_text({})", "print_json({})", "print_table(None, ('a',), [({},)])"]
)
def test_a_letter_that_the_output_cannot_encode_is_escaped(writer: str, encoding: str) -> None:
    text = "schön 青蛙"
    code = (
        "from paligemma.cli.console import *; "
        f"escape_what_cannot_be_encoded(); {writer.format(repr(text))}"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=120,
        check=True,
    )
    expected = text.encode(encoding, errors="backslashreplace")
    if "json" in writer and encoding != "utf-8":  # JSON has escapes of its own
        expected = text.encode("ascii", errors="backslashreplace").replace(b"\\xf6", b"\\u00f6")
    assert expected in ran.stdout


def test_the_name_of_a_file_stays_on_its_line() -> None:
    assert visible("new\nline.png") == "new\\nline.png"


def test_a_warning_is_a_note_once(capsys: pytest.CaptureFixture[str]) -> None:
    for is_quiet, expected in ((False, "it is cut\n"), (True, "")):
        with warnings_as_notes(is_quiet=is_quiet):
            for _ in range(2):
                warnings.warn("it is cut", stacklevel=1)
        assert capsys.readouterr().err == expected
