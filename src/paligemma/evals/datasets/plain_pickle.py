"""Reads a pickle of plain data: lists, dicts, tuples, numbers and strings.

The annotations of RefCOCO are published as pickles. The standard library reads them here with every
lookup of a class or function refused, so that a file cannot run code. A small file cannot expand
into a huge value either: the size of the expanded value is checked.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, Never

from paligemma.errors import DataError

# Several times the size of RefCOCO: 50,000 references with three phrases each.
_MAX_BYTES = 500_000_000
_MAX_VALUES = 20_000_000
_MAX_CHARACTERS = 500_000_000
_MAX_DEPTH = 100
_SHOWN = 200


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
        raise DataError(
            f"The file {str(path)!r} contains more than plain data ({str(error)[:_SHOWN]}), and "
            "may be malicious. Use the official file."
        ) from None
    except OSError as error:
        raise DataError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from None
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        reason = f"{type(error).__name__}: {error}"[:_SHOWN]
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
