"""Metrics of tables that are written as HTML: TEDS on their trees, GriTS on their grids.

lxml (extra "eval") reads the HTML, as in the reference implementation of TEDS: unclosed cells,
stray end tags and text that was cut off are repaired, and a missing `tbody` is not added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from paligemma.errors import DataError, MissingExtraError
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair
from paligemma.evals.metrics.texts import normalized_edit_distance
from paligemma.tables import MAX_SPAN, Cell, Grid

Box = tuple[float, float, float, float]
Feature = TypeVar("Feature", bound=Hashable)
Rewards = npt.NDArray[np.float64]

_ALONE: Box = (0.0, 0.0, 1.0, 1.0)
Element = Any
"""An lxml element."""

_CELLS = frozenset(("td", "th"))
_TAG_START = re.compile(r"<[a-zA-Z/!?]")


def parse_table(html: str) -> Element | None:
    """The first table, or None where there is none.

    A tag that the end of the text cuts off is dropped, as browsers drop it.
    """
    try:
        from lxml import etree
    except ImportError:
        raise MissingExtraError("lxml", "eval", "Reading HTML tables") from None
    last = html.rfind(">") + 1
    if unfinished := _TAG_START.search(html, last):
        html = html[: unfinished.start()]
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(html.replace("\0", "").encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError:  # nothing but white space and comments
        return None
    return None if root is None else next(root.iter("table"), None)


def span_of(element: Element, attribute: str) -> int:
    """`colspan` or `rowspan`: 1 where it is missing or no number, and at most 100."""
    value = element.get(attribute, "").strip()
    if not (value.isascii() and value.isdigit()):
        return 1
    return min(MAX_SPAN, max(1, int(value[:9])))


def table_cells(table: Element) -> list[Cell] | None:
    """Cells in reading order; None for a grid that is too large to be compared.

    Texts on both sides of a tag inside a cell are joined by a space, as in GriTS's reference code.
    """
    cells: list[Cell] = []
    grid = Grid()
    for node in _rows_and_cells(table):
        if node.tag == "tr":
            grid.start_row()
            continue
        rowspan, colspan = span_of(node, "rowspan"), span_of(node, "colspan")
        position = grid.place(rowspan, colspan)
        if position is None:
            return None
        text = " ".join(node.itertext())
        row, column = position
        cells.append(Cell(text=text, row=row, column=column, rowspan=rowspan, colspan=colspan))
    return cells


def _rows_and_cells(node: Element) -> Iterator[Element]:
    """Rows and cells of this table; a table inside a cell is content of that cell."""
    for child in node:
        if child.tag == "tr" or child.tag in _CELLS:
            yield child
        if child.tag not in _CELLS:
            yield from _rows_and_cells(child)


@dataclass(frozen=True, kw_only=True)
class Teds:
    """TEDS of HTML tables, 0..1; `structure_only` makes it TEDS-struct (S-TEDS).

    Zhong et al. 2020, arXiv 1911.10683: 1 - (tree edit distance / nodes of the larger table), on
    the trees of elements. Inserting, deleting or replacing a node costs 1; two cells with equal
    spans differ by the normalized edit distance of their content, in which a tag counts as one
    character. As in the reference implementation, such tags are not nodes of the trees, but count
    in the size of a table. TEDS-struct ignores the content of cells. The tree edit distance is
    computed by apted (extra "eval"), as in the reference implementation.

    Nothing is normalized: case and white space count, entities are read as the character they
    stand for, comments are dropped; attributes other than spans do not count. Only the first table
    counts, and a prediction without a table scores 0. As in the reference, text and spans count
    only in `td` cells; `th_as_td` reads header cells as `td` on both sides.
    """

    structure_only: bool = False
    th_as_td: bool = False

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """References: HTML with a table; with several, the best score counts.

        Raises DataError where a reference has no table.
        """
        scores, missing = [], 0
        for index, (prediction, accepted) in enumerate(pair(predictions, references)):
            table = parse_table(prediction)
            truths = [_true_table(html, index) for html in accepted]
            missing += table is None
            scores.append(
                max(0.0 if table is None else self.similarity(table, truth) for truth in truths)
            )
        name = "teds_struct" if self.structure_only else "teds"
        return mean_result(name, scores, {"no_table": missing / len(scores)})

    def similarity(self, prediction: Element, reference: Element) -> float:
        """TEDS of two tables."""
        size = max(sum(1 for _ in table.iterdescendants()) for table in (prediction, reference))
        tree, true_tree = self._tree(prediction), self._tree(reference)
        if tree == true_tree:  # common for good models; apted takes seconds for a large table
            return 1.0
        # The table itself does not count in the size, so the distance can be larger, for example
        # for cells without a row. The reference implementation is negative there.
        return max(0.0, 1.0 - _tree_edit_distance(tree, true_tree) / size)

    def _tree(self, element: Element) -> _Node:
        tag = "td" if self.th_as_td and element.tag == "th" else element.tag
        if tag != "td":
            return _Node(label=(tag,), children=[self._tree(child) for child in element])
        # Tags such as <b> inside a cell are its content, not nodes of the tree.
        return _Node(
            label=(tag, span_of(element, "colspan"), span_of(element, "rowspan")),
            content=() if self.structure_only else tuple(_tokens(element)),
        )


@dataclass(kw_only=True)
class _Node:
    label: tuple[str | int, ...]
    content: tuple[str, ...] = ()
    children: list[_Node] = field(default_factory=list)


def _tokens(element: Element) -> Iterator[str]:
    """Content of an element: its characters, and every tag as one token."""
    yield from element.text or ""
    for child in element:
        yield f"<{child.tag}>"
        yield from _tokens(child)
        yield f"</{child.tag}>"
        yield from child.tail or ""


def _tree_edit_distance(first: _Node, second: _Node) -> float:
    try:
        from apted import APTED, Config
    except ImportError as error:
        raise MissingExtraError("apted", "eval", "TEDS") from error

    class Costs(Config):  # type: ignore[misc]
        def rename(self, node1: _Node, node2: _Node) -> float:
            if node1.label != node2.label:
                return 1.0
            return normalized_edit_distance(node1.content, node2.content)

        def children(self, node: _Node) -> Any:
            return node.children

    return float(APTED(first, second, Costs()).compute_edit_distance())


def _true_table(html: str, index: int) -> Element:
    table = parse_table(html)
    if table is None:
        raise DataError(
            f"The reference of example {index} has no <table>. TEDS compares tables written as "
            "HTML."
        )
    return table


@dataclass(frozen=True, kw_only=True)
class Grits:
    """GriTS-Top or GriTS-Con of HTML tables, 0..1: their similarity as grids of cells.

    Smock et al. 2023, arXiv 2203.12555: the rows and columns of both grids that are most alike,
    aligned in order, are kept; precision and recall are their total similarity divided by the size
    of either grid, and the score is the F-measure. Rows and columns are aligned separately (the
    paper's factored 2D-MSS). Where the authors' published code and the paper differ, this follows
    the code, which published figures were made with: the "union" of two boxes is the smallest box
    around both, and the common subsequence of two texts is that of Python's difflib, which is often
    shorter than the longest.

    "topology" compares only spans, "content" the text of cells. Nothing is normalized: case and
    white space count, tags inside a cell do not (texts around them are joined by a space). Only the
    first table counts; a prediction without a table, or with a grid of more than 20,000 cells,
    scores 0. Where a row has fewer cells than the grid is wide, the rest are empty cells.
    `details`: mean precision and recall.
    """

    of: Literal["topology", "content"] = "topology"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """References: HTML with a table, exactly one per example.

        Raises DataError where a reference has none, or one with a larger grid.
        """
        scores: list[_Scores] = []
        for index, (prediction, (reference,)) in enumerate(
            pair(predictions, references, single=True)
        ):
            truth = _cells(reference)
            if truth is None:
                raise DataError(
                    f"The reference of example {index} has no <table>, or one of too many cells. "
                    "GriTS compares tables written as HTML."
                )
            # No table counts as no cells: precision 1 and recall 0.
            scores.append(self.of_cells(_cells(prediction) or [], truth))
        return _result("grits_top" if self.of == "topology" else "grits_con", scores)

    def of_cells(self, predicted: Sequence[Cell], true: Sequence[Cell]) -> _Scores:
        """(F-measure, precision, recall) of two tables given as cells."""
        if self.of == "topology":
            return _grid_scores(_span_grid(predicted), _span_grid(true), _box_similarity)
        return _grid_scores(_text_grid(predicted), _text_grid(true), _text_similarity)


_Scores = tuple[float, float, float]  # F-measure, precision, recall


def _cells(html: str) -> list[Cell] | None:
    table = parse_table(html)
    return None if table is None else table_cells(table)


def _result(name: str, scores: Sequence[_Scores]) -> MetricResult:
    details = {
        "precision": sum(score[1] for score in scores) / len(scores),
        "recall": sum(score[2] for score in scores) / len(scores),
    }
    return mean_result(name, [score[0] for score in scores], details)


def _grid_scores(
    predicted: Sequence[Sequence[Feature]],
    true: Sequence[Sequence[Feature]],
    similarity: Callable[[Feature, Feature], float],
) -> _Scores:
    num_predicted = sum(len(row) for row in predicted)
    num_true = sum(len(row) for row in true)
    if not num_predicted or not num_true:
        # By convention an empty prediction is precise, and an empty truth is found.
        precision, recall = float(not num_predicted), float(not num_true)
        return float(not num_predicted and not num_true), precision, recall
    cached = lru_cache(maxsize=None)(similarity)
    # rewards[i, j, m, n]: how alike the true cell (i, m), row and column, and predicted (j, n) are
    rewards: Rewards = np.array(
        [[[[cached(t, p) for p in prow] for t in trow] for prow in predicted] for trow in true]
    )
    rows = _align(_alignment_table(rewards)[..., -1, -1])
    columns = _align(_alignment_table(rewards.transpose(2, 3, 0, 1))[..., -1, -1])
    total = float(sum(rewards[i, j, m, n] for i, j in rows for m, n in columns))
    precision, recall = total / num_predicted, total / num_true
    both = precision + recall
    return (2 * precision * recall / both if both else 0.0), precision, recall


def _alignment_table(rewards: Rewards) -> Rewards:
    """Best reward of aligning the first m rows with the first n columns of the last two axes."""
    *others, num_true, num_predicted = rewards.shape
    best = np.zeros((*others, num_true + 1, num_predicted + 1))
    for i in range(num_true):
        for j in range(num_predicted):
            skipped = np.maximum(best[..., i, j + 1], best[..., i + 1, j])
            best[..., i + 1, j + 1] = np.maximum(best[..., i, j] + rewards[..., i, j], skipped)
    return best


def _align(rewards: Rewards) -> list[tuple[int, int]]:
    """The pairs of the best alignment, in order; ties prefer to pair the last rows."""
    num_true, num_predicted = rewards.shape
    best = _alignment_table(rewards)
    pairs = []
    i, j = num_true, num_predicted
    while i and j:
        if best[i, j] == best[i - 1, j - 1] + rewards[i - 1, j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _span_grid(cells: Sequence[Cell]) -> list[list[Box]]:
    """At each position the box of its cell relative to that position, in units of the grid."""
    grid = _empty_grid(cells, _ALONE)
    for cell in cells:
        for row, column in cell.positions():
            left, top = cell.column - column, cell.row - row
            grid[row][column] = (left, top, left + cell.colspan, top + cell.rowspan)
    return grid


def _text_grid(cells: Sequence[Cell]) -> list[list[str]]:
    grid = _empty_grid(cells, "")
    for cell in cells:
        for row, column in cell.positions():
            grid[row][column] = cell.text
    return grid


def _empty_grid(cells: Sequence[Cell], value: Feature) -> list[list[Feature]]:
    num_rows = max((cell.row + cell.rowspan for cell in cells), default=0)
    num_columns = max((cell.column + cell.colspan for cell in cells), default=0)
    return [[value] * num_columns for _ in range(num_rows)]


def _box_similarity(first: Box, second: Box) -> float:
    """Intersection divided by the area of the smallest box around both."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    around = (max(first[2], second[2]) - min(first[0], second[0])) * (
        max(first[3], second[3]) - min(first[1], second[1])
    )
    return max(0.0, width) * max(0.0, height) / around if around > 0 else 0.0


def _text_similarity(first: str, second: str) -> float:
    """Twice the length of difflib's common subsequence divided by both lengths; 1 for two empty."""
    if not first and not second:
        return 1.0
    blocks = SequenceMatcher(None, first, second).get_matching_blocks()
    return 2 * sum(block.size for block in blocks) / (len(first) + len(second))
