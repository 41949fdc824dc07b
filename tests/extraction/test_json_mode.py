"""JSON mode: one answer per page, whose values become fields."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel, Field

import paligemma
from paligemma.answering import ImageQuery
from paligemma.errors import OptionError
from paligemma.extraction import ExtractOptions, extract, read_schema
from paligemma.extraction.json_mode import grammar_of
from paligemma.results import JsonAnswer, JsonLeaf
from paligemma.tasks.json_schema import bounded_schema
from paligemma.tasks.text import OcrTask
from tests.extraction.scripted import ScriptedAsker
from tests.extraction.test_extract import blank_page, pages


class Item(BaseModel):
    name: str
    price: Decimal | None = None


class Receipt(BaseModel):
    shop: str | None = None
    day: datetime.date | None = None
    total: Decimal
    items: list[Item] = Field(default_factory=list, max_length=5)


class JsonAsker(ScriptedAsker):
    """Writes an object per page."""

    objects: tuple[Any, ...] = ()
    stop_reason: Any = "eos"

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        for query in queries:
            tile = inspect.getclosurevars(query.images[0]).nonlocals["self"]  # type: ignore[arg-type]
            if isinstance(query.query.task, OcrTask):
                yield self.sureness(tile)
                continue
            if not hasattr(query.query.task, "schema"):  # detect
                yield self._detect(tile, query.query.task.phrases[0])  # type: ignore[union-attr]
                continue
            value = self.objects[tile.page.number - 1]
            leaves = [
                JsonLeaf(keys=keys, value=each, score=0.9 - 0.1 * tile.page.number, held=0.0)
                for keys, each in walked(value)
            ]
            yield JsonAnswer(
                text="",
                token_ids=(),
                logprobs=(),
                stop_reason=self.stop_reason,
                score=0.5,
                value=value,
                leaves=tuple(leaves) if self.stop_reason == "eos" else (),
            )


def walked(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walked(child, (*keys, key))
    else:
        yield keys, value


OPTIONS = ExtractOptions(mode="json", json_prompt="receipt")


def test_the_values_of_all_pages(tmp_path: Path) -> None:
    asker = JsonAsker([])
    asker.objects = (
        {"shop": "Corner", "total": None, "items": [{"name": "tea", "price": "1,50"}]},
        {"shop": None, "total": 4.5, "day": "24.09.2019", "items": [{"name": "cake", "price": 3}]},
    )
    found = extract(asker, pages(tmp_path, 2), Receipt, OPTIONS)
    assert found.value == Receipt(
        shop="Corner",
        day=datetime.date(2019, 9, 24),
        total=Decimal("4.5"),
        items=[Item(name="tea", price=Decimal("1.50")), Item(name="cake", price=Decimal(3))],
    )
    assert found["total"].page == 2
    assert found["items[1].name"].score == pytest.approx(0.7)
    assert found.missing == ()
    assert all(field.prompt == "" for field in found.fields)


def test_nothing_and_cut_answers() -> None:
    asker = JsonAsker([])
    asker.objects = ({"total": None},)
    found = extract(asker, blank_page(), Receipt, OPTIONS)
    assert found.value is None
    assert found.missing == ("shop", "day", "total", "items")
    asker.stop_reason = "length"
    found = extract(asker, blank_page(), Receipt, OPTIONS)
    assert any("cut off" in note for note in found.notes)
    with pytest.raises(OptionError):
        ExtractOptions(mode="json", check="twice")


@pytest.mark.parametrize("name", ["prescription", "invoice", "receipt", "id-card", "form"])
def test_the_grammars_are_bounded(name: str) -> None:
    assert bounded_schema(grammar_of(read_schema(name).root), str).num_bytes > 0


def test_mini_writes_json_that_is_read() -> None:
    class Small(BaseModel):
        number: int | None = None
        kind: str | None = Field(None, max_length=8)

    found = extract(paligemma.load("mini"), Image.new("RGB", (64, 64), "gray"), Small, OPTIONS)
    assert found.value is None or isinstance(found.value, Small)
    assert {field.path for field in found.fields} >= {"number", "kind"}
