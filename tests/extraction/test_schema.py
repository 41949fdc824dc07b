"""Schemas: what is read from models and JSON schemas, what is asked, and what is refused."""

from __future__ import annotations

import datetime
import enum
import math
import re
import typing
from decimal import Decimal
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

import paligemma
from paligemma.errors import OptionError
from paligemma.extraction import ExtractOptions, Iban, list_questions, read_schema
from paligemma.extraction.builtin import BUILTIN
from paligemma.extraction.patterns import bounded_pattern, longest, pattern_of
from paligemma.extraction.questions import same_questions
from paligemma.extraction.schema import Leaf, List
from paligemma.tasks.text_grammar import TextGrammar, longest_match


def chained(length: int) -> dict[str, Any]:
    """A schema whose definitions refer to each other, one after the other."""
    links = {f"D{n}": {"$ref": f"#/$defs/D{n + 1}"} for n in range(length)}
    links[f"D{length}"] = {"type": "string"}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/D0"}}, "$defs": links}


class Color(enum.Enum):
    """Colors of cars."""

    RED = "red"
    BLUE = "blue"


class Owner(BaseModel):
    name: str
    born: datetime.date | None = None


class Part(BaseModel):
    label: str = Field(max_length=20)
    prices: list[Decimal] = Field(default_factory=list, max_length=3)
    weight: float | None = Field(None, description="weight of {label}")


class Car(BaseModel):
    plate: str = Field(pattern="^[A-Z]{1,3}-[0-9]+$", max_length=10)
    color: Color
    kind: Literal["car", "van"] | None = None
    seats: int = Field(ge=1)
    sold: bool = False
    price: Decimal | None = None
    at: datetime.time | None = None
    owner: Owner
    account: Iban | None = None
    parts: list[Part] = Field(max_length=5)
    stamps: list[str] = Field(default_factory=list, description="list of stamps")
    note: str | None = Field(
        None,
        json_schema_extra={
            "question": "Is there a note?",
            "second_question": "note",
            "detect": False,
        },
    )


def test_a_model_becomes_a_tree() -> None:
    schema = read_schema(Car)
    leaves = {leaf.path: leaf for leaf in schema.leaves()}
    assert {path: leaf.kind for path, leaf in leaves.items()} == {
        "plate": "text",
        "color": "choice",
        "kind": "choice",
        "seats": "integer",
        "sold": "boolean",
        "price": "amount",
        "at": "time",
        "owner.name": "text",
        "owner.born": "date",
        "account": "text",
        "parts[].label": "text",
        "parts[].prices[]": "amount",
        "parts[].weight": "number",
        "stamps[]": "text",
        "note": "text",
    }
    assert leaves["color"].choices == ("red", "blue")
    assert not leaves["kind"].is_required
    assert leaves["kind"].is_nullable
    assert leaves["account"].format == "iban"
    assert leaves["note"].detect is False
    assert leaves["sold"].has_default
    lists = {node.path: node for node in schema.nodes() if isinstance(node, List)}
    assert lists["parts"].max_items == 5
    assert lists["parts"].key_leaf.path == "parts[].label"
    assert any("owner.name" in note and "100 characters" in note for note in schema.notes)
    assert any("stamps" in note and "50" in note for note in schema.notes)


def test_questions() -> None:
    twice = list_questions(Car, ExtractOptions(check="twice"))
    assert len(twice) == 2 * len(list_questions(Car))
    assert len({prompt for path, prompt in twice if path == "plate"}) == 2
    assert list_questions(Car, ExtractOptions(source="xml")) == []
    asked = dict(list_questions(Car))
    assert asked["plate"] == "answer en What is the plate?"
    assert asked["owner.name"] == "answer en What is the name of the owner?"
    assert asked["parts"] == "answer en Which parts are mentioned in the car?"
    assert asked["parts[].weight"] == "answer en What is the weight of {label}?"
    assert asked["stamps"] == "answer en Which stamps are mentioned in the car?"
    assert asked["note"] == "answer en Is there a note?"
    assert asked["sold"] == "answer en Sold: yes or no?"
    assert "parts[].label" not in asked  # the list's own answer
    plain = dict(list_questions(Car, ExtractOptions(language="")))
    assert plain["plate"] == "What is the plate?"
    german = dict(list_questions(Car, ExtractOptions(language="de")))
    assert german["plate"] == "answer de What is the plate?"
    german = dict(list_questions(Car, ExtractOptions(language="de", question_language="de")))
    assert german["owner.name"] == "answer de Was steht unter name von owner?"


def test_a_model_that_is_used_twice_is_asked_about_with_its_name() -> None:
    class Address(BaseModel):
        city: str | None = None

    class Party(BaseModel):
        name: str | None = Field(None, description="full name")
        address: Address

    class Contract(BaseModel):
        seller: Party
        buyer: Party
        buyer_name: str | None = Field(None, description="full name of the buyer")

    asked = dict(list_questions(Contract, ExtractOptions(language="")))
    assert asked["seller.name"] == "What is the full name of the seller?"
    assert asked["buyer.address.city"] == "What is the city of the address of the buyer?"
    assert same_questions(read_schema(Contract), "en") == (
        "The same question is asked for buyer.name, buyer_name: What is the full name of the "
        "buyer? Describe them differently.",
    )


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_schemas_have_short_questions_and_bounded_answers(name: str) -> None:
    schema = read_schema(name)
    assert schema.notes == ()
    assert same_questions(schema, "en") == ()
    for path, prompt in list_questions(name):
        assert path
        assert len(prompt) < 90
    for node in schema.nodes():
        if isinstance(node, Leaf | List):
            assert 0 < longest_match(pattern_of(node)) <= 4096
            assert longest(node) <= 400


def test_patterns_hold_what_documents_print() -> None:
    leaves = {leaf.path: leaf for leaf in read_schema("invoice").leaves()}
    printed = {
        "invoice_date": [
            "Sep 24, 2019",
            "24. Sept. 2019",
            "09.05.2017",
            "2017年5月9日",
            "unanswerable",
        ],
        "total": ["$4,699.67", "1.234,50 €", "-5", "EUR 1'299.00", "0,79", "n/a"],
        "iban": ["DE88 2008 0000 0970 3757 00", "DE88200800000970375700"],
        "seller": ["Bei Spiel GmbH", "Ünïcode 株式会社"],
    }
    for path, texts in printed.items():
        for text in texts:
            assert re.fullmatch(pattern_of(leaves[path]), text), (path, text)
    assert not re.fullmatch(pattern_of(leaves["total"]), "a lot of money")
    assert not re.fullmatch(pattern_of(leaves["total"]), "9" * 40)


def test_patterns_of_schemas_are_bounded() -> None:
    assert bounded_pattern("^[A-Z]+-\\d*$", 20) == "[A-Z]{1,20}-[0-9]{0,20}"
    assert bounded_pattern("^(?:a|b){2,}$", 9) == "(a|b){2,9}"
    assert re.fullmatch(bounded_pattern("b+", 5), "abbba")
    assert not re.fullmatch(bounded_pattern("^b+$", 5), "b" * 6)
    for pattern in ("(?=a)b", "(a)\\1", "a{1000}", "\\bx", "a^b"):
        with pytest.raises(OptionError):
            bounded_pattern(pattern, 20)


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = obj(a=schema)
    return schema


NODE = obj(child={"$ref": "#/$defs/Node"})
# 10^12 values in 12 definitions.
WIDE = {
    f"A{level}": obj(**{f"k{n}": {"$ref": f"#/$defs/A{level + 1}"} for n in range(10)})
    for level in range(12)
} | {"A12": {"type": "string"}}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (obj(a={"type": "strin"}), "#/properties/a/type"),
        (obj(a={"type": "string", "foo": 1}), "#/properties/a/foo"),
        (obj(a={"type": "string", "minimum": 1}), "#/properties/a/minimum"),
        (obj(a={"$ref": "https://example.com/x.json"}), "#/properties/a/$ref"),
        (obj(a={"$ref": "file:///etc/passwd"}), "#/properties/a/$ref"),
        (obj(a={"$ref": "#/$defs/Missing"}), "#/properties/a/$ref"),
        (obj(a={"$ref": "#"}), "#/properties/a/properties/a/$ref"),
        ({"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"}, "#/properties/child/$ref"),
        ({"$defs": WIDE, "$ref": "#/$defs/A0"}, "500 values"),
        (nested(17), "16 levels"),
        (nested(300), "16 levels"),
        (nested(20_000), "16 levels"),
        (obj(a={"type": "array"}), "#/properties/a/items"),
        (obj(a={"type": "array", "items": {"type": "array", "items": {}}}), "#/properties/a/items"),
        (obj(a={"type": "array", "prefixItems": []}), "#/properties/a/prefixItems"),
        (obj(a={"anyOf": [{"type": "string"}, {"type": "integer"}]}), "#/properties/a/anyOf"),
        (obj(a={"type": ["string", "integer"]}), "#/properties/a/type"),
        (obj(a={"type": "object", "additionalProperties": {"type": "string"}}), "additionalProp"),
        (obj(a={"type": "string", "format": "hostname"}), "#/properties/a/format"),
        (obj(a={"type": "string", "pattern": "(?=a)b"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "pattern": "(a"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "pattern": "a{,5}"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "pattern": "a{x}"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "pattern": "a\x00"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "pattern": r"\u0000"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "pattern": r"\p{L}+"}), "#/properties/a/pattern"),
        (obj(**{"a" * 301: {"type": "string"}}), "#/properties"),
        ({**obj(a={"type": "string"}), "title": "t" * 301}, "#/title"),
        (obj(a={"type": "string", "pattern": "[a-z&&b]"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "pattern": "[a[b]"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "pattern": "(a*)*b"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "pattern": "(a{1,300}){1,300}"}), "#/properties/a/pattern"),
        (obj(a={"type": "string", "question": 5}), "#/properties/a/question"),
        (obj(a={"type": "string", "question": "<image> what?"}), "#/properties/a/question"),
        (obj(a={"enum": []}), "#/properties/a"),
        (obj(a={"enum": [{"b": 1}]}), "#/properties/a"),
        (obj(a={}), "#/properties/a/type"),
        (obj(a=5), "#/properties/a"),
        (obj(), "#/properties"),
        ({"type": "string"}, "#"),
        ({**obj(a={"type": "string"}), "required": ["b"]}, "#/required"),
        ({**obj(a={"type": "string"}), "required": [""]}, "#/required"),
        (obj(a={"type": "number", "minimum": math.nan}), "#/properties/a/minimum"),
        (obj(a={"type": "number", "multipleOf": math.inf}), "#/properties/a/multipleOf"),
        (obj(a={"type": "integer", "minimum": 10**5000}), "#/properties/a/minimum"),
        (obj(a={"type": "string", "minLength": 101}), "#/properties/a/minLength"),
        (obj(a={"type": "string", "minLength": 5, "maxLength": 2}), "#/properties/a/minLength"),
        (
            obj(a={"type": "array", "items": {"type": "string"}, "minItems": 51}),
            "#/properties/a/minItems",
        ),
        (obj(a={"anyOf": [True, {"type": "null"}]}), "#/properties/a/anyOf"),
        ({"type": "object", "properties": {1: {"type": "string"}}}, "#/properties"),
        ({"type": "object", "properties": {"\ud800": {"type": "string"}}}, "#/properties"),
        (chained(3_000), "#: it has more than"),
        (chained(100), "in a row"),
        (obj(a={"enum": list(range(90_000))}), "#: it has more than"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_place(schema: Any, place: str) -> None:
    with pytest.raises(OptionError, match=re.escape(place)):
        read_schema(schema)


def test_whatever_schema_is_read_has_grammars() -> None:
    """Long lists of choices, with the spellings that are allowed, and odd but valid patterns."""
    countries = [f"{number} Republic of {'x' * 80}" for number in range(200)]
    tokenizer = paligemma.load_processor("mini")[0].tokenizer
    patterns = [r"[\[\](){}]+", r"[a\-z&]{2}", r"\{a\}", "^a|b$", "[]a]", r"[^\]]", r"\u0041"]
    given = [{"enum": countries}, *({"type": "string", "pattern": each} for each in patterns)]
    for kind in given:
        [leaf] = read_schema(obj(a=kind)).leaves()
        assert TextGrammar.of_regex(pattern_of(leaf), tokenizer).allowed.any(), kind


def test_odd_models_are_refused() -> None:
    class Tree(BaseModel):
        children: list[Tree] = []

    class Odd(BaseModel):
        pairs: dict[str, int]

    class Pair(BaseModel):
        both: tuple[str, int]

    class Strange(BaseModel):
        what: typing.Callable[[], None]

    for model in (Tree, Odd, Pair, Strange, int):
        with pytest.raises(OptionError):
            read_schema(model)
    for other in ("no-such-schema", 5, None, ["a"]):
        with pytest.raises(OptionError):
            read_schema(other)  # type: ignore[arg-type]


def test_null_behind_a_reference_and_limits_with_a_point() -> None:
    schema = read_schema(
        {
            **obj(
                a={"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]},
                b={"anyOf": [{"$ref": "#/$defs/B"}, {"type": "null"}]},
                c={"type": ["string", "null"], "enum": ["x", None]},
                d={"type": "array", "items": {"type": "string", "maxLength": 5.0}, "maxItems": 2.0},
            ),
            "$defs": {
                "A": {"type": ["string", "null"]},
                "B": {"oneOf": [{"type": "integer"}, {"type": "null"}]},
            },
        }
    )
    leaves = {leaf.path: leaf for leaf in schema.leaves()}
    assert [leaves[name].kind for name in "abc"] == ["text", "integer", "choice"]
    assert all(leaves[name].is_nullable for name in "abc")
    assert leaves["c"].choices == ("x",)
    items = next(node for node in schema.nodes() if isinstance(node, List))
    assert repr((items.max_items, items.key_leaf.max_length)) == "(2, 5)"


@pytest.mark.parametrize("odd", [{"enum": [True, False]}, {"type": "boolean", "enum": [True]}])
def test_choices_of_booleans_are_yes_and_no(odd: dict[str, Any]) -> None:
    [leaf] = read_schema({"type": "object", "properties": {"paid": odd}}).leaves()
    assert leaf.kind == "boolean"


def test_json_schemas_with_null_enum_and_definitions() -> None:
    schema = read_schema(
        {
            "title": "Order",
            "type": "object",
            "required": ["id"],
            "$defs": {"Kind": {"enum": ["a", "b"], "description": "Kinds of orders."}},
            "properties": {
                "id": {"type": ["string", "null"], "maxLength": 8},
                "kind": {"oneOf": [{"$ref": "#/$defs/Kind"}, {"type": "null"}]},
                "size": {"anyOf": [{"const": 1}, {"const": 2}]},
                "odd key.x": {"type": "number"},
                "total": {"type": "number", "format": "decimal"},
            },
        }
    )
    leaves = {leaf.path: leaf for leaf in schema.leaves()}
    assert list(leaves) == ["id", "kind", "size", '["odd key.x"]', "total"]
    assert leaves["id"].is_nullable
    assert leaves["kind"].is_nullable
    assert leaves["kind"].description is None
    assert leaves["size"].choices == (1, 2)
    assert leaves["total"].kind == "amount"
