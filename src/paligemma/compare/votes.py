"""Votes that people gave blindly on the page of a comparison, counted."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.evals.bootstrap import LEVEL, Interval

_CHOICES = ("first", "second", "both", "neither")
_Z = 1.959964  # of a normal distribution, for 95 %


@dataclass(frozen=True, kw_only=True)
class PairVotes:
    """All votes on two models."""

    first: str
    second: str
    first_better: int
    second_better: int
    both: int
    neither: int

    @property
    def win_rate(self) -> float | None:
        """Share of the first among the votes for one of the two; None without any."""
        decided = self.first_better + self.second_better
        return self.first_better / decided if decided else None

    @property
    def interval(self) -> Interval | None:
        """Of the win rate, 95 %, by Wilson's formula (1927, doi 10.1080/01621459.1927.10502953)."""
        return wilson(self.first_better, self.first_better + self.second_better)


def wilson(count: int, total: int) -> Interval | None:
    """The interval of a share.

    >>> interval = wilson(8, 10)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.49, 0.943)
    """
    if total == 0:
        return None
    share, scale = count / total, 1 + _Z**2 / total
    middle = (share + _Z**2 / (2 * total)) / scale
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / scale
    return Interval(low=middle - half, high=middle + half, level=LEVEL)


def count_votes(paths: Sequence[str | Path]) -> tuple[PairVotes, ...]:
    """The votes of all files, by pair; a vote that is in two files counts once.

    Raises DataError for a file that the page did not save, and for files on different comparisons.
    """
    comparison: str | None = None
    seen: set[str] = set()
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(_CHOICES, 0))
    for path in paths:
        content = _read(Path(path))
        if comparison not in (None, content["comparison"]):
            raise DataError(
                f"{str(path)!r} has votes on another comparison than the files before it. Count "
                "the votes on one comparison at a time."
            )
        comparison = content["comparison"]
        for number, vote in enumerate(content["votes"], start=1):
            _check(vote, number, path)
            key = json.dumps([vote[name] for name in ("record", "first", "second", "choice", "at")])
            if key in seen:
                continue
            seen.add(key)
            pair = (vote["first"], vote["second"])
            choice = vote["choice"]
            if pair[::-1] in counts:
                pair = pair[::-1]
                choice = {"first": "second", "second": "first"}.get(choice, choice)
            counts[pair][choice] += 1
    return tuple(
        PairVotes(
            first=first,
            second=second,
            first_better=votes["first"],
            second_better=votes["second"],
            both=votes["both"],
            neither=votes["neither"],
        )
        for (first, second), votes in counts.items()
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError):
        content = None
    is_votes = isinstance(content, dict) and content.get("paligemma_votes") == 1
    types = {"votes": list, "comparison": str}
    if not is_votes or any(not isinstance(content.get(k), kind) for k, kind in types.items()):
        raise DataError(
            f"{str(path)!r} is not a file of votes. Save one with the button of compare.html."
        )
    return dict(content)


def _check(vote: Any, number: int, path: str | Path) -> None:
    names = ("record", "first", "second", "at")
    is_vote = (
        isinstance(vote, dict)
        and all(isinstance(vote.get(name), str) for name in names)
        and vote.get("choice") in _CHOICES
        and vote["first"] != vote["second"]
    )
    if not is_vote:
        raise DataError(f"Vote {number} of {str(path)!r} is not one that the page saves.")
