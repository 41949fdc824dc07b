"""Reads a pickle that holds nothing but lists, dicts, tuples, numbers and strings.

The annotations of RefCOCO are published as pickles. The standard library's reader builds them here
with every look-up of a class or function refused, so that a file cannot run code. A small file
cannot unfold into a huge value either: its size with every part written out is checked.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, Never

from paligemma.errors import DataError

# Several times what 50,000 references with three phrases each take, which is the size of RefCOCO.
_MAX_BYTES = 500_000_000
_MAX_VALUES = 20_000_000
_MAX_CHARACTERS = 500_000_000
_MAX_DEPTH = 100
_SHOWN = 200


class _NotPlainError(pickle.UnpicklingError):
    """The pickle asks for more than plain data."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Never:
        raise _NotPlainError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: object) -> Never:
        raise _NotPlainError("it refers to an object outside of the file")


def read_plain_pickle(path: Path) -> Any:
    """The value in the file; strings of Python 2 are read as Latin-1.

    Raises DataError for anything but plain data, and for a damaged file.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise DataError(
                f"The file {str(path)!r} has {size} bytes, and at most {_MAX_BYTES} are read; "
                "take the official one."
            )
        value = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin-1").load()
        if isinstance(value, list | tuple | dict):
            _check_size(value)
        return value
    except _NotPlainError as error:
        raise DataError(
            f"The file {str(path)!r} wants to do more than hold data ({str(error)[:_SHOWN]}), and "
            "may come from an attacker. Take the official one."
        ) from None
    except OSError as error:
        raise DataError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from None
    except DataError:
        raise
    except Exception as error:  # a damaged pickle fails in any way the reader can
        reason = f"{type(error).__name__}: {error}"[:_SHOWN]
        raise DataError(
            f"The file {str(path)!r} is damaged, or no pickle ({reason}). Take the official one."
        ) from None


def _check_size(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> None:
    """A part counts as often as it stands somewhere: ten lists, each twice in the next, are 1024.

    Raises ValueError where there is too much of it, or a part that holds itself.
    """
    level: list[tuple[Any, int]] = [(value, 1)]  # with how often it stands there
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
            raise ValueError("its parts come to more than there is in any official file")
        if not inside:
            return
        level = list(inside.values())
    raise ValueError(f"its parts are nested more than {_MAX_DEPTH} deep")
