"""JSON from strangers: what the standard leaves open is refused, never guessed.

Refused: bytes that are not UTF-8, keys given twice, NaN and infinities, numbers beyond a float,
nesting too deep for the parser, halves of surrogate pairs, more values than any request needs.
Knows no fields.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

_LONG_INTEGER = 30
_MAX_COMMAS = 4096
"""Parsing holds all threads up, and so does saying what is wrong with each of a million values."""
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The text is not JSON, or JSON of a kind that is refused; the message quotes none of it."""


def read_json(data: bytes) -> Any:
    """The value that the bytes stand for. Raises JsonError.

    >>> read_json(b'{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    """
    if data.count(b",") > _MAX_COMMAS:
        raise JsonError(f"It has more than {_MAX_COMMAS} commas: so many values are not read.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"It is not UTF-8 at byte {error.start}.") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
        if _ESCAPED_SURROGATE.search(text):
            _check_surrogates(value)
    except json.JSONDecodeError as error:
        raise JsonError(f"It is not JSON at character {error.pos}.") from None
    except RecursionError:
        raise JsonError("It is nested too deep.") from None
    return value


def write_json(value: Any) -> bytes:
    """UTF-8 on one line. Raises ValueError for NaN and infinities."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JsonError("A key stands twice in one object.")
    return found


def _constant(name: str) -> NoReturn:
    raise JsonError("NaN and Infinity are not JSON.")


def _float(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise JsonError("A number is too large.")
    return value


def _int(digits: str) -> int:
    if len(digits) > _LONG_INTEGER:
        raise JsonError("A number is too long.")
    return int(digits)


def _check_surrogates(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_surrogates(key)
            _check_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            _check_surrogates(item)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise JsonError("A text holds half of a surrogate pair.") from None
