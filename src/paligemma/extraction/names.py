"""Names that the user spells: the nearest to what was read is shown next to it, never instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paligemma.errors import MissingExtraError, OptionError
from paligemma.extraction.result import Match
from paligemma.extraction.schema import Leaf, List, Schema
from paligemma.results import one_line

NameLists = Mapping[str, Sequence[str]] | Sequence[str]
"""Names, or names by the path of the value that they are for: {"medicines.name": [...]}."""

LEAST_LIKENESS = 0.6
_AS_NEAR = 0.02


@dataclass(frozen=True, kw_only=True)
class Names:
    """Lists of names by the keys of their leaves."""

    by_keys: Mapping[tuple[str, ...], tuple[str, ...]]

    def match(self, leaf: Leaf | List, text: str) -> tuple[Match | None, str | None]:
        """The nearest name to a value's text, and a problem where that is no help."""
        names = self.by_keys.get(leaf.keys)
        if names is None:
            return None, None
        from rapidfuzz import process, utils

        nearest = process.extract(
            text, names, scorer=_likeness, processor=utils.default_process, limit=2
        )
        if not nearest or nearest[0][1] < 100 * LEAST_LIKENESS:
            return None, "no name in the list is near"
        match = Match(text=nearest[0][0], score=round(nearest[0][1] / 100, 4))
        if len(nearest) > 1 and match.score < 1 and match.score - nearest[1][1] / 100 < _AS_NEAR:
            return match, f"another name in the list is as near: {nearest[1][0]}"
        return match, None


def _likeness(text: str, name: str, *, score_cutoff: float | None = None) -> float:
    """Likeness from 0 to 100. A text may have more than the name, such as a dose; a text of less
    than half the name is a fragment, which is in many names."""
    from rapidfuzz import fuzz

    scorer = fuzz.ratio if 2 * len(text) < len(name) else fuzz.WRatio
    return float(scorer(text, name, score_cutoff=score_cutoff))


def read_names(names: NameLists, schema: Schema[Any]) -> Names:
    """The lists by leaf. Raises OptionError for a path that the schema does not have, or for names
    without a value to compare, and MissingExtraError without rapidfuzz."""
    if not names:
        return Names(by_keys={})
    try:
        import rapidfuzz  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("rapidfuzz", "guided", "Comparing names with a list") from error
    if not isinstance(names, Mapping):
        return Names(by_keys={leaf.keys: _cleaned(names) for leaf in _named_leaves(schema)})
    leaves = {leaf.path.replace("[]", ""): leaf for leaf in schema.leaves()}
    by_keys = {}
    for path, given in names.items():
        leaf = leaves.get(path.replace("[]", ""))
        if leaf is None:
            raise OptionError(
                f"The schema has no value {path[:80]!r} to compare with a list of names. It has: "
                f"{', '.join(list(leaves)[:20])}."
            )
        by_keys[leaf.keys] = _cleaned(given)
    return Names(by_keys=by_keys)


def _named_leaves(schema: Schema[Any]) -> list[Leaf]:
    if marked := [leaf for leaf in schema.leaves() if leaf.names]:
        return marked
    lists = [node for node in schema.nodes() if isinstance(node, List)]
    if len(lists) == 1 and lists[0].key_leaf.kind == "text":
        return [lists[0].key_leaf]
    raise OptionError(
        "The schema does not say which value the list of names is for. Give its path, such as "
        "medicines.name, together with the names."
    )


def _cleaned(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in names if (name := one_line(each))))
