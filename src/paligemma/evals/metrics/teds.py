"""TEDS and TEDS-struct: how much of a table's tree of HTML elements is right.

Zhong et al. 2020, arXiv 1911.10683: 1 - (tree edit distance / nodes of the larger table), on the
trees of the two tables. Inserting, deleting or replacing a node costs 1; two cells with equal spans
differ by the normalised edit distance of their content, in which a tag counts as one character;
such tags are no nodes of the trees, but count in the size of a table (so the reference has it).
TEDS-struct (S-TEDS) leaves the content of cells out. The tree edit distance is the package apted's
(the `eval` extra), which is what the reference implementation stands on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from paligemma.errors import DataError, MissingExtraError
from paligemma.evals.metrics.edit_distance import normalized_edit_distance
from paligemma.evals.metrics.html_table import Element, parse_table, span_of
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair


@dataclass(frozen=True, kw_only=True)
class Teds:
    """TEDS of HTML tables, 0..1; `structure_only` makes it TEDS-struct.

    Nothing is normalised: case and white space count, entities are read as the sign they stand
    for, comments are dropped; attributes other than spans do not count. Of several tables the
    first counts, and a prediction without any scores 0. As in the reference, text and spans count
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
            guess = parse_table(prediction)
            truths = [_true_table(html, index) for html in accepted]
            missing += guess is None
            scores.append(
                max(0.0 if guess is None else self.similarity(guess, truth) for truth in truths)
            )
        name = "teds_struct" if self.structure_only else "teds"
        return mean_result(name, scores, {"no_table": missing / len(scores)})

    def similarity(self, prediction: Element, reference: Element) -> float:
        """TEDS of two tables."""
        size = max(sum(1 for _ in table.iterdescendants()) for table in (prediction, reference))
        guess, truth = self._tree(prediction), self._tree(reference)
        if guess == truth:  # of good models most, and apted takes seconds for a large table
            return 1.0
        # The table itself is no part of the size, so a distance can be larger: for cells without
        # a row, say, where the reference goes below zero.
        return max(0.0, 1.0 - _tree_edit_distance(guess, truth) / size)

    def _tree(self, element: Element) -> _Node:
        tag = "td" if self.th_as_td and element.tag == "th" else element.tag
        if tag != "td":
            return _Node(label=(tag,), children=[self._tree(child) for child in element])
        # Inserted tags such as <b> are content of the cell, not nodes of the tree.
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
