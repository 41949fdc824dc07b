"""Official files to plain values: JSON, JSON Lines, CSV, lists of lines. Knows no benchmark."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from paligemma.data.source import read_text
from paligemma.errors import DataError


def read_json(path: Path) -> Any:
    """Raises DataError for what is no JSON."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"The file {str(path)!r} is not JSON: {error}. Download it anew."
        ) from error


def read_json_lines(path: Path) -> list[Any]:
    """One value a line; empty lines are passed over. Raises DataError that names the line."""
    values = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(
                    f"Line {number} of {str(path)!r} is not JSON: {error}. Download it anew."
                ) from error
    return values


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows by the names in the first line. Raises DataError for what is no text, or no CSV."""
    try:
        return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise DataError(f"The file {str(path)!r} is not CSV: {error}. Download it anew.") from error


def read_lines(path: Path) -> list[str]:
    """Without spaces around, without empty lines."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
