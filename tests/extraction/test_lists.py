"""The items of lists: split, scored by their own tokens, and joined over tiles that overlap."""

from __future__ import annotations

import math

import pytest

from paligemma.extraction.lists import Item, PlacedItem, items_of, split_items, union_of
from paligemma.results import BoxXyxy, FieldAnswer
from tests.tasks.character_tokenizer import CharacterTokenizer


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("Vyvanse, Clonidine and Aspirin", ["Vyvanse", "Clonidine", "Aspirin"]),
        ("Vyvanse und Clonidine", ["Vyvanse", "Clonidine"]),
        ("aches, chills, and tired", ["aches", "chills", "tired"]),
        ("Luftballon: Bunt, ca. 500ml; Heiße Luft", ["Luftballon: Bunt, ca. 500ml", "Heiße Luft"]),
        ("1. Tea\n2. Cake, sweet\n", ["Tea", "Cake, sweet"]),
        ("- a\n- b", ["a", "b"]),
        ("1,50, 2,75", ["1,50", "2,75"]),
        ("Clonidine (0.2 mg, daily), Aspirin", ["Clonidine (0.2 mg, daily)", "Aspirin"]),
        ("Sandra, Andy", ["Sandra", "Andy"]),
        ("one thing", ["one thing"]),
        ("a,,b, ", ["a", "b"]),
        ("unanswerable", []),
        ("a, none", ["a"]),
        ("", []),
    ],
)
def test_splitting(text: str, items: list[str]) -> None:
    found = split_items(text)
    assert [item for item, _ in found] == items
    assert all(text[start:].startswith(item) for item, start in found)


@pytest.mark.parametrize(
    ("text", "language", "items"),
    [
        ("Étagère en chêne, lampe et tapis", "fr", ["Étagère en chêne", "lampe", "tapis"]),
        ("Étagère en chêne; lampe", "fr", ["Étagère en chêne", "lampe"]),
        ("Étagère en chêne", "en", ["Étagère en chêne"]),
        ("stoel en tafel", "nl", ["stoel", "tafel"]),
        ("sal y pimienta", "es", ["sal", "pimienta"]),
        ("Vitamin C und E", "de", ["Vitamin C", "E"]),
        ("Ham and eggs, toast and butter", "en", ["Ham and eggs", "toast", "butter"]),
        ("tea and cake and milk", "en", ["tea", "cake", "milk"]),
    ],
)
def test_words_that_mean_and_separate_in_their_language(
    text: str, language: str, items: list[str]
) -> None:
    assert [item for item, _ in split_items(text, language)] == items


def test_items_have_the_probability_of_their_own_tokens() -> None:
    tokenizer = CharacterTokenizer()
    text = " ab, c"
    ids = [*tokenizer.tokenize_text(text), tokenizer.eos_id]
    probabilities = [1.0, 0.5, 0.5, 0.1, 0.1, 0.9, 0.9]
    answer = FieldAnswer(
        text=text.strip(),
        token_ids=tuple(ids),
        logprobs=tuple(map(math.log, probabilities)),
        stop_reason="eos",
        score=math.prod(probabilities),
        question="",
    )
    items = items_of(answer, tokenizer)
    assert [(item.text, round(item.score, 4)) for item in items] == [("ab", 0.25), ("c", 0.9)]


def placed(text: str, view: int, box: BoxXyxy | None = None, score: float = 0.9) -> PlacedItem:
    return PlacedItem(item=Item(text=text, score=score), view=view, box_xyxy=box)


def joined(*items: PlacedItem, touch: bool = True) -> list[tuple[str, bool]]:
    neighbors = [[touch] * 3 for _ in range(3)]
    return [(p.item.text, p.is_doubtful) for p in union_of(items, neighbors)]


def test_items_that_tiles_show_twice_are_one() -> None:
    assert joined(placed("a", 0), placed("b", 0), placed("B", 1), placed("c", 1)) == [
        ("a", False),
        ("b", False),
        ("c", False),
    ]
    # Twice in one tile is twice; apart from each other, tiles share nothing.
    assert len(joined(placed("a", 0), placed("a", 0), placed("a", 1))) == 2
    assert len(joined(placed("a", 0), placed("a", 1), touch=False)) == 2
    # Of an item that is cut off within a word, the whole.
    assert joined(placed("Ergonomic Key", 0), placed("Ergonomic Keyboard", 1, score=0.5)) == [
        ("Ergonomic Keyboard", False)
    ]
    assert joined(placed("Laptop", 0), placed("Laptop bag", 1)) == [
        ("Laptop", True),
        ("Laptop bag", False),
    ]


def test_places_decide_where_they_are_known() -> None:
    here, there = (0.0, 0.0, 10.0, 5.0), (0.0, 50.0, 10.0, 55.0)
    assert len(joined(placed("a", 0, here), placed("a", 1, there))) == 2
    assert joined(placed("a", 0, here), placed("abc", 1, here)) == [("abc", False)]
