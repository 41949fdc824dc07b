"""Official files as plain values: JSON, JSON Lines, CSV, lists, Parquet with images, pickles.

A pickle may hold lists, dicts, tuples, numbers and strings only (the annotations of RefCOCO). The
standard library reads it with every lookup of a class or function refused, so that a file cannot
run code. A small file cannot expand into a huge value either: the expanded size is checked.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Never, TypeVar

from PIL import Image

from paligemma.data.source import read_text
from paligemma.errors import DataError, MissingExtraError

Key = TypeVar("Key")
Value = TypeVar("Value")


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


def group_values(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """The values of each key, in order.

    >>> group_values([("a", 1), ("b", 2), ("a", 3)])
    {'a': [1, 3], 'b': [2]}
    """
    groups: dict[Key, list[Value]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


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


# Several times the size of RefCOCO: 50,000 references with three phrases each.
_MAX_BYTES = 500_000_000
_MAX_VALUES = 20_000_000
_MAX_CHARACTERS = 500_000_000
_MAX_DEPTH = 100
_SHOWN_CHARACTERS = 200


class _NotPlainError(pickle.UnpicklingError):
    """The pickle needs more than plain data."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Never:
        raise _NotPlainError(f"it needs {module}.{name}")

    def persistent_load(self, pid: object) -> Never:
        raise _NotPlainError("it refers to an object outside the file")


def read_plain_pickle(path: Path) -> Any:
    """The value in the file; strings of Python 2 are read as Latin-1.

    Raises DataError for anything but plain data, and for a damaged file.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise DataError(
                f"The file {str(path)!r} has {size} bytes; the limit is {_MAX_BYTES}. Use the "
                "official file."
            )
        value = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin-1").load()
        if isinstance(value, list | tuple | dict):
            _check_size(value)
        return value
    except _NotPlainError as error:
        reason = str(error)[:_SHOWN_CHARACTERS]
        raise DataError(
            f"The file {str(path)!r} contains more than plain data ({reason}), and may be "
            "malicious. Use the official file."
        ) from None
    except OSError as error:
        raise DataError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from None
    except (DataError, MemoryError, RecursionError):
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        reason = f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
        raise DataError(
            f"The file {str(path)!r} is damaged or not a pickle ({reason}). Use the official file."
        ) from None


def _check_size(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> None:
    """A shared part counts each time it occurs: ten lists, each twice in the next, count 1024.

    Raises ValueError for a value that is too large, or contains itself.
    """
    level: list[tuple[Any, int]] = [(value, 1)]  # with the number of occurrences
    num_values = num_characters = 0
    for _ in range(_MAX_DEPTH):
        inside: dict[int, tuple[Any, int]] = {}
        for holder, times in level:
            is_dict = isinstance(holder, dict)
            for part in (*holder, *holder.values()) if is_dict else holder:
                num_values += times
                if isinstance(part, str):
                    num_characters += times * len(part)
                elif isinstance(part, list | tuple | dict):
                    inside[id(part)] = part, times + inside.get(id(part), (part, 0))[1]
        if num_values > _MAX_VALUES or num_characters > _MAX_CHARACTERS:
            raise ValueError("its expanded value is larger than any official file")
        if not inside:
            return
        level = list(inside.values())
    raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
