"""The words of a text layer as lines, in reading order.

Words that run upwards, downwards or upside down, such as the label of a vertical axis, are put
together along their own direction, and are lines of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paligemma.documents.geometry import Box, Turn, turn_box, union
from paligemma.documents.order import reading_rows
from paligemma.documents.page import Word

_WORD_GAP = 1.0
"""The widest gap between two words of a line that is not upright, in its height."""


def lines_of_words(words: Sequence[Word]) -> list[tuple[str, Box]]:
    """The text and the box of each line. `words` are in the order of the file."""
    runs = list(_runs(words))
    lines: list[tuple[str, Box]] = []
    for row in reading_rows([run.place for run in runs], texts=[run.text for run in runs]):
        upright = [runs[index] for index in row if not runs[index].turn]
        lines += [(runs[index].text, runs[index].box) for index in row if runs[index].turn]
        if upright:
            text = " ".join(run.text for run in upright)
            lines.append((text, union([run.box for run in upright])))
    return lines


@dataclass(frozen=True)
class _Run:
    """An upright word, or the words of a line that is not."""

    text: str
    box: Box
    turn: Turn

    @property
    def place(self) -> Box:
        """What puts it in order: of a line across those of the page, its upper end."""
        x0, y0, x1, y1 = self.box
        return (x0, y0, x1, y0 + min(x1 - x0, y1 - y0)) if self.turn in (90, 270) else self.box


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
