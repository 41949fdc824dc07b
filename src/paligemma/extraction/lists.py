"""Lists: the items in an answer, with a score of each, and their union over parts of a page."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.extraction.values import comparable, is_absent
from paligemma.results import BoxXyxy, FieldAnswer
from paligemma.tasks.objects import TokenReader, joint_probability
from paligemma.tasks.scored_text import ScoredText

_AND = ("and", "und", "et", "och", "og", "ve", "és")
_AND_OF = {"es": ("y", "e"), "it": ("e", "ed"), "pt": ("e",), "nl": ("en",), "fi": ("ja",)}
_AND_OF |= {"pl": ("i",), "ca": ("i",), "hr": ("i",)}
"""Words that mean "and" in one language and something else in others, as "en" in French."""
_STRONG = re.compile(r"\s*(?:[;\n]|•)\s*")
_COMMA = r"(?:(?<![0-9]),|,(?![0-9]))\s*"
_BULLET = re.compile(r"^(?:[-*•–]|\(?[0-9]{1,2}[.)])\s+")


@dataclass(frozen=True, kw_only=True)
class Item:
    """An item of a list, as the model wrote it."""

    text: str
    score: float
    """The model's probability of these words, after those before them."""


@dataclass(frozen=True, kw_only=True)
class PlacedItem:
    """An item with the part of the page that it was read from."""

    item: Item
    view: int
    """Which part, in reading order."""
    box_xyxy: BoxXyxy | None = None
    """Where its words are, as far as the text layer tells."""
    is_doubtful: bool = False
    """Whether it may be a part of another item."""


def split_items(text: str, language: str = "") -> list[tuple[str, int]]:
    """Return the items of an answer, each with its place in the text.

    Lines and semicolons separate items; where there are none, commas do, except in numbers and
    parentheses, and after the last comma the word "and". `language`: a code such as "fr".

    >>> [item for item, _ in split_items("Vyvanse, Clonidine (0.2 mg, daily) and Aspirin")]
    ['Vyvanse', 'Clonidine (0.2 mg, daily)', 'Aspirin']
    """
    if is_absent(text):
        return []
    is_strong = _STRONG.search(text.strip(" ;\n")) is not None
    separator = _STRONG if is_strong else _comma(language)
    items = []
    start = 0
    for end, following in [*_cuts(text, separator), (len(text), len(text))]:
        part = text[start:end]
        inner = part.lstrip()
        bullet = _BULLET.match(inner)
        offset = start + len(part) - len(inner) + (bullet.end() if bullet else 0)
        item = text[offset:end].rstrip(" ,;")
        if item and not is_absent(item):
            items.append((item, offset))
        start = following
    return items


@functools.cache
def _comma(language: str) -> re.Pattern[str]:
    words = "|".join((*_AND, *_AND_OF.get(language[:2], ())))
    return re.compile(rf"{_COMMA}(?:(?:{words}) )?|\s+(?:{words})\s+(?!.*{_COMMA})", re.DOTALL)


def _cuts(text: str, separator: re.Pattern[str]) -> list[tuple[int, int]]:
    """Where separators begin and end that are outside of parentheses."""
    return [
        (match.start(), match.end())
        for match in separator.finditer(text)
        if text.count("(", 0, match.start()) <= text.count(")", 0, match.start())
    ]


def items_of(answer: FieldAnswer, tokenizer: TokenReader, language: str = "") -> list[Item]:
    """Return the items of an answer, each with the probability of its tokens."""
    scored = ScoredText.of(answer, tokenizer)
    lead = len(scored.text) - len(scored.text.lstrip())  # the answer's text is stripped
    items = []
    for text, start in split_items(answer.text, language):
        first, last = scored.tokens(lead + start, lead + start + len(text))
        logprobs = scored.logprobs[first:last]
        score = joint_probability(logprobs) if logprobs else answer.score
        items.append(Item(text=text, score=score))
    return items


def union_of(
    items: Sequence[PlacedItem], are_neighbors: Sequence[Sequence[bool]]
) -> list[PlacedItem]:
    """Return the items of all parts of a page, each once, in reading order.

    An item is the same as one of an overlapping part if the text layer has both in the same place,
    or, where it does not tell, if their texts are equal, or one is cut off within a word. Equal
    items within one part are several.
    """
    kept: list[PlacedItem] = []
    matched: set[int] = set()  # items of `kept` that this part has shown again
    view = None
    for placed in items:
        if placed.view != view:
            view, matched = placed.view, set()
        for index, other in enumerate(kept):
            if index in matched or other.view == view or not are_neighbors[other.view][view]:
                continue
            if (sameness := _same(other, placed)) is None:
                continue
            kept[index] = max(
                (other, placed), key=lambda p: (len(p.item.text) * sameness, p.item.score)
            )
            matched.add(index)
            break
        else:
            matched.add(len(kept))
            kept.append(placed)
    return [_marked(placed, kept) for placed in kept]


def _same(first: PlacedItem, second: PlacedItem) -> int | None:
    """Whether both are the same item: 0 with the same text, 1 if one is cut off; else None."""
    texts = comparable(first.item.text), comparable(second.item.text)
    if first.box_xyxy is not None and second.box_xyxy is not None:
        return int(texts[0] != texts[1]) if overlap(first.box_xyxy, second.box_xyxy) > 0.5 else None
    if texts[0] == texts[1]:
        return 0
    return 1 if _is_cut(first.item.text, second.item.text) else None


def _is_cut(first: str, second: str) -> bool:
    """Whether one text is the other, cut off within a word."""
    short, long = sorted((first.casefold(), second.casefold()), key=len)
    if len(short) < 4:
        return False
    if long.startswith(short):
        return long[len(short)].isalnum() and short[-1].isalnum()
    return long.endswith(short) and long[-len(short) - 1].isalnum() and short[0].isalnum()


def _marked(placed: PlacedItem, kept: Sequence[PlacedItem]) -> PlacedItem:
    text = placed.item.text.casefold()
    is_part = any(
        other is not placed
        and other.view != placed.view
        and len(text) < len(other.item.text)
        and re.search(rf"\b{re.escape(text)}\b", other.item.text.casefold())
        for other in kept
    )
    if not is_part:
        return placed
    return PlacedItem(
        item=placed.item, view=placed.view, box_xyxy=placed.box_xyxy, is_doubtful=True
    )


def overlap(first: BoxXyxy, second: BoxXyxy) -> float:
    """Return the part of the smaller box that is in the other one."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return max(0.0, width) * max(0.0, height) / max(min(areas), 1e-9)
