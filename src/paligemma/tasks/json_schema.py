"""JSON schemas as a grammar needs them: every value has a largest length.

`bounded_schema` returns the schema for llguidance. What a schema leaves open gets a limit:
100 characters for a text, 50 items for a list, 15 digits before and 6 after the point for a number.
Objects have only the properties that the schema names, in its order.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from paligemma.errors import OptionError

MAX_DEPTH = 64
MAX_PARTS = 1000
_MAX_CHARACTERS = 100
_MAX_ITEMS = 50
_LARGEST_NUMBER = 10**15 - 1
_SMALLEST_STEP = 1e-6
_LARGEST_SIZE = 4096
_NUMBER_BYTES = len(f"-{_LARGEST_NUMBER}.123456")
_BYTES_PER_CHARACTER = 4  # of UTF-8; an escape has 2
_FORMATS = ("date", "time", "date-time", "email", "uri", "uuid")

_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")

# Keywords that a grammar cannot hold an answer to. Others, such as titles, say nothing of it.
_REFUSED = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"),
    *("patternProperties", "propertyNames", "contains", "minContains", "maxContains"),
    *("uniqueItems", "prefixItems", "unevaluatedItems", "unevaluatedProperties"),
    *("minProperties", "maxProperties", "$dynamicRef", "$recursiveRef"),
)


class Bounded(NamedTuple):
    """A schema without open ends, and the bytes of its longest JSON."""

    schema: dict[str, Any]
    num_bytes: int


def bounded_schema(schema: Mapping[str, Any], read_pattern: Callable[[str], str]) -> Bounded:
    """Return the schema with a limit for everything.

    `read_pattern` returns the form of a pattern that the grammar takes, or raises OptionError.

    Raises OptionError, with the path of the part, for what a grammar cannot hold an answer to:
    recursion, references to other documents, values of any type, some keywords.

    >>> bounded_schema({"type": "string"}, str)
    Bounded(schema={'type': 'string', 'maxLength': 100}, num_bytes=402)
    """
    return _Reader(schema, read_pattern).read(schema, "#", ())


class _Reader:
    def __init__(self, root: Mapping[str, Any], read_pattern: Callable[[str], str]) -> None:
        self._root = root
        self._read_pattern = read_pattern
        self._num_read = 0

    def read(self, schema: object, path: str, refs: tuple[str, ...]) -> Bounded:
        if not isinstance(schema, Mapping):
            raise _refused(path, "it allows any value; give it a type")
        if path.count("/") > 2 * MAX_DEPTH:
            raise _refused(f"{path[:80]}...", f"it is nested deeper than {MAX_DEPTH} levels")
        self._num_read += 1
        if self._num_read > MAX_PARTS:
            raise _TooLargeError(f"The JSON schema has more than {MAX_PARTS} parts.")
        for key in _REFUSED:
            if schema.get(key) not in (None, False):
                raise _refused(f"{path}/{key}", "a grammar cannot hold an answer to it")
        if "$ref" in schema:
            return self._reference(schema, path, refs)
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                return self._combination(schema, key, path, refs)
        if "const" in schema or "enum" in schema:
            return _choice([schema["const"]] if "const" in schema else schema["enum"], path)
        kind = schema.get("type")
        if isinstance(kind, Sequence) and not isinstance(kind, str):
            parts = [{**schema, "type": part} for part in kind]
            return self._any_of(parts, f"{path}/type", refs)
        return self._typed(kind, schema, path, refs)

    def _typed(
        self, kind: object, schema: Mapping[str, Any], path: str, refs: tuple[str, ...]
    ) -> Bounded:
        match kind:
            case "object":
                return self._object(schema, path, refs)
            case "array":
                return self._array(schema, path, refs)
            case "string":
                return self._string(schema, path)
            case "integer" | "number":
                return _number(schema, kind, path)
            case "boolean" | "null":
                return Bounded({"type": kind}, len("false"))
            case None:
                raise _refused(path, "it allows any value; give it a type")
        raise _refused(f"{path}/type", f"{kind!r} is not a type of JSON")

    def _reference(self, schema: Mapping[str, Any], path: str, refs: tuple[str, ...]) -> Bounded:
        address = schema["$ref"]
        if not isinstance(address, str) or not address.startswith("#"):
            raise _refused(f"{path}/$ref", f"{address!r} is not in this schema; nothing is fetched")
        if address in refs:
            raise _refused(f"{path}/$ref", f"{address!r} contains itself, without end")
        target: Any = self._root
        for part in address.removeprefix("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                raise _refused(f"{path}/$ref", f"{address!r} does not exist")
            target = target[name]
        return self.read(target, path, (*refs, address))

    def _combination(
        self, schema: Mapping[str, Any], key: str, path: str, refs: tuple[str, ...]
    ) -> Bounded:
        parts = schema[key]
        if not isinstance(parts, Sequence) or not parts:
            raise _refused(f"{path}/{key}", "it must be a list of schemas")
        if key == "allOf" and len(parts) > 1:
            raise _refused(f"{path}/{key}", "write several schemas for one value as one")
        return self._any_of(parts, f"{path}/{key}", refs)

    def _any_of(self, parts: Sequence[object], path: str, refs: tuple[str, ...]) -> Bounded:
        """Alternatives that a grammar cannot have are left out, unless there is no other."""
        bounded = []
        error: OptionError | None = None
        for index, part in enumerate(parts):
            try:
                bounded.append(self.read(part, f"{path}/{index}", refs))
            except _TooLargeError:
                raise
            except OptionError as refused:
                error = error or refused
        if not bounded:
            raise error or _refused(path, "it has no alternative")
        if len(bounded) == 1:
            return bounded[0]
        schemas = [part.schema for part in bounded]
        return Bounded({"anyOf": schemas}, max(part.num_bytes for part in bounded))

    def _object(self, schema: Mapping[str, Any], path: str, refs: tuple[str, ...]) -> Bounded:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            raise _refused(f"{path}/properties", "the object has no properties")
        if not all(map(_can_be_written, properties)):
            raise _refused(f"{path}/properties", "a name has control characters")
        read = {
            name: self.read(value, f"{path}/properties/{name}", refs)
            for name, value in properties.items()
        }
        required = schema.get("required", [])
        if not isinstance(required, list | tuple):
            raise _refused(f"{path}/required", "it must be a list of names")
        bounded = {
            "type": "object",
            "properties": {name: value.schema for name, value in read.items()},
            "required": [name for name in read if name in required],
            "additionalProperties": False,
        }
        # {"name":value,"name":value}
        num_bytes = 1 + sum(len(json.dumps(n)) + 2 + v.num_bytes for n, v in read.items())
        return Bounded(bounded, num_bytes)

    def _array(self, schema: Mapping[str, Any], path: str, refs: tuple[str, ...]) -> Bounded:
        item = self.read(schema.get("items"), f"{path}/items", refs)
        least = _size(schema, "minItems", 0, path)
        most = _size(schema, "maxItems", max(_MAX_ITEMS, least), path)
        bounded = {"type": "array", "items": item.schema, "minItems": least, "maxItems": most}
        return Bounded(bounded, 2 + most * (item.num_bytes + 1))

    def _string(self, schema: Mapping[str, Any], path: str) -> Bounded:
        least = _size(schema, "minLength", 0, path)
        most = _size(schema, "maxLength", max(_MAX_CHARACTERS, least), path)
        bounded: dict[str, Any] = {"type": "string", "maxLength": most}
        if least:
            bounded["minLength"] = least
        if schema.get("format") in _FORMATS:
            bounded["format"] = schema["format"]
        if "pattern" in schema:
            try:
                bounded["pattern"] = self._read_pattern(schema["pattern"])
            except OptionError as error:
                raise _refused(f"{path}/pattern", str(error).rstrip(".")) from error
        return Bounded(bounded, 2 + _BYTES_PER_CHARACTER * most)


def _size(schema: Mapping[str, Any], key: str, default: int, path: str) -> int:
    """Return a number of characters or items, at most as many as an answer may have."""
    size = schema.get(key, default)
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size == size // 1:
        raise _refused(f"{path}/{key}", f"{size!r} is not a whole number")
    return min(int(size), _LARGEST_SIZE)


def _number(schema: Mapping[str, Any], kind: str, path: str) -> Bounded:
    limits = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    bounded: dict[str, Any] = {"type": kind}
    for name in limits:
        if name not in schema:
            continue
        limit = schema[name]
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not _is_finite(limit):
            raise _refused(f"{path}/{name}", f"{limit!r} is not a number")
        bounded[name] = limit
    lowest = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    highest = schema.get("maximum", schema.get("exclusiveMaximum", 0))
    if "minimum" not in bounded and "exclusiveMinimum" not in bounded:
        bounded["minimum"] = min(-_LARGEST_NUMBER, highest)
    if "maximum" not in bounded and "exclusiveMaximum" not in bounded:
        bounded["maximum"] = max(_LARGEST_NUMBER, lowest)
    if kind == "number":
        bounded.setdefault("multipleOf", _SMALLEST_STEP)
    return Bounded(bounded, _NUMBER_BYTES)


def _choice(values: Sequence[Any], path: str) -> Bounded:
    if not isinstance(values, list | tuple) or not values:
        raise _refused(f"{path}/enum", "it must be a list of values")
    try:
        written = {json.dumps(value): value for value in values if _can_be_written(value)}
    except (RecursionError, TypeError, ValueError) as error:
        raise _refused(path, f"a value is not JSON: {error}") from error
    if not written:
        raise _refused(path, "its values have control characters")
    return Bounded({"enum": list(written.values())}, max(map(len, written)))


def _can_be_written(value: object) -> bool:
    """Whether the grammar's escapes are enough for all texts in the value."""
    if isinstance(value, Mapping):
        return all(_can_be_written(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple):
        return all(map(_can_be_written, value))
    return not (isinstance(value, str) and _UNWRITABLE.search(value))


def _is_finite(number: float) -> bool:
    """Whether it is finite as a float64, which JSON numbers are read as."""
    return -sys.float_info.max <= number <= sys.float_info.max


class _TooLargeError(OptionError):
    """Leaving out an alternative does not help."""


def _refused(path: str, reason: str) -> OptionError:
    return OptionError(f"The JSON schema cannot be a grammar: {path}: {reason}.")
