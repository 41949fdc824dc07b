"""Reads a Python pickle that holds nothing but lists, dicts, tuples, numbers and texts.

The annotations of RefCOCO are published as pickles. A pickle is a program for a small machine;
this one knows its instructions that build plain data, looks every other one up nowhere and calls
nothing, so a file cannot run code here. Instructions: `pickletools` of the standard library.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

from paligemma.errors import DataError

_MARK = object()
_NO_EFFECT = {"PROTO", "FRAME"}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(path: Path) -> Any:
    """The value in the file; texts of Python 2 are read as Latin-1.

    Raises DataError for anything but plain data, and for a damaged file.
    """
    try:
        return _run(path.read_bytes())
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{str(path)!r}: {error}") from error
        raise DataError(
            f"The file {str(path)!r} is damaged ({type(error).__name__}: {error}). "
            "Download it anew."
        ) from error


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def above_mark() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
        values = stack[at + 1 :]
        del stack[at:]
        return values

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _NO_EFFECT:
            continue
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": [], "EMPTY_DICT": {}, "EMPTY_TUPLE": ()}[name])
        elif name == "LIST":
            stack.append(above_mark())
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in _TUPLES:
            values = stack[-_TUPLES[name] :]
            del stack[-_TUPLES[name] :]
            stack.append(tuple(values))
        elif name == "DICT":
            stack.append(_pairs(above_mark()))
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            values = above_mark()
            stack[-1].extend(values)
        elif name == "SETITEM":
            value = stack.pop()
            key = stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            values = above_mark()
            stack[-1].update(_pairs(values))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "POP":
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        else:
            raise DataError(
                f"this pickle wants to do more than hold data ({name}). Only lists, dicts, "
                "numbers and texts are read. Is it the official file?"
            )
    raise ValueError("the file ends early")


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))
