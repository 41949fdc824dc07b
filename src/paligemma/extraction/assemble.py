"""Fields -> the object: assembled by us, validated by the schema, never completed by guessing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, TypeVar

from paligemma.extraction.result import plain_value
from paligemma.extraction.schema import Group, Leaf, Node, Schema, path_of

T = TypeVar("T")
Keys = tuple[str | int, ...]

_NOTHING = object()
_MAX_PROBLEM = 300


@dataclass(frozen=True, kw_only=True)
class Assembled(Generic[T]):
    """The object, or None with the reasons."""

    value: T | None
    problems: tuple[tuple[str, str], ...] = ()
    """(path, what is wrong); "" for the object as a whole."""
    dropped: tuple[Keys, ...] = ()
    """Optional values that the schema does not allow, which are left out of the object."""

    def problems_by(self, values: Iterable[Keys]) -> tuple[list[tuple[Keys, str]], list[str]]:
        """In words: the problems of these values, and those of the object."""
        keys_of = {path_of(keys): keys for keys in values}
        of_values: list[tuple[Keys, str]] = []
        of_object: list[str] = []
        for path, text in self.problems:
            if path in keys_of:
                keys = keys_of[path]
                left_out = ", and left out of the object" if keys in self.dropped else ""
                of_values.append((keys, f"not valid{left_out}: {text}"))
            else:
                of_object.append(f"{path}: {text}" if path else text)
        return of_values, of_object


def assemble(
    schema: Schema[T], values: Mapping[Keys, Any], lengths: Mapping[Keys, int]
) -> Assembled[T]:
    """Return the valid object that the values make. `lengths` has the number of items of each list.

    An optional value that the schema does not allow is left out, and the reason is a problem.
    """
    data = _built(schema.root, (), values, lengths, schema.model is not None)
    value, errors = _validated(schema, data)
    if value is not None:
        return Assembled(value=value)
    optional = {
        keys
        for keys in values
        if values[keys] is not None
        and any(keys == loc[: len(keys)] for loc, _ in errors)
        and _may_drop(schema, keys)
    }
    problems = tuple((path_of(loc) if loc else "", text) for loc, text in errors)
    if not optional:
        return Assembled(value=None, problems=problems)
    rest = {keys: None if keys in optional else value for keys, value in values.items()}
    data = _built(schema.root, (), rest, lengths, schema.model is not None)
    value, more = _validated(schema, data)
    more_problems = tuple((path_of(loc) if loc else "", text) for loc, text in more)
    return Assembled(
        value=value,
        problems=tuple(dict.fromkeys((*problems, *more_problems))),
        dropped=tuple(optional),
    )


def _may_drop(schema: Schema[Any], keys: Keys) -> bool:
    wanted = tuple("[]" if isinstance(key, int) else key for key in keys)
    return any(
        leaf.keys == wanted and (leaf.is_nullable or not leaf.is_required)
        for leaf in schema.leaves()
    )


def _built(
    node: Node, keys: Keys, values: Mapping[Keys, Any], lengths: Mapping[Keys, int], exact: bool
) -> Any:
    """The node's part of the object as JSON holds it; `_NOTHING` for what is left out.

    `exact`: amounts as text, which pydantic reads without rounding.
    """
    match node:
        case Leaf():
            value = values.get(keys)
            if value is not None:
                return _json_value(value, exact or node.is_amount_as_text)
            return None if node.is_nullable and node.is_required else _NOTHING
        case Group():
            parts = {
                str(child.keys[-1]): part
                for child in node.children
                if (part := _built(child, (*keys, child.keys[-1]), values, lengths, exact))
                is not _NOTHING
            }
            has_any = any(part not in (None, []) for part in parts.values())
            if not keys or has_any or (node.is_required and not node.is_nullable):
                return parts
            return None if node.is_required else _NOTHING
    count = lengths.get(keys, 0)
    if not count and not node.is_required:
        return _NOTHING
    if not count and node.is_nullable:
        return None
    items = (_built(node.item, (*keys, n), values, lengths, exact) for n in range(count))
    return [item for item in items if item is not _NOTHING]


def _json_value(value: Any, exact: bool) -> Any:
    if isinstance(value, Decimal) and not exact:
        return float(value)
    return plain_value(value)


def _validated(schema: Schema[Any], data: Any) -> tuple[Any, list[tuple[Keys, str]]]:
    """The object, or the errors, each with its place."""
    if schema.model is None:
        return _validated_json(schema, data)
    import json

    from pydantic import ValidationError

    try:
        # From JSON, so that strict models read dates and amounts too.
        return schema.model.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, [
            (tuple(e["loc"]), _message(e["msg"].removeprefix("Value error, ")))
            for e in error.errors(include_url=False, include_input=False, include_context=False)
        ]
    except Exception as error:  # what a validator of the user's own raises
        return None, [((), _message(f"the schema's validator failed: {type(error).__name__}"))]


def _validated_json(schema: Schema[Any], data: Any) -> tuple[Any, list[tuple[Keys, str]]]:
    import jsonschema

    validator = jsonschema.validators.extend(
        jsonschema.Draft202012Validator, {"pattern": _check_pattern}
    )(dict(schema.json_schema))
    errors = [
        (tuple(error.absolute_path), _message(error.message))
        for error in validator.iter_errors(data)
    ]
    return (None, errors) if errors else (data, [])


def _check_pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Any:
    """As jsonschema does, with an engine whose time does not explode."""
    from typing import Annotated

    import jsonschema
    from pydantic import StringConstraints, TypeAdapter, ValidationError

    if not isinstance(value, str):
        return
    try:
        TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)]).validate_python(value)
    except ValidationError:
        yield jsonschema.ValidationError("does not match the pattern of the schema")


def _message(text: str) -> str:
    return text if len(text) <= _MAX_PROBLEM else f"{text[:_MAX_PROBLEM]}..."
