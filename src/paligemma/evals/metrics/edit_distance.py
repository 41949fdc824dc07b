"""Levenshtein distance on any sequences; loads rapidfuzz (the `eval` extra) when first used."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from paligemma.errors import MissingExtraError


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Least number of insertions, deletions and replacements (1 each) between two sequences.

    Texts are compared by code point: a letter with a combining accent counts as two.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise MissingExtraError("rapidfuzz", "eval", "An edit distance") from error
    return int(Levenshtein.distance(first, second))


def normalized_edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Edit distance by the length of the longer sequence, 0..1; 0 for two empty ones."""
    longer = max(len(first), len(second))
    return edit_distance(first, second) / longer if longer else 0.0
