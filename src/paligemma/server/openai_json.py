"""Answers as JSON: `response_format`, and the arguments of a tool that must be called.

The model does not write JSON. The fields of the client's schema are filled from the typed result
by their names and types: the text of an answer, or labels, boxes and scores of objects. Boxes are
[x1, y1, x2, y2] in pixels of the image.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

from paligemma.results import Detection, Objects, Result
from paligemma.server.errors import ApiError

_MAX_DEPTH = 24
_OBJECT = re.compile(r'\{\s*"')
_MAX_STARTS = 200  # of JSON objects in a text
_MAX_CHARACTERS = 200_000
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SCORES = {"score", "confidence", "probability", "certainty"}
_CORNERS = (
    {"x1", "xmin", "x_min", "x0", "left", "x"},
    {"y1", "ymin", "y_min", "y0", "top", "y"},
    {"x2", "xmax", "x_max", "right"},
    {"y2", "ymax", "y_max", "bottom"},
    {"width", "w"},
    {"height", "h"},
)
"""Names of x1, y1, x2, y2, width and height."""


@dataclass(frozen=True, kw_only=True)
class JsonFormat:
    """The form of a JSON answer."""

    schema: dict[str, Any] | None  # None: any object
    tool: str | None = None
    """The tool whose arguments the answer is."""

    def write(self, result: Result) -> str:
        """The result as JSON. Raises ApiError if the schema has fields that it cannot fill."""
        if self.schema is None:
            return json.dumps(_plain(result), ensure_ascii=False)
        try:
            value = _Filler(self.schema).value(self.schema, "", result, 0)
        except _UnfilledError:
            raise ApiError(
                400,
                "unsupported_schema",
                "The JSON schema has required fields that this answer cannot fill. Objects have "
                "label, box (x1, y1, x2, y2) and score; other answers are one text.",
                param="response_format",
            ) from None
        return json.dumps(value, ensure_ascii=False)


def read_format(document: dict[str, Any]) -> JsonFormat | None:
    """The form that a chat's body asks for; None for text. Raises ApiError."""
    tool = _forced_tool(document)
    if tool is not None:
        parameters = tool.get("parameters")
        schema = parameters if isinstance(parameters, dict) else {}
        return JsonFormat(schema=schema, tool=str(tool.get("name")))
    wanted: Any = document.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return JsonFormat(schema=None)
    inner = wanted.get("json_schema") if isinstance(wanted, dict) else None
    form = inner.get("schema") if isinstance(inner, dict) else None
    if kind != "json_schema" or not isinstance(form, dict):
        raise ApiError(
            400,
            "invalid_field",
            "response_format must have the type text, json_object, or json_schema with a schema.",
            param="response_format",
        )
    return JsonFormat(schema=form)


def schema_in(text: str) -> dict[str, Any] | None:
    """The last JSON schema of an object in a text.

    >>> schema_in('Write JSON: {"properties": {"count": {"type": "integer"}}}')
    {'properties': {'count': {'type': 'integer'}}}
    """
    schemas = [value for value in _json_in(text)[0] if _is_schema(value)]
    return schemas[-1] if schemas else None


def without_json(text: str) -> str:
    """The text with "JSON" in place of each object.

    >>> without_json('Fill {"a": 1}, please.')
    'Fill JSON, please.'
    """
    return _json_in(text)[1]


def _is_schema(value: dict[str, Any]) -> bool:
    properties = value.get("properties")
    return isinstance(properties, dict) and all(isinstance(p, dict) for p in properties.values())


def _json_in(text: str) -> tuple[list[dict[str, Any]], str]:
    """The JSON objects in a text, and the text around them with "JSON" in their place."""
    values: list[dict[str, Any]] = []
    around, end = "", 0
    if len(text) > _MAX_CHARACTERS:
        return values, text
    for start in itertools.islice(_OBJECT.finditer(text), _MAX_STARTS):
        if start.start() < end:
            continue
        try:
            value, next_end = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        values.append(value)
        around += text[end : start.start()] + "JSON"
        end = next_end
    return values, around + text[end:]


def _forced_tool(document: dict[str, Any]) -> dict[str, Any] | None:
    """The function that must be called; None if the model may answer with text."""
    choice, tools = document.get("tool_choice"), document.get("tools")
    if isinstance(choice, dict) and isinstance(allowed := choice.get("allowed_tools"), dict):
        choice = allowed.get("mode")
    if choice in (None, "none", "auto"):
        return None
    listed = [t.get("function") for t in tools or [] if isinstance(t, dict)]
    functions = [f for f in listed if isinstance(f, dict)]
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        functions = [f for f in functions if f.get("name") == choice["function"].get("name")]
    if len(functions) != 1:
        raise ApiError(
            400,
            "unsupported_parameter",
            "These models do not choose between tools. Name one of the tools in tool_choice.",
            param="tool_choice",
        )
    return functions[0]


def _plain(result: Result) -> dict[str, Any]:
    if not isinstance(result, Objects):
        return {"answer": getattr(result, "text", "")}
    objects = [
        {"label": obj.label, "box_xyxy": list(obj.box_xyxy), "score": obj.score} for obj in result
    ]
    return {"objects": objects}


class _UnfilledError(Exception):
    """A part of the schema for which there is no value."""


class _Filler:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def value(self, schema: Any, name: str, source: object, depth: int) -> Any:
        """A value for a part of the schema. Raises _UnfilledError."""
        schema = self._resolved(schema, depth)
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(options := schema.get(key), list):
                return self._first(options, name, source, depth)
        kinds = schema.get("type")
        if isinstance(kinds, list):
            options = [{**schema, "type": kind} for kind in kinds]
            return self._first(options, name, source, depth)
        if "const" in schema:
            return schema["const"]
        if isinstance(choices := schema.get("enum"), list):
            return _choice(choices, source)
        match kinds or ("object" if "properties" in schema else None):
            case "object":
                return self._object(schema, source, depth)
            case "array":
                return self._array(schema, name, source, depth)
            case "string" | "number" | "integer" | "boolean" as kind:
                return _scalar(kind, name.lower(), source)
            case "null":
                return None
        raise _UnfilledError

    def _resolved(self, given: Any, depth: int) -> dict[str, Any]:
        if depth > _MAX_DEPTH or not isinstance(given, dict):
            raise _UnfilledError
        schema: dict[str, Any] = given
        for _ in range(_MAX_DEPTH):
            if not isinstance(reference := schema.get("$ref"), str):
                return schema
            part: Any = self._root
            for name in reference.removeprefix("#").split("/")[1:]:
                part = part.get(name) if isinstance(part, dict) else None
            if not isinstance(part, dict):
                raise _UnfilledError
            schema = part
        raise _UnfilledError

    def _first(self, options: list[Any], name: str, source: object, depth: int) -> Any:
        nulls = [o for o in options if isinstance(o, dict) and o.get("type") == "null"]
        for option in options:
            if option not in nulls:
                try:
                    return self.value(option, name, source, depth + 1)
                except _UnfilledError:
                    continue
        if nulls:
            return None
        raise _UnfilledError

    def _object(self, schema: dict[str, Any], source: object, depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return _plain(source) if isinstance(source, Result) else {}
        required = schema.get("required")
        filled: dict[str, Any] = {}
        for name, part in properties.items():
            try:
                filled[name] = self.value(part, name, source, depth + 1)
            except _UnfilledError:
                if isinstance(required, list) and name in required:
                    raise
        return filled

    def _array(self, schema: dict[str, Any], name: str, source: object, depth: int) -> list[Any]:
        items = self._resolved(schema.get("items") or schema.get("prefixItems", [{}])[0], depth)
        if isinstance(source, Objects):
            return [self.value(items, name, obj, depth + 1) for obj in source]
        if isinstance(source, Detection):
            if items.get("type") not in ("number", "integer"):
                raise _UnfilledError
            return [_rounded(items["type"], edge) for edge in source.box_xyxy]
        texts = [part.strip() for part in re.split(r"[,;\n]", _text(source)) if part.strip()]
        return [self.value(items, name, text, depth + 1) for text in texts]


def _text(source: object) -> str:
    if isinstance(source, Detection):
        return source.label
    if isinstance(source, Objects):
        return ", ".join(dict.fromkeys(obj.label for obj in source))
    return source if isinstance(source, str) else str(getattr(source, "text", ""))


def _choice(choices: list[Any], source: object) -> Any:
    text = _text(source).strip().casefold()
    for choice in choices:
        if str(choice).casefold() == text:
            return choice
    if text in ("yes", "no") and (text == "yes") in choices:
        return text == "yes"
    raise _UnfilledError


def _scalar(kind: str, name: str, source: object) -> Any:
    if kind == "string":
        return _text(source)
    if kind == "boolean":
        return _truth(source)
    if isinstance(source, Objects):
        return len(source.objects)
    if isinstance(source, Detection):
        return _rounded(kind, _measure(name, source))
    text = _text(source).strip().lower()
    if (number := _NUMBER.search(text)) is not None:
        return _rounded(kind, float(number[0]))
    if text in _WORDS:
        return _WORDS.index(text)
    raise _UnfilledError


def _truth(source: object) -> bool:
    if isinstance(source, Objects):
        return bool(source.objects)
    if isinstance(source, Detection):
        raise _UnfilledError
    text = _text(source).strip().lower().rstrip(".!")
    if text in ("yes", "true", "no", "false"):
        return text in ("yes", "true")
    raise _UnfilledError


def _measure(name: str, detection: Detection) -> float:
    if name in _SCORES:
        return detection.score
    x1, y1, x2, y2 = detection.box_xyxy
    for names, value in zip(_CORNERS, (x1, y1, x2, y2, x2 - x1, y2 - y1), strict=True):
        if name in names:
            return value
    raise _UnfilledError


def _rounded(kind: str, value: float) -> float | int:
    return round(value) if kind == "integer" else value
