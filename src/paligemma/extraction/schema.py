"""Schemas: a pydantic model or a JSON schema becomes a tree of leaves, groups and lists.

    class Medicine(BaseModel):                      Group
        name: str                                     List  medicines
        dose: str | None                                Group  medicines[]
    class Prescription(BaseModel):                        Leaf  medicines[].name
        medicines: list[Medicine]                         Leaf  medicines[].dose

A pydantic model is read through its own JSON schema. What cannot be asked for is refused here,
before a model is loaded, with the place of the key. Nothing is fetched, and no code is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar, overload

from paligemma.errors import MissingExtraError, OptionError, counted

T = TypeVar("T")

Kind = Literal[
    "text", "integer", "number", "amount", "boolean", "date", "time", "datetime", "choice"
]

MAX_DEPTH = 16
MAX_NODES = 500
"""Values, groups and lists."""
MAX_TEXT = 100
"""Characters of a text whose schema sets no limit."""
LARGEST_TEXT = 400
MAX_ITEMS = 50
"""Items of a list whose schema sets no limit."""
LARGEST_LIST = 200
MAX_QUESTION = 300
MAX_PATTERN = 500
_MAX_OBJECTS = 2_500
_MAX_KEYS = 25_000
_MAX_REFS = 2 * MAX_DEPTH
_LARGEST_NUMBER = 10**300

_ANNOTATIONS = frozenset(
    {
        *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description"),
        *("default", "examples", "deprecated", "readOnly", "writeOnly"),
    }
)
_OWN_KEYS = frozenset({"question", "second_question", "detect", "names"})
_KEYS: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems", "uniqueItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format", "enum", "const"}),
    "number": frozenset(
        {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
        | {"enum", "const"}
    ),
    "boolean": frozenset({"enum", "const"}),
}
_KEYS["integer"] = _KEYS["number"]
_FORMATS: dict[str, Kind] = {
    "date": "date",
    "time": "time",
    "date-time": "datetime",
    "decimal": "amount",
    "iban": "text",
    "vat": "text",
    "mrz": "text",
    "email": "text",
    "uri": "text",
}


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One value of the object, and how it is asked for."""

    path: str
    """Such as "total" or "medicines[].dose"."""
    keys: tuple[str, ...]
    """The path as a sequence of keys, with "[]" for the items of a list."""
    kind: Kind
    is_required: bool = True
    """Whether the object is invalid without it."""
    is_nullable: bool = False
    """Whether None stands for a value that the document does not have."""
    description: str | None = None
    question: str | None = None
    second_question: str | None = None
    detect: str | bool = True
    """What to search for as evidence, with {value} in it; False: nothing."""
    names: bool = False
    """Whether the list of names that the user gives is for this leaf."""
    max_length: int = MAX_TEXT
    pattern: str | None = None
    format: str | None = None
    choices: tuple[Any, ...] = ()
    has_default: bool = False
    """Whether the object holds a value of the schema's where the document has none."""
    is_amount_as_text: bool = False
    """Whether the object holds the amount as a text, such as "1234.50"."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """An object with several values."""

    path: str
    keys: tuple[str, ...]
    is_required: bool = True
    is_nullable: bool = False
    description: str | None = None
    children: tuple[Node, ...] = ()


@dataclass(frozen=True, kw_only=True)
class List:
    """A list of values, or of objects with values of their own."""

    path: str
    keys: tuple[str, ...]
    item: Leaf | Group
    is_required: bool = True
    is_nullable: bool = False
    description: str | None = None
    question: str | None = None
    second_question: str | None = None
    max_items: int = MAX_ITEMS

    @property
    def key_leaf(self) -> Leaf:
        """The value that tells the items apart, which the question about the list asks for."""
        return self.item if isinstance(self.item, Leaf) else _key_leaf(self.item)


Node = Leaf | Group | List


@dataclass(frozen=True, kw_only=True)
class Schema(Generic[T]):
    """What `read_schema` makes of a model class or a JSON schema."""

    name: str
    """Such as "Invoice"."""
    root: Group
    notes: tuple[str, ...] = ()
    """Limits that were set because the schema leaves them open."""
    model: type[T] | None = None
    """The pydantic model, where there is one."""
    json_schema: Mapping[str, Any] = field(repr=False)

    @property
    def document(self) -> str:
        """What questions call the document: "prescription", "id card"."""
        return words_of_name(self.name) or "document"

    def leaves(self) -> Iterator[Leaf]:
        """All leaves, in the order of the schema."""
        return (node for node in self.nodes() if isinstance(node, Leaf))

    def nodes(self, start: Node | None = None) -> Iterator[Node]:
        """The tree in the order of the schema, each node before what is in it."""
        node = start or self.root
        yield node
        children: Sequence[Node] = ()
        if isinstance(node, Group):
            children = node.children
        elif isinstance(node, List):
            children = (node.item,)
        for child in children:
            yield from self.nodes(child)


@overload
def read_schema(schema: type[T] | Schema[T]) -> Schema[T]: ...
@overload
def read_schema(schema: Mapping[str, Any] | str) -> Schema[Any]: ...
def read_schema(schema: Any) -> Schema[Any]:
    """Return the tree of a pydantic model, a JSON schema, or a built-in schema by its name.

    Raises OptionError, with the place of the key, for what cannot be asked for: a keyword that is
    unknown or not supported, recursion, a $ref to elsewhere, more than 16 levels or 500 values.

    >>> [leaf.path for leaf in read_schema("receipt").leaves()][:2]
    ['merchant', 'date']
    """
    if isinstance(schema, Schema):
        return schema
    if isinstance(schema, str):
        from paligemma.extraction.builtin import builtin_schema

        return read_schema(builtin_schema(schema))
    if isinstance(schema, type):
        return _of_model(schema)
    if not isinstance(schema, Mapping):
        raise OptionError(
            f"The schema is of type {type(schema).__name__}; expected a pydantic model, a JSON "
            "schema, or the name of a built-in schema."
        )
    name = schema.get("title")
    if isinstance(name, str) and len(name) > MAX_QUESTION:
        raise _refused("#/title", f"expected at most {MAX_QUESTION} characters")
    return _of_json(schema, name if isinstance(name, str) and name.strip() else "document", None)


def _of_model(model: type[T]) -> Schema[T]:
    try:
        import pydantic
    except ModuleNotFoundError as error:
        raise MissingExtraError("pydantic", "guided", "Extracting fields") from error
    if not issubclass(model, pydantic.BaseModel):
        raise OptionError(
            f"The schema {model.__name__} is not a pydantic model. Derive it from "
            "pydantic.BaseModel."
        )
    try:
        json_schema = model.model_json_schema()
    except (pydantic.errors.PydanticUserError, RecursionError) as error:
        raise OptionError(f"The schema {model.__name__} cannot be used: {error}") from error
    return _of_json(json_schema, model.__name__, model)


def _of_json(schema: Mapping[str, Any], name: str, model: type[T] | None) -> Schema[T]:
    _check_size(schema)
    _check_form(schema)
    reader = _Reader(schema)
    root = reader.node(schema, _Place(pointer="#", keys=(), is_required=True))
    if not isinstance(root, Group):
        raise _refused("#", "the schema must be an object with properties")
    if not root.children:
        raise _refused("#/properties", "the object has no properties")
    return Schema(name=name, root=root, notes=reader.notes(), model=model, json_schema=dict(schema))


def words_of_name(name: str) -> str:
    """Return the words of a name as a person writes them.

    >>> words_of_name("invoiceNumber"), words_of_name("VAT_id"), words_of_name("id-card")
    ('invoice number', 'VAT id', 'id card')
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+", " ", name)
    words = [w if w.isupper() and len(w) > 1 else w[:1].lower() + w[1:] for w in spaced.split()]
    return " ".join(words)


def path_of(keys: Sequence[str | int]) -> str:
    """Return keys as a path.

    >>> path_of(("medicines", 0, "dose")), path_of(("a.b", "[]"))
    ('medicines[0].dose', '["a.b"][]')
    """
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        elif key == "[]":
            path += key
        elif re.fullmatch(r"\w[\w -]*", key):
            path += f".{key}" if path else key
        else:
            path += f"[{json.dumps(key, ensure_ascii=False)}]"
    return path


def _refused(pointer: str, reason: str) -> OptionError:
    shown = pointer if len(pointer) <= 200 else f"{pointer[:200]}..."
    return OptionError(f"The schema cannot be used: {shown}: {reason}.")


def _check_size(schema: object) -> None:
    """Raises OptionError for more than takes a moment to check, and for what JSON cannot hold.

    Without recursion, which a schema of depth 10,000 would use up.
    """
    level: list[tuple[object, str]] = [(schema, "#")]
    num_objects = num_keys = 0
    # A level of the object takes up to three of JSON: properties, the key, items.
    for _ in range(4 * MAX_DEPTH + 8):
        below: list[tuple[object, str]] = []
        for value, pointer in level:
            children: Sequence[tuple[object, object]] = ()
            if isinstance(value, Mapping):
                num_objects += 1
                children = list(value.items())
                _check_names(value, pointer)
            elif isinstance(value, list | tuple):
                children = list(enumerate(value))
            elif isinstance(value, int | float):
                _check_number(value, pointer)
            num_keys += len(children)
            if num_objects > _MAX_OBJECTS or num_keys > _MAX_KEYS:
                raise _refused(
                    "#", f"it has more than {_MAX_OBJECTS:,} objects or {_MAX_KEYS:,} keys"
                )
            below += [(child, f"{pointer}/{key}") for key, child in children]
        if not below:
            return
        level = below
    raise _refused(level[0][1], f"it is nested deeper than {MAX_DEPTH} levels")


def _check_names(schema: Mapping[Any, Any], pointer: str) -> None:
    for key in schema:
        if not isinstance(key, str):
            raise _refused(pointer, f"the key {key!r} is not a text")
        if re.search("[\ud800-\udfff]", key):
            raise _refused(pointer, f"the key {key!a} cannot be written as UTF-8")


def _check_number(value: float, pointer: str) -> None:
    if not abs(value) <= _LARGEST_NUMBER:  # nor NaN
        raise _refused(pointer, "the number is not finite, or too large")


def _check_form(schema: Mapping[str, Any]) -> None:
    """Raises OptionError for keywords with values of the wrong kind."""
    try:
        from jsonschema import Draft202012Validator, FormatChecker
        from jsonschema.exceptions import SchemaError
    except ModuleNotFoundError as error:
        raise MissingExtraError("jsonschema", "guided", "Extracting fields") from error
    try:
        # Patterns are checked one by one, as only some are grammars.
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(formats=()))
    except SchemaError as error:
        pointer = "/".join(["#", *map(str, error.absolute_path)])
        raise _refused(pointer, error.message.splitlines()[0][:200]) from error


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where in the schema a node is."""

    pointer: str
    keys: tuple[str, ...]
    is_required: bool
    refs: tuple[str, ...] = ()
    """The definitions that the node is in."""

    def below(self, *parts: str | int) -> str:
        return "/".join([self.pointer, *map(str, parts)])


class _Reader:
    """Reads one schema into nodes, and notes which limits were set."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._open_texts: list[str] = []
        self._open_lists: list[str] = []
        self._cut: list[str] = []
        self._num_nodes = 0

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self._open_texts:
            notes.append(
                f"The schema sets no length for {_listed(self._open_texts)}: "
                f"at most {MAX_TEXT} characters are read."
            )
        if self._open_lists:
            notes.append(
                f"The schema sets no number of items for {_listed(self._open_lists)}: "
                f"at most {MAX_ITEMS} are read."
            )
        if self._cut:
            notes.append(
                f"The limits of {_listed(self._cut)} are larger than what is read: at most "
                f"{LARGEST_TEXT} characters of a text, and {LARGEST_LIST} items of a list."
            )
        return tuple(notes)

    def node(self, given: object, place: _Place) -> Node:
        if not isinstance(given, Mapping):
            raise _refused(place.pointer, "expected an object that describes a value")
        if len(place.keys) > MAX_DEPTH:
            raise _refused(place.pointer, f"it is nested deeper than {MAX_DEPTH} levels")
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise _refused(place.pointer, f"the schema has more than {MAX_NODES} values")
        schema, place = self._resolved(given, place)
        is_nullable = False
        while not _says_its_kind(schema):  # a $ref may be to alternatives again
            schema, is_null = self._without_null(schema, place)
            is_nullable |= is_null
            schema, place = self._resolved(schema, place)
        schema, is_null = _without_null_choice(schema)
        is_nullable |= is_null
        kind = _type_of(schema, place)
        self._check_keys(schema, kind, place)
        match kind:
            case "object":
                return self._group(schema, place, is_nullable)
            case "array":
                return self._list(schema, place, is_nullable)
        return self._leaf(schema, kind, place, is_nullable)

    def _resolved(
        self, schema: Mapping[str, Any], place: _Place
    ) -> tuple[Mapping[str, Any], _Place]:
        """The schema with what its $ref names, whose own description says nothing of this use."""
        while "$ref" in schema or "allOf" in schema:
            if "allOf" in schema:
                parts = schema["allOf"]
                if len(parts) != 1 or not isinstance(parts[0], Mapping):
                    raise _refused(place.below("allOf"), "allOf with several parts")
                rest = {key: value for key, value in schema.items() if key != "allOf"}
                schema = {**parts[0], **rest}
                continue
            name = schema["$ref"]
            target = self._target(name, place)
            if name in place.refs:
                raise _refused(place.below("$ref"), f"{name} contains itself")
            if len(place.refs) >= _MAX_REFS:
                raise _refused(place.below("$ref"), f"more than {_MAX_REFS} $ref in a row")
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            target = {
                key: value
                for key, value in target.items()
                if key != "description" or target.get("type") == "object"
            }
            schema = {**target, **rest}
            place = replace(place, refs=(*place.refs, name))
        return schema, place

    def _target(self, name: object, place: _Place) -> Mapping[str, Any]:
        where = place.below("$ref")
        if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
            raise _refused(where, "a $ref must be to this schema: #/$defs/NAME. Nothing is fetched")
        target: Any = self._schema
        for part in name.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                raise _refused(where, "the schema has no such part")
            target = target[part]
        if not isinstance(target, Mapping):
            raise _refused(where, "the $ref is to something that describes no value")
        return target

    def _without_null(
        self, schema: Mapping[str, Any], place: _Place
    ) -> tuple[Mapping[str, Any], bool]:
        """The schema of the value itself, and whether it may be null."""
        kinds = schema.get("type")
        if isinstance(kinds, list):
            others = [kind for kind in kinds if kind != "null"]
            if len(others) != 1:
                raise _refused(place.below("type"), "several types; give one, or one and null")
            return {**schema, "type": others[0]}, len(others) < len(kinds)
        for key in ("anyOf", "oneOf"):
            if key not in schema:
                continue
            rest = {name: value for name, value in schema.items() if name != key}
            for part in schema[key]:
                if not isinstance(part, Mapping):
                    raise _refused(place.below(key), "an alternative is not an object")
            options = [self._resolved(part, place)[0] for part in schema[key]]
            others = [part for part in options if part.get("type") != "null"]
            is_nullable = len(others) < len(options)
            if len(others) == 1:
                # Resolved once more by the caller, which notes the definition.
                (part,) = [p for p in schema[key] if p.get("type") != "null"]
                return {**part, **rest}, is_nullable
            if sorted(str(part.get("type")) for part in others) == ["number", "string"]:
                number = next(part for part in others if part.get("type") == "number")
                return {**number, **rest, "format": "decimal"}, is_nullable
            if choices := _choices_of(others):
                return {**rest, "enum": choices}, is_nullable
            raise _refused(place.below(key), "alternatives; only one kind of value, or null")
        return schema, False

    def _check_keys(self, schema: Mapping[str, Any], kind: str, place: _Place) -> None:
        allowed = _KEYS[kind] | _ANNOTATIONS | _OWN_KEYS | {"type"}
        if kind == "number" and schema.get("format") == "decimal":
            allowed |= {"format"}
        for key in schema:
            if key not in allowed:
                known = any(key in keys for keys in _KEYS.values())
                reason = f"it does not apply to {kind}" if known else "this keyword is not known"
                raise _refused(place.below(key), reason)
        for key, types in (
            ("question", str),
            ("second_question", str),
            ("detect", str | bool),
            ("names", bool),
        ):
            if key in schema and not isinstance(schema[key], types):
                raise _refused(place.below(key), f"the value is {type(schema[key]).__name__}")
        for key in ("question", "second_question", "description", "detect"):
            self._check_question(schema.get(key), place.below(key))

    def _check_question(self, text: object, pointer: str) -> None:
        from paligemma.answering import CONTROL_WORDS

        if not isinstance(text, str) or pointer.count("/") == 1:  # that of the schema itself
            return
        if not text.strip() or len(text) > MAX_QUESTION:
            raise _refused(pointer, f"expected 1 to {MAX_QUESTION} characters")
        if any(word in text for word in CONTROL_WORDS):
            raise _refused(pointer, "it contains a control word of the model")

    def _group(self, schema: Mapping[str, Any], place: _Place, is_nullable: bool) -> Group:
        extra = schema.get("additionalProperties")
        if isinstance(extra, Mapping):
            raise _refused(
                place.below("additionalProperties"),
                "names of properties cannot be asked for; use a list of objects",
            )
        required = schema.get("required", ())
        properties = schema.get("properties", {})
        unknown = next((key for key in required if key not in properties), None)
        if unknown is not None:
            raise _refused(place.below("required"), f"{unknown!r} is not among the properties")
        if any(len(key) > MAX_QUESTION for key in properties):
            raise _refused(
                place.below("properties"), f"a name has more than {MAX_QUESTION} characters"
            )
        children = tuple(
            self.node(
                child,
                replace(
                    place,
                    pointer=place.below("properties", key),
                    keys=(*place.keys, key),
                    is_required=key in required,
                ),
            )
            for key, child in properties.items()
        )
        return Group(
            path=path_of(place.keys),
            keys=place.keys,
            is_required=place.is_required,
            is_nullable=is_nullable,
            description=schema.get("description"),
            children=children,
        )

    def _list(self, schema: Mapping[str, Any], place: _Place, is_nullable: bool) -> List:
        if "items" not in schema:
            raise _refused(place.below("items"), "it is missing, so that nothing can be asked for")
        path = path_of(place.keys)
        limit = _limit(schema, "maxItems")
        if limit is None:
            self._open_lists.append(path)
        elif limit > LARGEST_LIST:
            self._cut.append(path)
        inner = replace(
            place, pointer=place.below("items"), keys=(*place.keys, "[]"), is_required=True
        )
        max_items = min(MAX_ITEMS if limit is None else limit, LARGEST_LIST)
        _check_least(schema, "minItems", max_items, place)
        item = self.node(schema["items"], inner)
        if isinstance(item, List):
            raise _refused(inner.pointer, "a list of lists; use a list of objects")
        if isinstance(item, Group) and not any(isinstance(c, Leaf) for c in item.children):
            raise _refused(inner.pointer, "the items have no value of their own to ask for")
        return List(
            path=path,
            keys=place.keys,
            item=item,
            is_required=place.is_required,
            is_nullable=is_nullable,
            description=schema.get("description"),
            question=schema.get("question"),
            second_question=schema.get("second_question"),
            max_items=max_items,
        )

    def _leaf(
        self, schema: Mapping[str, Any], json_type: str, place: _Place, is_nullable: bool
    ) -> Leaf:
        path = path_of(place.keys)
        kind = _kind_of(schema, json_type, place)
        limit, pattern = _limit(schema, "maxLength"), schema.get("pattern")
        if kind == "text":
            if limit is None and pattern is None and not schema.get("format"):
                self._open_texts.append(path)
            elif limit is not None and limit > LARGEST_TEXT:
                self._cut.append(path)
        max_length = min(MAX_TEXT if limit is None else limit, LARGEST_TEXT)
        _check_least(schema, "minLength", max_length, place)
        if pattern is not None:
            _check_pattern(pattern, max_length, place.below("pattern"))
        choices = schema.get("enum", [schema["const"]] if "const" in schema else ())
        return Leaf(
            path=path,
            keys=place.keys,
            kind=kind,
            is_required=place.is_required,
            is_nullable=is_nullable,
            description=schema.get("description"),
            question=schema.get("question"),
            second_question=schema.get("second_question"),
            detect=schema.get("detect", True),
            names=schema.get("names", False),
            max_length=max_length,
            pattern=pattern,
            format=schema.get("format"),
            choices=tuple(choices),
            has_default=schema.get("default") is not None,
            is_amount_as_text=kind == "amount" and json_type == "string",
        )


def _says_its_kind(schema: Mapping[str, Any]) -> bool:
    """Whether it is neither one of several types nor one of several alternatives."""
    return not isinstance(schema.get("type"), list) and not {"anyOf", "oneOf"} & set(schema)


def _without_null_choice(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    choices = schema.get("enum")
    if not isinstance(choices, list) or None not in choices:
        return schema, False
    return {**schema, "enum": [choice for choice in choices if choice is not None]}, True


def _type_of(schema: Mapping[str, Any], place: _Place) -> str:
    kind = schema.get("type")
    if kind is None:
        if "enum" in schema or "const" in schema:
            return "string"
        if "properties" in schema:
            return "object"
        raise _refused(place.below("type"), "it is missing, so that any value would do")
    if kind not in _KEYS:
        raise _refused(place.below("type"), f"values of type {kind!r} cannot be asked for")
    return str(kind)


def _kind_of(schema: Mapping[str, Any], json_type: str, place: _Place) -> Kind:
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        if not choices or not all(isinstance(c, str | int | float) for c in choices):
            raise _refused(place.pointer, "expected texts or numbers to choose from")
        if len(choices) > 200 or any(len(str(c)) > MAX_TEXT or not str(c) for c in choices):
            raise _refused(
                place.pointer, f"expected at most 200 choices of 1 to {MAX_TEXT} letters"
            )
        return "boolean" if all(isinstance(c, bool) for c in choices) else "choice"
    match json_type:
        case "boolean":
            return "boolean"
        case "integer":
            return "integer"
        case "number":
            return "amount" if schema.get("format") == "decimal" else "number"
    name = schema.get("format")
    if name is None:
        return "text"
    if name not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise _refused(place.below("format"), f"{name!r} is not known; expected one of {known}")
    return _FORMATS[name]


def _limit(schema: Mapping[str, Any], key: str) -> int | None:
    """A limit as a whole number: JSON schemas may write 5 as 5.0."""
    return None if key not in schema else int(schema[key])


def _check_least(schema: Mapping[str, Any], key: str, most: int, place: _Place) -> None:
    if key in schema and schema[key] > most:
        raise _refused(
            place.below(key), f"{schema[key]} is more than what is read, which is {most} at most"
        )


def _choices_of(parts: Sequence[Mapping[str, Any]]) -> list[Any]:
    choices: list[Any] = []
    for part in parts:
        if "const" in part:
            choices.append(part["const"])
        elif "enum" in part:
            choices += part["enum"]
        else:
            return []
    return choices


def _check_pattern(pattern: str, max_length: int, pointer: str) -> None:
    from paligemma.extraction.patterns import bounded_pattern
    from paligemma.tasks.text_grammar import check_pattern

    if len(pattern) > MAX_PATTERN:
        raise _refused(pointer, f"expected at most {MAX_PATTERN} characters")
    try:
        check_pattern(bounded_pattern(pattern, max_length))
    except OptionError as error:
        raise _refused(pointer, str(error).rstrip(".")) from error


def _key_leaf(group: Group) -> Leaf:
    leaves = [child for child in group.children if isinstance(child, Leaf)]
    named = [leaf for leaf in leaves if leaf.keys[-1] in ("name", "description", "label", "title")]
    texts = [leaf for leaf in leaves if leaf.kind == "text" and leaf.is_required]
    return (named or texts or [leaf for leaf in leaves if leaf.kind == "text"] or leaves)[0]


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:5])
    return shown if len(paths) <= 5 else f"{shown} and {counted(len(paths) - 5, 'other')}"
