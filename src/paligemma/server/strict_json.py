"""Strict JSON for untrusted input: whatever the standard leaves undefined is refused.

Refused are bytes that are not UTF-8, duplicate keys, NaN and infinities, numbers outside the range
of a float, nesting too deep for the parser, lone surrogates, and more values than any request
needs.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

_LONG_INTEGER = 30
_MAX_COMMAS = 4096  # parsing blocks all threads, and so does validating a million values
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The text is not valid JSON or is refused. The message never quotes it."""


def read_json(data: bytes) -> Any:
    """Parse JSON. Raises JsonError.

    >>> read_json(b'{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    """
    if data.count(b",") > _MAX_COMMAS:
        raise JsonError(f"It has more than {_MAX_COMMAS} commas; send fewer values.")
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
        raise JsonError("Nested too deeply.") from None
    return value


def write_json(value: Any) -> bytes:
    """UTF-8 JSON on one line. Raises ValueError for NaN and infinities."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise JsonError("Duplicate key.")
    return result


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
            raise JsonError("A string contains a lone surrogate.") from None
