"""The threat model: each of its sentences names rows, and each row has tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROW = re.compile(r"[A-I][0-9]{1,2}")


def defended() -> list[str]:
    """The sentences of the sections between who is trusted and what is not defended."""
    sections = TEXT.partition("## What comes in")[2].partition("## What is not defended")[0]
    return [line[2:] for line in sections.splitlines() if line.startswith("- ")]


def test_each_sentence_names_its_rows() -> None:
    sentences = defended()
    assert len(sentences) > 30
    for sentence in sentences:
        assert re.search(rf"\({ROW.pattern}(, {ROW.pattern})*\)", sentence), sentence


def rows() -> list[str]:
    return sorted({row for sentence in defended() for row in ROW.findall(sentence)})


@pytest.mark.parametrize("row", rows())
def test_each_row_has_a_test_named_by_it(row: str) -> None:
    name = re.compile(rf"def test_([a-z][0-9]+_)*{row.lower()}_")
    files = (ROOT / "tests" / "server").rglob("test_*.py")
    assert any(name.search(file.read_text(encoding="utf-8")) for file in files)


def test_every_important_row_is_defended() -> None:
    wanted = {f"A{n}" for n in (1, 2, 3, 4, 5, 6, 7, 9, 10, 12)}
    wanted |= {f"B{n}" for n in range(1, 9)} | {f"C{n}" for n in range(1, 14)}
    wanted |= {f"D{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12)} | {"I1", "I2", "I3", "I4", "I6"}
    assert wanted <= set(rows())
