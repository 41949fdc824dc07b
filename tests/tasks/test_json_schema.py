"""JSON held to a schema: limits, refusals, and random schemas with a random model."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from paligemma.answering import ImageQuery, Query
from paligemma.errors import OptionError
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import JsonAnswer
from paligemma.tasks.field import JsonTask
from paligemma.tasks.json_schema import bounded_schema
from paligemma.tasks.text_grammar import TextGrammar
from tests.agreement.tiny_predictor import build_predictor, picture
from tests.tasks.drawn_text import drawn_text
from tests.tiny import FLOAT32_TOLERANCE

RECEIPT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "shop": {"type": "string", "maxLength": 12},
        "total": {"type": "number", "minimum": 0, "maximum": 1000},
        "items": {
            "type": "array",
            "maxItems": 2,
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 5},
                    "paid": {"type": "boolean"},
                },
                "required": ["name", "paid"],
            },
        },
    },
    "required": ["shop", "total", "items"],
}


class Medicine(BaseModel):
    name: str = Field(max_length=6)
    dose: str | None = None


class Prescription(BaseModel):
    written: datetime.date | None = None
    price: Decimal
    kind: Literal["new", "old"]
    medicines: list[Medicine] = Field(max_length=2)
    number: int = Field(ge=0)


@pytest.fixture(scope="module")
def predictor(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


def drawn_json(schema: Mapping[str, Any], tokenizer: Tokenizer, seed: int) -> str:
    return drawn_text(TextGrammar.of_json_schema(schema, tokenizer), tokenizer, seed)


def ask(predictor: Predictor, schema: Mapping[str, Any], **options: Any) -> JsonAnswer:
    query = Query(task=JsonTask(text="receipt as JSON", schema=schema), **options)
    (answer,) = predictor.answer([ImageQuery(images=(picture(1),), query=query)])
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, JsonAnswer)
    return answer


# Random schemas of all kinds that a grammar takes


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6)


def scalars() -> st.SearchStrategy[dict[str, Any]]:
    lengths = st.integers(0, 8)
    return st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.builds(lambda n: {"type": "string", "maxLength": n}, lengths),
        st.builds(lambda n: {"type": "string", "minLength": n, "maxLength": n + 2}, lengths),
        st.sampled_from(
            [
                {"type": "string", "format": "date"},
                {"type": "string", "format": "time"},
                {"type": "string", "pattern": r"^\d{2}-[a-z]+$", "maxLength": 9},
                {"type": "string", "pattern": '^["/\\\\]{2}$'},
                {"type": ["string", "null"], "maxLength": 4},
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "number", "exclusiveMinimum": -5, "maximum": 7.5},
                {"type": "number"},
                {"type": "integer"},
                {"type": "integer", "maximum": -1000},
                {"type": "integer", "minimum": 10**16},
            ]
        ),
        st.builds(
            lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
            st.integers(-(10**6), 10**6),
            st.integers(0, 10**4),
        ),
        st.lists(
            st.one_of(TEXTS, st.integers(-99, 99), st.booleans(), st.none()),
            min_size=1,
            max_size=4,
        ).map(lambda values: {"enum": values}),
        TEXTS.map(lambda value: {"const": value}),
    )


def _objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def build(properties: dict[str, Any], optional: set[int]) -> dict[str, Any]:
        required = [name for index, name in enumerate(properties) if index not in optional]
        return {"type": "object", "properties": properties, "required": required}

    properties = st.dictionaries(TEXTS, inner, min_size=1, max_size=4)
    return st.builds(build, properties, st.sets(st.integers(0, 3)))


SCHEMAS = st.recursive(
    scalars(),
    lambda inner: st.one_of(
        _objects(inner),
        st.builds(
            lambda items, least, more: {
                "type": "array",
                "items": items,
                "minItems": least,
                "maxItems": least + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda schema: {"anyOf": [schema, {"type": "null"}]}, inner),
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.integers(0, 2**32))
def test_every_text_that_a_random_schema_allows_is_valid(
    tiny_tokenizer: Tokenizer, schema: dict[str, Any], seed: int
) -> None:
    text = drawn_json(schema, tiny_tokenizer, seed)
    jsonschema.validate(json.loads(text), schema)
    assert len(text.encode()) <= bounded_schema(schema, str).num_bytes + 1


@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
@given(SCHEMAS)
def test_a_random_model_writes_valid_json(predictor: Predictor, schema: dict[str, Any]) -> None:
    check_written(predictor, schema)


@pytest.mark.slow
@settings(deadline=None, max_examples=1000, suppress_health_check=list(HealthCheck))
@given(SCHEMAS)
def test_a_random_model_writes_valid_json_a_thousand_times(
    predictor: Predictor, schema: dict[str, Any]
) -> None:
    check_written(predictor, schema)


def check_written(predictor: Predictor, schema: dict[str, Any]) -> None:
    answer = ask(predictor, schema)
    assert not answer.is_cut
    jsonschema.validate(answer.value, schema)
    for leaf in answer.leaves:
        value = answer.value
        for key in leaf.keys:
            value = value[key]
        assert value == leaf.value
        assert 0 <= leaf.score <= 1
        assert -1e-6 <= leaf.held <= 1


@pytest.mark.parametrize("seed", range(8))
def test_a_pydantic_model_is_a_grammar(tiny_tokenizer: Tokenizer, seed: int) -> None:
    schema = Prescription.model_json_schema()
    jsonschema.validate(json.loads(drawn_json(schema, tiny_tokenizer, seed)), schema)


def test_each_value_has_the_probability_of_its_tokens(predictor: Predictor) -> None:
    answer = ask(predictor, RECEIPT)
    jsonschema.validate(answer.value, RECEIPT)
    names = [leaf.keys for leaf in answer.leaves]
    assert names[:3] == [("shop",), ("total",), ("items", 0, "name")]
    tokenizer = predictor.processor.tokenizer
    octets = [tokenizer.token_bytes(token_id) for token_id in answer.token_ids]
    ends = list(itertools.accumulate(map(len, octets)))
    start = 0
    for leaf in answer.leaves:
        written = json.dumps(leaf.value, ensure_ascii=False).encode()
        start = b"".join(octets).index(written, start)
        if isinstance(leaf.value, float):  # may be written with zeros at its end
            continue
        end = start + len(written)
        tokens = [n for n in range(len(ends)) if ends[n] > start and ends[n] - len(octets[n]) < end]
        score = math.exp(math.fsum(answer.logprobs[n] for n in tokens))
        assert leaf.score == pytest.approx(score)
        allowed = math.prod(answer.allowed_probabilities[n] for n in tokens)
        assert leaf.held == pytest.approx(1 - allowed)
    assert math.prod(leaf.score for leaf in answer.leaves) >= answer.score
    assert answer.held >= max(leaf.held for leaf in answer.leaves) - FLOAT32_TOLERANCE


def test_there_is_no_white_space_between_values(tiny_tokenizer: Tokenizer) -> None:
    flags = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}
    schema = {"type": "object", "properties": {"a": flags, "b": flags}, "required": ["a"]}
    for seed in range(8):
        text = drawn_json(schema, tiny_tokenizer, seed)
        assert text.removeprefix(" ") == json.dumps(json.loads(text), separators=(",", ":"))


def test_json_that_is_cut_has_no_value(predictor: Predictor) -> None:
    answer = ask(predictor, RECEIPT, max_new_tokens=9)
    assert answer.is_cut
    assert (answer.value, answer.leaves) == (None, ())


def test_a_free_answer_that_is_not_json_has_no_value(predictor: Predictor) -> None:
    answer = ask(predictor, RECEIPT, constrained=False, max_new_tokens=9)
    assert (answer.value, answer.leaves) == (None, ())


def test_what_is_left_open_gets_a_limit() -> None:
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string", "title": "Text"},
            "list": {"type": "array", "items": {"type": "integer"}},
            "share": {"type": "number", "minimum": 0},
        },
    }
    bounded = bounded_schema(schema, str).schema
    assert bounded["additionalProperties"] is False
    properties = bounded["properties"]
    assert properties["text"] == {"type": "string", "maxLength": 100}
    assert properties["list"]["maxItems"] == 50
    assert properties["list"]["items"]["maximum"] == 10**15 - 1
    assert properties["share"] == {
        "type": "number",
        "minimum": 0,
        "maximum": 10**15 - 1,
        "multipleOf": 1e-6,
    }


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


# 10^12 values in 12 definitions.
WIDE: dict[str, Any] = {
    f"A{level}": {
        "type": "object",
        "properties": {f"k{n}": {"$ref": f"#/$defs/A{level + 1}"} for n in range(10)},
    }
    for level in range(12)
} | {"A12": {"type": "null"}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({}, "#: it allows any value"),
        ({"type": "object"}, "#/properties: the object has no properties"),
        ({"type": "array"}, "#/items: it allows any value"),
        ({"type": "text"}, "#/type: 'text' is not a type"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "#/uniqueItems"),
        ({"not": {"type": "null"}}, "#/not"),
        ({"enum": []}, "#/enum"),
        ({"$ref": "https://example.com/x.json"}, "nothing is fetched"),
        ({"$ref": "file:///etc/passwd#/a"}, "nothing is fetched"),
        ({"$ref": "#/$defs/a"}, "'#/$defs/a' does not exist"),
        ({"$ref": "#"}, "'#' contains itself"),
        (
            {
                "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}},
                "$ref": "#/$defs/a",
            },
            "#/items/$ref: '#/$defs/a' contains itself",
        ),
        (deep(300), "deeper than 64 levels"),
        (
            {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)"}}},
            "#/properties/a/pattern: look-around",
        ),
        ({"allOf": [{"type": "null"}, {"type": "string"}]}, "#/allOf"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "is invalid"),
        ({"type": "string", "maxLength": "5"}, "#/maxLength: '5' is not a whole number"),
        ({"type": "string", "maxLength": -1}, "#/maxLength: -1 is not"),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 1.5}, "#/maxItems: 1.5 is not"),
        ({"type": "number", "minimum": math.nan}, "#/minimum: nan is not a number"),
        ({"type": "integer", "maximum": 10**400}, "#/maximum: 1000"),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "required": 3}, "#/required"),
        ({"const": {1, 2}}, "a value is not JSON"),
        ({"$defs": WIDE, "$ref": "#/$defs/A0"}, "more than 1000 parts"),
        ({"$defs": WIDE, "anyOf": [{"$ref": "#/$defs/A0"}, {"type": "null"}]}, "more than 1000"),
    ],
)
def test_what_cannot_be_a_grammar_is_refused_with_its_path(
    schema: dict[str, Any], message: str, tiny_tokenizer: Tokenizer
) -> None:
    with pytest.raises(OptionError) as error:
        TextGrammar.of_json_schema(schema, tiny_tokenizer)
    assert message in str(error.value)


def test_texts_that_no_escape_can_write_are_left_out(tiny_tokenizer: Tokenizer) -> None:
    schema = {"enum": ["a\n\tb", "c\x00", "\x7f", "\ud800", ["\x1f"], {"\x1e": 1}]}
    for seed in range(4):
        assert json.loads(drawn_json(schema, tiny_tokenizer, seed)) == "a\n\tb"
    with pytest.raises(OptionError, match="control characters"):
        TextGrammar.of_json_schema({"const": "\x1c"}, tiny_tokenizer)
    with pytest.raises(OptionError, match="control characters"):
        TextGrammar.of_json_schema(
            {"type": "object", "properties": {"\r": {"type": "null"}}}, tiny_tokenizer
        )


def test_an_alternative_that_cannot_be_held_is_left_out(tiny_tokenizer: Tokenizer) -> None:
    schema = {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "(?!a)b"}]}
    assert {drawn_json(schema, tiny_tokenizer, seed).strip() for seed in range(9)} <= {
        "true",
        "false",
    }
