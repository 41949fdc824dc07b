"""Reads the tables of the written facts that stand beside the checkout, where they do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def facts_text(shared_data: Path, file: str) -> str:
    """The whole file; skips the test where it is not there."""
    path = shared_data.parent / "facts" / file
    if not path.is_file():
        pytest.skip("the written facts are not beside this checkout")
    return path.read_text(encoding="utf-8")


def facts_table(shared_data: Path, file: str, heading: str) -> list[list[str]]:
    """The cells of the first table below the heading, row by row, without the head."""
    text = facts_text(shared_data, file)
    below = text[text.index(f"\n{heading}") :]
    found = re.search(r"(?:^\|.*\n?)+", below, flags=re.MULTILINE)
    assert found is not None, heading
    lines = found[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
