"""The words of a text layer as lines, in reading order.

Words that run upwards, downwards, upside down or at a slant, such as the labels of an axis, are put
together along their own direction, and are lines of their own. A text that lies over others, such
as a watermark, comes last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paligemma.documents.block import rows_of_boxes
from paligemma.documents.direction import main_direction, words_as_read
from paligemma.documents.geometry import Box, is_turned, turn_box, union
from paligemma.documents.order import reading_rows
from paligemma.documents.page import Word

_WORD_GAP = 1.0
"""The widest gap between two words of a line that is not upright, in its height."""
_COVERED = 2  # words of at most half its height, which a text that lies over others has below it


@dataclass(frozen=True)
class LayerLine:
    """A line of a text layer."""

    text: str
    box: Box
    angle: float
    """Degrees, counterclockwise, by which it rises."""


def lines_of_words(words: Sequence[Word]) -> list[LayerLine]:
    """The words as lines. `words` are in the order of the file."""
    runs = list(_runs(words))
    above = _over_others(runs)
    lines = list(_in_order([run for number, run in enumerate(runs) if number not in above]))
    return lines + [runs[number].line for number in sorted(above)]


def _in_order(runs: Sequence[_Run]) -> Iterator[LayerLine]:
    texts = [run.text for run in runs]
    direction = main_direction(texts)
    for row in reading_rows(_places(runs), texts=texts, right_to_left=direction == "R"):
        of_row = [runs[index] for index in row]
        yield from (run.line for run in of_row if not run.is_upright)
        if upright := [run for run in of_row if run.is_upright]:
            from_left = upright if direction == "L" else upright[::-1]
            text = " ".join(words_as_read([run.text for run in from_left], direction))
            yield LayerLine(text, union([run.box for run in upright]), 0.0)


@dataclass(frozen=True)
class _Run:
    """An upright word, or the words of a line that is not."""

    text: str
    box: Box
    angle: float
    """Degrees, counterclockwise, by which it rises."""
    height: float
    """Of its print, at most."""
    is_filled_in: bool

    @property
    def is_upright(self) -> bool:
        return not is_turned(self.angle)

    @property
    def line(self) -> LayerLine:
        angle = 0.0 if self.is_upright else round(self.angle, 1) % 360
        return LayerLine(self.text, self.box, angle)


def _over_others(runs: Sequence[_Run]) -> set[int]:
    """The runs that lie over others, such as a watermark over the lines of a page."""
    if not runs:
        return set()
    boxes = np.array([run.box for run in runs])
    heights = boxes[:, 3] - boxes[:, 1]
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    found = set()
    for number in np.flatnonzero(heights > 2 * np.median(heights)).tolist():
        inside = (middles > boxes[number, :2]).all(axis=1) & (middles < boxes[number, 2:]).all(
            axis=1
        )
        is_over = (inside & (2 * heights <= heights[number])).sum() >= _COVERED
        if is_over and not runs[number].is_filled_in:
            found.add(number)
    return found


def _places(runs: Sequence[_Run]) -> list[Box]:
    """What puts each run in order: of lines across those of the page, their upper end, at the same
    height for those next to each other, which are read from left to right."""
    places = [run.box for run in runs]
    across = [index for index, run in enumerate(runs) if is_turned(2 * run.angle)]
    for row in rows_of_boxes(np.array([places[index] for index in across]).reshape(-1, 4)):
        members = [across[index] for index in row]
        top = min(places[index][1] for index in members)
        height = min(runs[index].height for index in members)
        for index in members:
            x0, _, x1, _ = places[index]
            places[index] = (x0, top, x1, top + height)
    return places


def _runs(words: Sequence[Word]) -> Iterator[_Run]:
    current: list[Word] = []
    for word in words:
        if current and not (is_turned(_angle(word)) and _follows(current[-1], word)):
            yield _run(current)
            current = []
        current.append(word)
    if current:
        yield _run(current)


def _angle(word: Word) -> float:
    return word.turn + word.slant


def _follows(last: Word, word: Word) -> bool:
    """Whether a word goes on in the line of the last one, seen upright."""
    if is_turned(_angle(word) - _angle(last)):
        return False
    if is_turned(4 * word.slant):
        return _follows_slanted(last, word)
    first, second = (turn_box(each.box_xyxy, (0.0, 0.0), word.turn) for each in (last, word))
    height = min(first[3] - first[1], second[3] - second[1])
    shared = min(first[3], second[3]) - max(first[1], second[1])
    gap = second[0] - first[2]
    return shared > 0.5 * height and -height < gap <= _WORD_GAP * height


def _follows_slanted(last: Word, word: Word) -> bool:
    """As `_follows`, by boxes that are larger than the words: they touch, or nearly so, and the
    middle of the second one lies in the direction of the line."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = last.box_xyxy, word.box_xyxy
    size = min(_print_height(last), _print_height(word))
    if max(u0 - x1, x0 - u1, v0 - y1, y0 - v1) > _WORD_GAP * size:
        return False
    right, up = (u0 + u1 - x0 - x1) / 2, (y0 + y1 - v0 - v1) / 2
    angle = math.radians(_angle(last))
    along = right * math.cos(angle) + up * math.sin(angle)
    across = up * math.cos(angle) - right * math.sin(angle)
    return along > 0 and abs(across) < 0.5 * size


def _print_height(word: Word) -> float:
    """The height of a word's print, at most."""
    x0, y0, x1, y1 = word.box_xyxy
    return min(x1 - x0, y1 - y0)


def _run(words: Sequence[Word]) -> _Run:
    return _Run(
        " ".join(word.text for word in words),
        union([word.box_xyxy for word in words]),
        _angle(words[0]),
        min(map(_print_height, words)),
        words[0].is_filled_in,
    )
