"""Text that runs from right to left: between the order in which it is read and that on the page.

A Hebrew or Arabic line may have parts that run from left to right: numbers, and words in Latin
letters. The rules are those of the Unicode Bidirectional Algorithm (UAX #9) for one line without
control characters.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

Direction = Literal["L", "R"]
"""From left to right, or from right to left."""

_RTL = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
_RIGHT_TO_LEFT = re.compile(f"[{_RTL}]")
_AGAINST = re.compile(rf"[^\W_{_RTL}](?:[^{_RTL}]*[^\W_{_RTL}])?")  # words and numbers within
_MARKS_FIRST = re.compile(r"([\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670]+)(.)")
_BEFORE_NUMBER = re.compile(r"^([.,;:!?،؛؟]+)(\d.*)$")
_MIRRORED = str.maketrans("()[]{}<>«»", ")(][}{><»«")


def direction_of(text: str) -> Direction | None:
    """That of the first letter that has one; None without."""
    for character in text:
        match unicodedata.bidirectional(character):
            case "L":
                return "L"
            case "R" | "AL":
                return "R"
    return None


def main_direction(texts: Iterable[str]) -> Direction:
    """That of most of the texts; from left to right where none has one."""
    directions = [direction_of(text) for text in texts]
    return "R" if directions.count("R") > directions.count("L") else "L"


def order_on_page(text: str) -> list[int]:
    """The indices of a line's characters as they stand from left to right.

    >>> order_on_page("\u05d0\u05d1 12")
    [3, 4, 2, 1, 0]
    """
    order = list(range(len(text)))
    if not _RIGHT_TO_LEFT.search(text):
        return order
    levels = _levels(text)
    for least in (2, 1):
        order = _with_runs_reversed(order, [levels[index] >= least for index in order])
    return order


def text_on_page(text: str) -> str:
    """A line's characters as they stand from left to right, and as brackets look there."""
    if not _RIGHT_TO_LEFT.search(text):
        return text
    levels = _levels(text)
    return "".join(
        text[index].translate(_MIRRORED) if levels[index] == 1 else text[index]
        for index in order_on_page(text)
    )


def words_as_read(words: Sequence[str], of_page: Direction) -> list[str]:
    """The words of a line in the order in which they are read, given from left to right.

    The line has the direction of its outermost words, and that of its page where they differ.
    """
    directions = [direction_of(word) for word in words]
    known = [direction for direction in directions if direction]
    base = known[0] if known and known[0] == known[-1] else of_page
    if base == "L" and "R" not in known:
        return list(words)
    order = list(range(len(words)))
    if base == "R":
        order.reverse()
    read: list[int] = []
    for is_base, run in itertools.groupby(order, key=lambda index: directions[index] == base):
        part = list(run)
        against = [at for at, index in enumerate(part) if directions[index]]
        if not is_base and against:
            # They have their own direction, and so have the numbers between them.
            first, last = against[0], against[-1] + 1
            part[first:last] = reversed(part[first:last])
        read += part
    if base == "L":
        return [words[index] for index in read]
    # The mark behind a number stands to its left.
    return [
        words[index] if directions[index] else _BEFORE_NUMBER.sub(r"\2\1", words[index])
        for index in read
    ]


def word_as_read(word: str) -> str:
    """A word whose letters are given from left to right, in the order in which they are read."""
    turned = _MARKS_FIRST.sub(r"\2\1", word[::-1])
    return _AGAINST.sub(lambda part: part[0][::-1], turned)


def _with_runs_reversed(items: list[int], is_in_run: Sequence[bool]) -> list[int]:
    """The items, with every run of those that are marked turned round."""
    result: list[int] = []
    pairs = zip(items, is_in_run, strict=True)
    for is_marked, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        part = [item for item, _ in run]
        result += reversed(part) if is_marked else part
    return result


def _levels(text: str) -> list[int]:
    """Of each character: 0 from left to right, 1 from right to left, 2 from left to right in it."""
    base: Direction = direction_of(text) or "L"
    kinds: list[str | None] = []  # L, R, a number in text of the direction R, or None
    last_letter: str = base
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in ("L", "R", "AL"):
            last_letter = "L" if kind == "L" else "R"
            kinds.append(last_letter)
        elif kind in ("EN", "AN"):
            kinds.append("L" if last_letter == "L" else "number")
        else:
            kinds.append(kinds[-1] if kind == "NSM" and kinds else None)
    for at in range(1, len(text) - 1):
        is_inside = kinds[at - 1] == kinds[at + 1] == "number" and text[at] in ".,:/"
        kinds[at] = "number" if is_inside else kinds[at]
    levels = {"L": 0 if base == "L" else 2, "R": 1, "number": 2}
    known = [levels[kind] if kind else None for kind in kinds]
    of_base = 0 if base == "L" else 1
    # What has no direction has that of both sides, where a number in text R is R, else the base.
    before = [_side(kind) for kind in _filled(kinds, base)]
    after = [_side(kind) for kind in reversed(_filled(kinds[::-1], base))]
    return [
        level if level is not None else levels[first] if first == second else of_base
        for level, first, second in zip(known, before, after, strict=True)
    ]


def _side(kind: str) -> str:
    return "R" if kind == "number" else kind


def _filled(kinds: Sequence[str | None], base: str) -> list[str]:
    """Each kind, or where there is none the last one before it."""
    return list(itertools.accumulate(kinds, lambda last, kind: kind or last, initial=base))[1:]
