"""Whatever a model says, the object is valid or None, and every value has a field."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import jsonschema
import pytest

import paligemma
from paligemma.answering import ImageQuery
from paligemma.errors import NumericalError
from paligemma.extraction import ExtractOptions, extract, read_schema
from paligemma.results import FieldAnswer
from paligemma.tasks.text import OcrTask
from paligemma.tasks.text_grammar import TextGrammar
from tests.extraction.scripted import ScriptedAsker, spoken
from tests.extraction.test_extract import blank_page

WORDS = ["", "unanswerable", "7", "-3", "1.234", "1,5", "Sep 24, 2019", "03/04/2020", "yes", "no"]
WORDS += ["a", "b", "a, b; c", "x" * 90, "12:30", "\x00\x1b[2J", "<loc0001>", "null", "日本", "1e9"]


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "date", "enum", "pattern", "null", "ref"]
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
            }
        case "array":
            item = random_schema(rng, depth + 1)
            if item.get("type") == "array":
                item = {"type": "string"}
            return {
                "type": "array",
                "items": item,
                **rng.choice([{}, {"maxItems": 2}, {"minItems": 1}]),
            }
        case "date":
            return {"type": "string", "format": rng.choice(["date", "time", "date-time", "iban"])}
        case "enum":
            return {"enum": rng.choice([["a", "b"], [1, 2, 7], ["yes", None]])}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(["^[a-z]+$", "[0-9]{2}", "^(a|b)*$"])}
        case "null":
            return {"anyOf": [{"type": "integer"}, {"type": "null"}]}
        case "ref":
            return {"$ref": "#/$defs/Kind"}
        case "integer" | "number" as kind:
            return {"type": kind, **rng.choice([{}, {"minimum": 5}, {"exclusiveMaximum": 2}])}
        case kind:
            limit = {"maxLength": 5} if kind == "string" and rng.random() < 0.5 else {}
            return {"type": kind, **limit}


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
        schema = {**random_schema(rng), "$defs": {"Kind": {"enum": ["a", "b"]}}}
        if not any(True for _ in read_schema(schema).leaves()):
            continue
        found = extract(asker, page, schema)
        if found.value is not None:
            num_valid += 1
            jsonschema.validate(found.value, schema)
        else:
            assert found.problems
        assert len({field.path for field in found.fields}) == len(found.fields)
        found.to_json(), found.to_csv(safe=True), str(found)
    assert num_valid > number / 3


@pytest.mark.slow
def test_objects_of_a_real_model_are_valid_or_none() -> None:
    rng = random.Random(1)
    model, page = paligemma.load("mini"), blank_page(64, 64)
    for _ in range(30):
        schema = {**random_schema(rng), "$defs": {"Kind": {"enum": ["a", "b"]}}}
        found = extract(model, page, schema, ExtractOptions(detect=False))
        if found.value is not None:
            jsonschema.validate(found.value, schema)


def test_the_patterns_of_random_schemas_are_grammars() -> None:
    from paligemma.extraction.patterns import pattern_of
    from paligemma.extraction.schema import Leaf, List

    rng = random.Random(2)
    tokenizer = paligemma.load_processor("mini")[0].tokenizer
    for _ in range(40):
        schema = {**random_schema(rng), "$defs": {"Kind": {"enum": ["a", "b"]}}}
        for node in read_schema(schema).nodes():
            if isinstance(node, Leaf | List):
                assert TextGrammar.of_regex(pattern_of(node), tokenizer).allowed is not None
