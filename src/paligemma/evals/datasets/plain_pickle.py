"""Reads a Python pickle that holds nothing but lists, dicts, tuples, numbers and texts.

The annotations of RefCOCO are published as pickles. A pickle is a program for a small machine with
a stack; this one knows the instructions that build plain data, refuses every other before it reads
what belongs to it, looks no name up and calls nothing, so a file cannot run code here. Nor can a
small file make much of itself: what it would come to with every part written out is counted before
anyone gets it. Instructions: `pickletools` of the standard library, and its readers of arguments.
"""

from __future__ import annotations

import codecs
import io
import pickletools
from pathlib import Path
from typing import Any

from paligemma.errors import DataError

_NO_EFFECT = {"PROTO", "FRAME"}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OTHERS = {
    "MARK", "EMPTY_LIST", "EMPTY_DICT", "LIST", "TUPLE", "DICT", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "POP",
    "STOP",
}  # fmt: skip
_KNOWN = _NO_EFFECT | _VALUES | _CONSTANTS.keys() | _TUPLES.keys() | _OTHERS
_INSTRUCTIONS = {op.code.encode("latin-1"): op for op in pickletools.opcodes}

# Several times what 50,000 references with three phrases each take, which are as many as RefCOCO
# has: 25 MB and six million instructions.
_MAX_BYTES = 500_000_000
_MAX_VALUES = 20_000_000
_MAX_CHARACTERS = 500_000_000
_MAX_DEPTH = 100
_SHOWN = 200


def read_plain_pickle(path: Path) -> Any:
    """The value in the file; texts of Python 2 are read as Latin-1.

    Raises DataError for anything but plain data, and for a damaged file.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise DataError(
                f"The file {str(path)!r} has {size} bytes, and at most {_MAX_BYTES} are read; "
                "take the official one."
            )
        value = _run(io.BytesIO(path.read_bytes()))
        if isinstance(value, list | tuple | dict):
            _check_size(value)
    except _NotPlainError as error:
        raise DataError(
            f"The file {str(path)!r} wants to do more than hold data ({error}): lists, dicts, "
            "tuples, numbers and texts are read, and nothing else; take the official one."
        ) from None
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:_SHOWN]
        raise DataError(
            f"The file {str(path)!r} is damaged, or no pickle ({type(error).__name__}: {reason}); "
            "download it anew."
        ) from error
    return value


class _NotPlainError(Exception):
    """An instruction that is none of plain data, by its name."""


def _run(file: io.BytesIO) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stack under each open mark
    memo: dict[int, Any] = {}
    for _ in range(_MAX_VALUES):
        name, argument = _next(file)
        if name in _NO_EFFECT:
            continue
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("LIST", "TUPLE", "DICT", "APPENDS", "SETITEMS"):
            values, stack = stack, below.pop()
            if name == "LIST":
                stack.append(values)
            elif name == "TUPLE":
                stack.append(tuple(values))
            elif name == "DICT":
                stack.append(_with_pairs({}, values))
            elif name == "APPENDS":
                _the(list, stack).extend(values)
            else:
                _with_pairs(_the(dict, stack), values)
        elif name in _TUPLES:
            stack.append(tuple(stack.pop() for _ in range(_TUPLES[name]))[::-1])
        elif name == "APPEND":
            value = stack.pop()
            _the(list, stack).append(value)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _with_pairs(_the(dict, stack), [key, value])
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "POP":
            stack.pop()
        else:  # STOP
            (value,) = stack
            if below or file.read(1):
                raise ValueError("something is left over behind the end of the value")
            return value
    raise ValueError(f"there are more than {_MAX_VALUES} instructions")


def _next(file: io.BytesIO) -> tuple[str, Any]:
    """The next instruction with its argument, which is read only where the name is known."""
    code = file.read(1)
    instruction = _INSTRUCTIONS.get(code)
    if instruction is None:
        raise ValueError(f"the instruction {code!r} is unknown" if code else "the file ends early")
    if instruction.name not in _KNOWN:
        raise _NotPlainError(instruction.name)
    if instruction.name == "STRING":  # whose own reader takes ASCII only
        written = pickletools.read_stringnl(file, decode=False)
        return "STRING", codecs.escape_decode(written)[0].decode("latin-1")
    argument = instruction.arg
    return instruction.name, None if argument is None else argument.reader(file)


def _the(kind: type, stack: list[Any]) -> Any:
    """What lies on top, where it is of this kind."""
    if type(stack[-1]) is not kind:
        raise TypeError(f"a {kind.__name__} should be there, and a {type(stack[-1]).__name__} is")
    return stack[-1]


def _with_pairs(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """With keys and values by turns. Keys are scalars: to hash nested tuples can take for ever."""
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | int | float | None):
            raise TypeError(f"a {type(key).__name__} is the key of a dict")
        target[key] = value
    return target


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
