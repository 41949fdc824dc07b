"""Articles: which photos show the same one, and what they agree on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from paligemma.extraction.values import comparable
from paligemma.results import Result

Grouping = Literal["folder", "name", "none"]

_NUMBER_AT_THE_END = re.compile(
    r"(?<=[^-_. ])[-_. ]+(?:[0-9]{1,3}|[a-z]|front|back|side|top|detail)$"
)


@dataclass(frozen=True, kw_only=True)
class Cell(Result):
    """The value of one attribute of an article, or what one photo says of it."""

    value: Any
    """As JSON holds it; None where no photo shows one."""
    score: float
    """Of one photo, the model's probability of the value. Of an article, the mean over the photos
    that show a value, in which those that show another one count as 0."""
    problems: tuple[str, ...] = ()
    """Why it may be wrong."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cell:
        """The cell that `to_dict` wrote."""
        return cls(**{**values, "problems": tuple(values["problems"])})

    def is_sure(self, min_score: float) -> bool:
        """Whether the value is good enough for the table."""
        return self.value is not None and self.score >= min_score and not self.problems


@dataclass(frozen=True, kw_only=True)
class Article(Result):
    """One article, and what its photos say of it."""

    name: str
    photos: tuple[str, ...]
    """Paths below the folder of photos, with "/"."""
    cells: Mapping[str, Cell]
    """The attributes by name, in the order of the schema."""
    failed: Mapping[str, str]
    """The photos that could not be read, with the reason."""
    min_score: float

    @property
    def values(self) -> dict[str, Any]:
        """The attributes; None for those that are missing or unsure."""
        return {
            name: cell.value if cell.is_sure(self.min_score) else None
            for name, cell in self.cells.items()
        }

    def to_dict(self) -> dict[str, Any]:
        unsure = {
            name: cell.to_dict()
            for name, cell in self.cells.items()
            if cell.value is not None and not cell.is_sure(self.min_score)
        }
        return {
            "article": self.name,
            "photos": list(self.photos),
            "values": self.values,
            "scores": {name: cell.score for name, cell in self.cells.items()},
            "unsure": unsure,
            "failed": dict(self.failed),
        }


def group_photos(photos: Iterable[str], by: Grouping) -> dict[str, list[str]]:
    """The photos of each article, by the article's name.

    folder: the photos of a folder are one article, and those that are in no folder one each.
    name: the part before a number, a letter or "front", "back", "side", "top", "detail" at the end.
    none: each photo is an article. Names that differ in nothing but the suffix are one.

    >>> group_photos(["1.jpg", "a/1.jpg", "a/2.jpg"], "folder")
    {'1': ['1.jpg'], 'a': ['a/1.jpg', 'a/2.jpg']}
    >>> group_photos(["hat-1.jpg", "hat-2.jpg", "hat.png", "7_back.jpg"], "name")
    {'hat': ['hat-1.jpg', 'hat-2.jpg', 'hat.png'], '7': ['7_back.jpg']}
    """
    groups: dict[str, list[str]] = {}
    for photo in photos:
        path = PurePosixPath(photo)
        name = path.with_suffix("").as_posix()
        if by == "folder" and len(path.parts) > 1:
            name = path.parent.as_posix()
        elif by == "name":
            name = path.with_name(_NUMBER_AT_THE_END.sub("", path.stem)).as_posix()
        groups.setdefault(name, []).append(photo)
    return groups


def vote(cells: Sequence[Cell]) -> Cell:
    """What several photos of an article say of one attribute.

    Values that mean the same are one; that with the largest sum of scores wins.

    >>> vote([Cell(value="red", score=0.9), Cell(value="Red", score=0.5), Cell(value="pink",
    ... score=0.7)])
    Cell(value='red', score=0.4667, problems=())
    """
    shown = [cell for cell in cells if cell.value is not None]
    if not shown:
        return Cell(value=None, score=0.0)
    sides: dict[Any, list[Cell]] = {}
    for cell in shown:
        sides.setdefault(_side(cell.value), []).append(cell)
    winners = max(sides.values(), key=lambda side: sum(cell.score for cell in side))
    best = max(winners, key=lambda cell: (not cell.problems, cell.score))
    score = sum(cell.score for cell in winners) / len(shown)
    return Cell(value=best.value, score=round(score, 4), problems=best.problems)


def _side(value: Any) -> Any:
    return tuple(map(comparable, value)) if isinstance(value, list) else comparable(value)
