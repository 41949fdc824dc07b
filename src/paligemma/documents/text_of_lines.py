"""Which line of print each part of a text belongs to that a model read in a tile."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.documents.geometry import Box, union
from paligemma.results import Text
from paligemma.tasks.objects import TokenReader
from paligemma.tasks.scored_text import ScoredText

_NO_TEXT = 0.7
"""What a row without text costs, where text twice as long as its row costs log(2) = 0.69."""
_UNEVEN = 0.4
"""What each further line on a row costs, and each further row of a line."""


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
    """Lines of text along another number of rows, in order: the way in which the rows are as wide
    as their text is long.

    A line may have several rows, several lines may share one, and a row may have no text: it is
    none of print, as the fold of a sheet, or one that the model did not read.
    """
    lengths = [end - start for start, end in parts]
    widths = [box[2] - box[0] for box in boxes]
    letter = sum(widths) / sum(lengths)  # too wide where there are rows of no print
    _, pairs = min(_paired(lengths, widths, share * letter) for share in (1, 0.7, 0.5, 0.35))
    return [
        (parts[part], union([boxes[row] for row in rows])) for some, rows in pairs for part in some
    ]


def _paired(
    lengths: Sequence[int], widths: Sequence[float], letter: float
) -> tuple[float, list[tuple[list[int], list[int]]]]:
    """Which lines of text are on which rows, where a letter is so wide: the least costly way, with
    its cost."""
    most = max(3, -(-len(lengths) // len(widths)) + 1)
    sizes = [(1, 1), *((n, 1) for n in range(2, most + 1)), *((1, n) for n in range(2, most + 1))]
    # For so many lines and rows: the cost, and the lines and rows of the last step.
    best: dict[tuple[int, int], tuple[float, int, int]] = {(0, 0): (0.0, 0, 0)}
    for row in range(len(widths) + 1):
        for part in range(len(lengths) + 1):
            if (part, row) not in best:
                continue
            cost = best[part, row][0]
            steps = [(0, 1, _NO_TEXT)] + [
                (more, wide, abs(math.log(width / (length * letter))) + _UNEVEN * (more + wide - 2))
                for more, wide in sizes
                if (length := sum(lengths[part : part + more]))
                and (width := sum(widths[row : row + wide])) > 0
            ]
            for more, wide, price in steps:
                end = part + more, row + wide
                is_inside = end[0] <= len(lengths) and end[1] <= len(widths)
                if is_inside and (end not in best or cost + price < best[end][0]):
                    best[end] = cost + price, more, wide
    pairs = []
    end = len(lengths), len(widths)
    while end != (0, 0):
        _, more, wide = best[end]
        if more:
            pairs.append(([*range(end[0] - more, end[0])], [*range(end[1] - wide, end[1])]))
        end = end[0] - more, end[1] - wide
    return best[len(lengths), len(widths)][0], pairs[::-1]
