"""Whatever a model says, the object is valid or None, and every value has a field."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import jsonschema
import pytest

import paligemma
from paligemma.answering import ImageQuery
from paligemma.errors import NumericalError
from paligemma.extraction import Extraction, ExtractOptions, extract, read_schema
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import FieldAnswer
from paligemma.tasks.text import OcrTask
from paligemma.tasks.text_grammar import TextGrammar
from tests.agreement.tiny_predictor import build_predictor
from tests.extraction.scripted import ScriptedAsker, spoken
from tests.extraction.test_extract import blank_page

WORDS = ["", "unanswerable", "7", "-3", "1.234", "1,5", "Sep 24, 2019", "03/04/2020", "yes", "no"]
WORDS += ["a", "b", "a, b; c", "x" * 90, "12:30", "\x00\x1b[2J", "<loc0001>", "null", "日本", "1e9"]


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "amount", "boolean", "date", "enum", "pattern", "null"]
    kinds += ["ref", "group"] if depth < 3 else ["ref"]
    if depth < 3:
        kinds += ["object", "array"] * 2
    match rng.choice(kinds if depth else ["object"]):
        case "object":
            names = rng.sample(
                ["name", "a b", "total", "x.y", "dose", "Größe", "id"], rng.randint(1, 4)
            )
            properties = {name: random_schema(rng, depth + 1) for name in names}
            return {
                "type": "object",
                "properties": properties,
                "required": [name for name in names if rng.random() < 0.5],
                **rng.choice([{}, {}, {"additionalProperties": False}]),
            }
        case "array":
            item = random_schema(rng, depth + 1)
            if item.get("type") == "array":
                item = {"type": "string"}
            return {
                "type": "array",
                "items": item,
                **rng.choice([{}, {"maxItems": 2}, {"minItems": 1}, {"uniqueItems": True}]),
            }
        case "date":
            return {"type": "string", "format": rng.choice(["date", "time", "date-time", "iban"])}
        case "enum":
            choices = [["a", "b"], [1, 2, 7], ["yes", None], [0.5, "half"], ["1", 1]]
            return rng.choice([{"enum": rng.choice(choices)}, {"const": rng.choice(["a", 3])}])
        case "pattern":
            patterns = ["^[a-z]+$", "[0-9]{2}", "^(a|b)*$", r"^\d{1,3}-[A-Z]?$", r"[\w.]+@\w+"]
            return {"type": "string", "pattern": rng.choice(patterns)}
        case "null":
            kind = rng.choice([{"type": "integer"}, {"type": "string", "format": "date"}])
            return rng.choice(
                [
                    {"anyOf": [kind, {"type": "null"}]},
                    {**kind, "type": [kind["type"], "null"]},
                    {"anyOf": [{"$ref": "#/$defs/Part"}, {"type": "null"}]},
                ]
            )
        case "ref":
            return {"$ref": "#/$defs/Kind"}
        case "group":
            return {"$ref": "#/$defs/Part"}
        case "amount":
            return rng.choice([DECIMAL, {**DECIMAL, "minimum": 0}, {"anyOf": AMOUNT_OF_PYDANTIC}])
        case "integer" | "number" as kind:
            bounds = [{}, {"minimum": 5}, {"exclusiveMaximum": 2}, {"minimum": -5, "maximum": 9}]
            return {"type": kind, **rng.choice([*bounds, {"multipleOf": 3}])}
        case kind:
            limits = [{"maxLength": 5}, {"minLength": 2}, {"minLength": 1, "maxLength": 3}]
            limit = rng.choice(limits) if kind == "string" and rng.random() < 0.5 else {}
            return {"type": kind, **limit}


DECIMAL = {"type": "number", "format": "decimal"}
AMOUNT_OF_PYDANTIC = [{"type": "number"}, {"type": "string", "pattern": r"^\d+([.]\d+)?$"}]
DEFINITIONS = {
    "Kind": {"enum": ["a", "b"]},
    "Part": {
        "type": "object",
        "properties": {
            "kind": {"$ref": "#/$defs/Kind"},
            "size": {"type": "integer", "minimum": 0},
            "made": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        },
        "required": ["kind"],
    },
}


def whole_schema(rng: random.Random) -> dict[str, Any]:
    return {**random_schema(rng), "$defs": DEFINITIONS}


def check(found: Extraction[Any], schema: dict[str, Any]) -> bool:
    """Whether there is an object, which is valid, as all of the result's forms are."""
    if found.value is not None:
        jsonschema.validate(found.value, schema)
        assert json.loads(json.dumps(found.value)) == found.value
    else:
        assert found.problems
    assert len({field.path for field in found.fields}) == len(found.fields)
    found.to_json(), found.to_csv(safe=True), str(found)
    return found.value is not None


class Babbling(ScriptedAsker):
    """Says anything, with any score."""

    rng = random.Random(0)

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        for query in queries:
            if hasattr(query.query.task, "phrases"):
                yield self._detect_nothing()
            elif isinstance(query.query.task, OcrTask):
                yield NumericalError.of_model()
            else:
                yield self._babble()

    def _babble(self) -> FieldAnswer:
        return spoken(self.rng.choice(WORDS), self.rng.random(), held=self.rng.random())

    def _detect_nothing(self) -> Any:
        return ()


@pytest.mark.parametrize(
    "number", [60, pytest.param(1000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_objects_are_valid_or_none(number: int) -> None:
    rng = random.Random(20261130)
    asker, page = Babbling([]), blank_page()
    num_valid = 0
    for _ in range(number):
        schema = whole_schema(rng)
        num_valid += check(extract(asker, page, schema), schema)
    assert num_valid > number / 3


@pytest.mark.slow
def test_objects_of_random_weights_are_valid_or_none(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers, held to grammars, of a model that knows nothing. Short ones, for the time."""
    monkeypatch.setattr("paligemma.extraction.schema.MAX_TEXT", 8)
    monkeypatch.setattr("paligemma.extraction.patterns._LIST_TEXT", 24)
    rng = random.Random(14)
    model, page = build_predictor(tiny_tokenizer), blank_page(64, 64)
    options = ExtractOptions(detect=False, turn=False, whole_page_score=0)
    num_valid = 0
    for _ in range(200):
        schema = whole_schema(rng)
        num_valid += check(extract(model, page, schema, options), schema)
    assert num_valid > 40


@pytest.mark.slow
def test_objects_of_a_real_model_are_valid_or_none() -> None:
    rng = random.Random(1)
    model, page = paligemma.load("mini"), blank_page(64, 64)
    for _ in range(30):
        schema = whole_schema(rng)
        check(extract(model, page, schema, ExtractOptions(detect=False)), schema)


def test_the_patterns_of_random_schemas_are_grammars() -> None:
    from paligemma.extraction.patterns import pattern_of
    from paligemma.extraction.schema import Leaf, List

    rng = random.Random(2)
    tokenizer = paligemma.load_processor("mini")[0].tokenizer
    for _ in range(40):
        schema = whole_schema(rng)
        for node in read_schema(schema).nodes():
            if isinstance(node, Leaf | List):
                assert TextGrammar.of_regex(pattern_of(node), tokenizer).allowed is not None
