"""Which line of print each part of a text belongs to that a model read in a tile."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.documents.geometry import Box, union
from paligemma.results import Text
from paligemma.tasks.objects import TokenReader
from paligemma.tasks.scored_text import ScoredText


@dataclass(frozen=True)
class ReadLine:
    """A line as the model read it in one tile."""

    text: str
    box: Box
    score: float


def lines_in_tile(
    answer: Text, rows: Sequence[Sequence[Box]], tokens: TokenReader
) -> list[ReadLine]:
    """The answer line by line, each with its box and the mean probability of its tokens.

    `rows` are the rows of print in the tile, from the top. Where the model writes as many lines as
    there are rows, each has its own. Else text is laid along the rows by its length: of an answer
    in one line, word by word.
    """
    scored = ScoredText.of(answer, tokens)
    text = scored.text
    parts = [(m.start(), m.end()) for m in re.finditer(r"[^\n\r]*[^\s][^\n\r]*", text)]
    if not parts or not rows:
        return []
    boxes = [union(row) for row in rows]
    if len(parts) == 1 and len(rows) > 1:
        parts = _along(text, parts[0], boxes)
        boxes = boxes[: len(parts)] if len(parts) < len(boxes) else boxes
    if len(parts) == len(boxes):
        placed = list(zip(parts, boxes, strict=True))
    else:
        placed = _spread(parts, boxes)
    lines = []
    for (start, end), box in placed:
        words = " ".join(scored.written(start, end).split())
        if words:
            lines.append(ReadLine(words, box, scored.mean_probability(start, end)))
    return lines


def _along(text: str, part: tuple[int, int], boxes: Sequence[Box]) -> list[tuple[int, int]]:
    """One line of text as a part per row of print, each as long as its row is wide."""
    words = [
        (m.start(), m.end()) for m in re.finditer(r"\S+", text[: part[1]]) if m.start() >= part[0]
    ]
    if len(words) <= len(boxes):
        return words
    widths = [box[2] - box[0] for box in boxes]
    total = sum(widths) or 1.0
    length = sum(end - start + 1 for start, end in words)
    parts: list[tuple[int, int]] = []
    at = 0
    done = target = 0.0
    for number, width in enumerate(widths):
        target += width / total * length
        first = at
        rows_left = len(widths) - number - 1
        while at < len(words) - rows_left:
            size = words[at][1] - words[at][0] + 1
            # A word belongs to the row that holds its middle.
            if at > first and rows_left and done + size / 2 > target:
                break
            done += size
            at += 1
        parts.append((words[first][0], words[at - 1][1]))
    return parts


def _spread(
    parts: Sequence[tuple[int, int]], boxes: Sequence[Box]
) -> list[tuple[tuple[int, int], Box]]:
    """Lines of text along another number of rows, by their share of the whole length."""
    widths = [box[2] - box[0] for box in boxes]
    total_width = sum(widths) or 1.0
    total = sum(end - start for start, end in parts)
    ends, reached = [], 0.0
    for width in widths:
        reached += width / total_width
        ends.append(reached)
    placed, at = [], 0
    for start, end in parts:
        first, last = at / total, (at + end - start) / total
        at += end - start
        nearby = range(bisect_right(ends, first), min(bisect_left(ends, last) + 1, len(ends)))
        begins = {index: ends[index - 1] if index else 0.0 for index in nearby}
        covered = [
            boxes[index]
            for index, begin in begins.items()
            if min(ends[index], last) - max(begin, first)
            > 0.3 * min(ends[index] - begin, last - first)
        ]
        placed.append(((start, end), union(covered or [boxes[_nearest(ends, first, last)]])))
    return placed


def _nearest(ends: Sequence[float], first: float, last: float) -> int:
    """Which end is nearest to the middle of a part."""
    middle = (first + last) / 2
    after = min(bisect_left(ends, middle), len(ends) - 1)
    return min(range(max(0, after - 1), after + 1), key=lambda index: abs(ends[index] - middle))
