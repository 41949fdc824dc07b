"""Official files as plain values: JSON, JSON Lines, CSV, lists of lines, Parquet with images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from paligemma.data.source import read_text
from paligemma.errors import DataError, MissingExtraError


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DataError for a file that is not JSON."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"The file {str(path)!r} is not JSON: {error}. Download it again."
        ) from error


def read_json_lines(path: Path) -> list[Any]:
    """One value per line; empty lines are skipped. Raises DataError that names the line."""
    values = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(
                    f"Line {number} of {str(path)!r} is not JSON: {error}. Download it again."
                ) from error
    return values


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows by the names in the first line. Raises DataError for a file that is not CSV."""
    try:
        return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise DataError(
            f"The file {str(path)!r} is not CSV: {error}. Download it again."
        ) from error


def read_lines(path: Path) -> list[str]:
    """The lines without surrounding spaces, empty ones left out."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


class Row(NamedTuple):
    """One row: a function that returns the image's bytes, or None, and the other columns."""

    image: Callable[[], bytes] | None
    values: dict[str, Any]


def read_table(path: Path, column: str, *, color_only: bool = False) -> Iterator[Row]:
    """The rows of a Parquet file of the Hugging Face hub, in order, with the image in `column`.

    Images stay compressed in memory until they are used. `color_only` drops images with one
    channel. Raises MissingExtraError without pyarrow, KeyError for a missing column.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", f"Reading {path.name!r}") from error
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
        for values in batch.to_pylist():
            image = values.pop(column)
            data = image["bytes"] if image else None
            keep = data is not None and not (color_only and _is_gray(data))
            yield Row(partial(bytes, data) if keep else None, values)


def _is_gray(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return len(image.getbands()) == 1
