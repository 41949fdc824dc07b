"""Whether a narrow block beside a column of text is a text of its own, and no column of a table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paligemma.documents.block import Boxes, has_long_lines, rows_of_boxes

LEAST_MAIN_LINES = 10
"""Of the text beside a sidebar."""
_LEAST_LINES = 3
_TIGHT = 2.2  # the distance of two lines of text, at most, in their height
_MOSTLY = 0.7
_HOLE = 4.0  # the same between two of its paragraphs
_APART = 0.17  # how far its lines are from those of the other side, in the distance of these
_WRAPPED = 0.8  # of the lines: the word that follows would not fit


def stands_apart(side: Boxes, main: Boxes) -> bool:
    """Whether lines of text stand beside other lines of text, but not at their heights."""
    if not has_long_lines(main) or len(main) < LEAST_MAIN_LINES:
        return False
    middles, others = _middles(side), _middles(main)
    if len(others) < LEAST_MAIN_LINES:
        return False
    height = float(np.median(side[:, 3] - side[:, 1]))
    if not (_is_tight(side, middles) and _is_tight(main, others)):
        return False
    if np.diff(middles).max() > _HOLE * height:
        return False
    beside = middles[(middles > others[0]) & (middles < others[-1])]
    if len(beside) < _LEAST_LINES:
        return False
    nearest = np.abs(beside[:, None] - others).min(axis=1)
    return bool(np.median(nearest) > _APART * np.median(np.diff(others)))


def _is_tight(boxes: Boxes, middles: NDArray[np.float64]) -> bool:
    """Whether most lines follow each other as in a text."""
    height = float(np.median(boxes[:, 3] - boxes[:, 1]))
    return (
        len(middles) >= _LEAST_LINES
        and float(np.mean(np.diff(middles) <= _TIGHT * height)) >= _MOSTLY
    )


def is_wrapped(boxes: Boxes, texts: Sequence[str]) -> bool:
    """Whether lines are as long as their words allow, as those of running text: the first word of
    the next line would not have fitted. Some begin in the middle of a sentence."""
    lines = [
        (
            float(boxes[row, 2].max()),
            " ".join(texts[index] for index in row),
            float(boxes[row, 2].max() - boxes[row, 0].min()),
        )
        for row in (row[np.argsort(boxes[row, 0], kind="stable")] for row in rows_of_boxes(boxes))
    ]
    edge = boxes[:, 2].max()
    num_wrapped = num_going_on = num_lines = 0
    for (end, text, _), (_, following, width) in itertools.pairwise(lines):
        if text.endswith((".", "!", "?", ":")):  # perhaps the end of a paragraph
            continue
        num_lines += 1
        letter = width / max(1, len(following))
        num_wrapped += end + letter * (len(following.split(" ")[0]) + 0.5) > edge
        num_going_on += following[:1].islower()
    return (
        num_lines >= _LEAST_LINES
        and num_wrapped >= _WRAPPED * num_lines
        and 3 * num_going_on >= num_lines
    )


def _middles(boxes: Boxes) -> NDArray[np.float64]:
    """The heights at which lines stand, from the top."""
    return np.array([(boxes[row, 1] + boxes[row, 3]).mean() / 2 for row in rows_of_boxes(boxes)])
