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
    sections = TEXT.partition("## Input")[2].partition("## What is not defended")[0]
    return [line[2:] for line in sections.splitlines() if line.startswith("- ")]


def test_each_sentence_names_its_rows() -> None:
    sentences = defended()
    assert len(sentences) > 30
    for sentence in sentences:
        assert re.search(rf"\({ROW.pattern}(, {ROW.pattern})*\)", sentence), sentence


def rows() -> list[str]:
    return sorted({row for sentence in defended() for row in ROW.findall(sentence)})


WANTED = [
    *(f"A{number}" for number in (1, 2, 3, 4, 5, 6, 7, 9, 10, 12)),
    *(f"B{number}" for number in range(1, 9)),
    *(f"C{number}" for number in range(1, 16)),
    *(f"D{number}" for number in (*range(1, 11), 12)),
    *(f"I{number}" for number in (1, 2, 3, 4, 5, 6, 7)),
]
"""Rows without which the server would not be what it is said to be."""
ELSEWHERE = ["E1", "E2", "E3", "E4", "E6", "E7", "E8", "E10", "I8"]
"""Of numbers and files: the parts below the server are held to these."""


def has_test(row: str, folder: Path) -> bool:
    name = re.compile(rf"def test_([a-z][0-9]+_)*{row.lower()}_")
    return any(name.search(file.read_text("utf-8")) for file in folder.rglob("test_*.py"))


@pytest.mark.parametrize("row", sorted({*rows(), *WANTED}))
def test_each_row_has_a_test_named_by_it(row: str) -> None:
    assert has_test(row, ROOT / "tests" / "server")


@pytest.mark.parametrize("row", ELSEWHERE)
def test_each_row_below_the_server_has_a_test_named_by_it(row: str) -> None:
    assert has_test(row, ROOT / "tests")


def test_every_important_row_is_defended() -> None:
    assert set(WANTED) <= set(rows())
