"""Which line of print each part of a text belongs to that a model read in a tile."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paligemma.documents.geometry import Box, union
from paligemma.results import Text


class Detokenizer(Protocol):
    """Turns token ids into text."""

    def detokenize(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class ReadLine:
    """A line as the model read it in one tile."""

    text: str
    box: Box
    score: float


def lines_in_tile(
    answer: Text, rows: Sequence[Sequence[Box]], tokens: Detokenizer
) -> list[ReadLine]:
    """The answer line by line, each with its box and the mean probability of its tokens.

    `rows` are the rows of print in the tile, from the top. Where the model writes as many lines as
    there are rows, each has its own. Else text is laid along the rows by its length: of an answer
    in one line, word by word.
    """
    spans = _token_spans(answer, tokens)
    text = "".join(piece for piece, _ in spans)
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
        words = " ".join(text[start:end].split())
        if words:
            lines.append(ReadLine(words, box, _score(spans, start, end)))
    return lines


def _token_spans(answer: Text, tokens: Detokenizer) -> list[tuple[str, float]]:
    """The text that each token adds, and its log-probability."""
    spans: list[tuple[str, float]] = []
    before = ""
    for count, logprob in enumerate(answer.logprobs, start=1):
        text = tokens.detokenize(answer.token_ids[:count])
        # A token that completes a character changes the end of the text before it.
        shared = len(before) if text.startswith(before) else len(before.rstrip("\ufffd"))
        if shared < len(before) and spans:
            spans[-1] = (spans[-1][0].rstrip("\ufffd"), spans[-1][1])
        spans.append((text[shared:], logprob))
        before = text
    return spans


def _score(spans: Sequence[tuple[str, float]], start: int, end: int) -> float:
    logprobs, at = [], 0
    for piece, logprob in spans:
        if piece and at < end and at + len(piece) > start:
            logprobs.append(logprob)
        at += len(piece)
    return math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else 0.0


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
        covered = [
            box
            for box, stop, begin in zip(boxes, ends, [0.0, *ends], strict=False)
            if min(stop, last) - max(begin, first) > 0.3 * min(stop - begin, last - first)
        ]
        middle = (first + last) / 2
        nearest = min(range(len(ends)), key=lambda i: abs(ends[i] - middle))
        placed.append(((start, end), union(covered or [boxes[nearest]])))
    return placed
