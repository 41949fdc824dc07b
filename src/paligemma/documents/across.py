"""Addresses side by side on a scan that a model has read across, line by line.

Boxes alone do not tell them from labels with values, so that both are in one part of the page. What
the model has read does: a line is divided where it has a white gap, in the proportion of the print
on both sides of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from paligemma.documents.address import is_address
from paligemma.documents.geometry import Box, union
from paligemma.documents.text_of_lines import ReadLine

_GAP = 2.0  # between two addresses, in line heights
_MOST_LINES = 12
_PITCH = 2.5  # the distance of two lines of an address, at most, in their height


def addresses_apart(lines: Sequence[ReadLine], print_boxes: Sequence[Box]) -> list[ReadLine]:
    """The lines of a block, those of two addresses side by side one address after the other.

    `print_boxes`: the parts of the lines of print that the ink shows.
    """
    gaps = [_gap(line, print_boxes) for line in lines]
    found: list[ReadLine] = []
    at = 0
    while at < len(lines):
        left, right, end = _sides(lines, gaps, at)
        if all(is_address([[line.text] for line in side]) for side in (left, right)):
            found += [*left, *right]
            at = end
        else:
            found.append(lines[at])
            at += 1
    return found


def _sides(
    lines: Sequence[ReadLine], gaps: Sequence[tuple[Box, Box] | None], first: int
) -> tuple[list[ReadLine], list[ReadLine], int]:
    """What stands left and right of a white gap through a line and those that follow it, and the
    number of the line after them."""
    left: list[ReadLine] = []
    right: list[ReadLine] = []
    start, end = -math.inf, math.inf  # of the gap through all lines
    for number in range(first, min(first + _MOST_LINES, len(lines))):
        line, gap = lines[number], gaps[number]
        x0, y0, x1, y1 = line.box
        if number > first and y1 - lines[number - 1].box[3] > _PITCH * (y1 - y0):
            return left, right, number
        if gap is not None and max(start, gap[0][2]) < min(end, gap[1][0]):
            start, end = max(start, gap[0][2]), min(end, gap[1][0])
            halves = _halves(line, *gap)
            left.append(halves[0])
            right.append(halves[1])
        elif number > first and gap is None and x1 < end:  # the longer one goes on
            left.append(line)
            start = max(start, x1)
        elif number > first and gap is None and x0 > start:
            right.append(line)
            end = min(end, x0)
        else:
            return left, right, number
    return left, right, min(first + _MOST_LINES, len(lines))


def _gap(line: ReadLine, print_boxes: Sequence[Box]) -> tuple[Box, Box] | None:
    """The print of a line on both sides of its one wide gap."""
    x0, y0, x1, y1 = line.box
    inside = sorted(
        box
        for box in print_boxes
        if y0 <= (box[1] + box[3]) / 2 <= y1 and x0 <= (box[0] + box[2]) / 2 <= x1
    )
    wide = [
        at
        for at, (box, following) in enumerate(itertools.pairwise(inside), start=1)
        if following[0] - box[2] >= _GAP * (y1 - y0)
    ]
    if len(wide) != 1:
        return None
    return union(inside[: wide[0]]), union(inside[wide[0] :])


def _halves(line: ReadLine, left: Box, right: Box) -> tuple[ReadLine, ReadLine]:
    """A line divided between two words."""
    words = line.text.split()
    share = (left[2] - left[0]) / (left[2] - left[0] + right[2] - right[0])
    length = sum(map(len, words)) + len(words) - 2

    def distance(count: int) -> float:
        return abs(sum(map(len, words[:count])) + count - 1 - share * length)

    count = min(range(1, len(words)), key=distance, default=1)
    texts = " ".join(words[:count]), " ".join(words[count:])
    return replace(line, text=texts[0], box=left), replace(line, text=texts[1], box=right)
