"""The words of a text layer as lines, in reading order.

Words that run upwards, downwards or upside down, such as the label of a vertical axis, are put
together along their own direction, and are lines of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paligemma.documents.direction import main_direction, words_as_read
from paligemma.documents.geometry import Box, Turn, turn_box, union
from paligemma.documents.order import reading_rows, rows_of_boxes
from paligemma.documents.page import Word

_WORD_GAP = 1.0
"""The widest gap between two words of a line that is not upright, in its height."""


def lines_of_words(words: Sequence[Word]) -> list[tuple[str, Box]]:
    """The text and the box of each line. `words` are in the order of the file."""
    runs = list(_runs(words))
    lines: list[tuple[str, Box]] = []
    texts = [run.text for run in runs]
    direction = main_direction(texts)
    rows = reading_rows(_places(runs), texts=texts, right_to_left=direction == "R")
    for row in rows:
        upright = [runs[index] for index in row if not runs[index].turn]
        lines += [(runs[index].text, runs[index].box) for index in row if runs[index].turn]
        if upright:
            from_left = upright if direction == "L" else upright[::-1]
            text = " ".join(words_as_read([run.text for run in from_left], direction))
            lines.append((text, union([run.box for run in upright])))
    return lines


@dataclass(frozen=True)
class _Run:
    """An upright word, or the words of a line that is not."""

    text: str
    box: Box
    turn: Turn


def _places(runs: Sequence[_Run]) -> list[Box]:
    """What puts each run in order: of lines across those of the page, their upper end, at the same
    height for those next to each other, which are read from left to right."""
    places = [run.box for run in runs]
    across = [index for index, run in enumerate(runs) if run.turn in (90, 270)]
    for row in rows_of_boxes(np.array([places[index] for index in across]).reshape(-1, 4)):
        members = [across[index] for index in row]
        top = min(places[index][1] for index in members)
        height = min(places[index][2] - places[index][0] for index in members)
        for index in members:
            x0, _, x1, _ = places[index]
            places[index] = (x0, top, x1, top + height)
    return places


def _runs(words: Sequence[Word]) -> Iterator[_Run]:
    current: list[Word] = []
    for word in words:
        if current and not (word.turn and _follows(current[-1], word)):
            yield _run(current)
            current = []
        current.append(word)
    if current:
        yield _run(current)


def _follows(last: Word, word: Word) -> bool:
    """Whether a word goes on in the line of the last one, seen upright."""
    if word.turn != last.turn:
        return False
    first, second = (turn_box(each.box_xyxy, (0.0, 0.0), word.turn) for each in (last, word))
    height = min(first[3] - first[1], second[3] - second[1])
    shared = min(first[3], second[3]) - max(first[1], second[1])
    gap = second[0] - first[2]
    return shared > 0.5 * height and -height < gap <= _WORD_GAP * height


def _run(words: Sequence[Word]) -> _Run:
    text = " ".join(word.text for word in words)
    return _Run(text, union([word.box_xyxy for word in words]), words[0].turn)
