"""Searching an index: what matches, how well, and because of which words."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from paligemma.errors import OptionError, check_whole
from paligemma.escaping import visible
from paligemma.results import Result
from paligemma.search.query import Query, Term, read_query
from paligemma.search.store import FIELDS, Store, said_as_option_error

_OPEN, _CLOSE = "\x02", "\x03"  # which no stored text has
_MARKED = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")
_CANDIDATES = 1_000
"""Best pictures by BM25 that are looked at more closely."""
_WEIGHTS = "1.0, 1.0, 1.0"


@dataclass(frozen=True, kw_only=True)
class Match(Result):
    """A word that was looked for, where it stands."""

    field: str
    """caption, text or labels."""
    start: int
    end: int
    """[start, end) in the field."""
    word: str


@dataclass(frozen=True, kw_only=True)
class Hit(Result):
    """A picture that was found, and why."""

    path: str
    """The file."""
    caption: str
    text: str
    labels: str
    matches: tuple[Match, ...]
    num_terms: int
    """Words of the query that it has; more come first."""
    bm25: float
    """How well the words fit, by their rarity and number: higher is better."""
    scores: dict[str, float]
    """The model's own, of caption and text."""
    likelihood: float | None = None
    """After `rerank`: the probability that the model gives to the query."""

    def marked(self, field: str, before: str, after: str) -> str:
        """A field with what was found between marks."""
        text: str = getattr(self, field)
        pieces, position = [], 0
        for match in (each for each in self.matches if each.field == field):
            pieces += [text[position : match.start], before, match.word, after]
            position = match.end
        return "".join([*pieces, text[position:]])


class Index:
    """An index that is open to be searched. A context manager.

    >>> with Index.open("index.db") as index:                        # doctest: +SKIP
    ...     hits = index.search("two frogs")
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        with said_as_option_error(store.path):
            self.settings = store.settings()
            self.folder = Path(self.settings["folder"])
            """The folder whose pictures it has."""

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open an index read-only. Raises OptionError for a file that is none."""
        return cls(Store.read(Path(path)))

    def __len__(self) -> int:
        """The number of pictures."""
        with said_as_option_error(self._store.path):
            row = self._store.connection.execute("SELECT count(*) FROM pictures").fetchone()
        return int(row[0])

    def search(self, query: str, count: int = 10) -> list[Hit]:
        """The best pictures for a query, best first.

        Words are looked for in any form of case and accents; "red car" in quotes is a phrase,
        invoic* a beginning, -dog leaves pictures with "dog" out. Pictures with more of the words
        come first, then those that BM25 (the FTS5 function) finds better, then by path.

        Raises OptionError for a query without a word and for a file that is damaged.
        """
        check_whole("count", count)
        wanted = read_query(query)
        with said_as_option_error(self._store.path):
            candidates = self._candidates(wanted)
            numbers = self._num_terms(wanted, [row[0] for row in candidates])
            candidates.sort(key=lambda row: (-numbers[row[0]], row[1], row[2]))
            return [
                self._hit(wanted, row_id, numbers[row_id], rank, path)
                for row_id, rank, path in candidates[:count]
            ]

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _candidates(self, query: Query) -> list[tuple[int, float, bytes]]:
        return self._store.connection.execute(
            f"SELECT words.rowid, bm25(words, {_WEIGHTS}) AS rank, path FROM words "
            "JOIN pictures ON pictures.id = words.rowid WHERE words MATCH ? "
            "ORDER BY rank, path LIMIT ?",
            (query.fts5, _CANDIDATES),
        ).fetchall()

    def _num_terms(self, query: Query, row_ids: list[int]) -> dict[int, int]:
        """How many of the terms each picture has."""
        numbers = dict.fromkeys(row_ids, 0)
        for term in query.terms if len(query.terms) > 1 else ():
            for row_id in self._with_term(term):
                if row_id in numbers:
                    numbers[row_id] += 1
        return numbers if len(query.terms) > 1 else dict.fromkeys(row_ids, 1)

    def _with_term(self, term: Term) -> list[int]:
        rows = self._store.connection.execute(
            "SELECT rowid FROM words WHERE words MATCH ?", (term.fts5,)
        )
        return [row_id for (row_id,) in rows]

    def _hit(self, query: Query, row_id: int, num_terms: int, rank: float, path: bytes) -> Hit:
        marked = ", ".join(
            f"highlight(words, {number}, '{_OPEN}', '{_CLOSE}')" for number in range(len(FIELDS))
        )
        *fields, scores = self._store.connection.execute(
            f"SELECT {marked}, scores FROM words JOIN pictures ON pictures.id = words.rowid "
            "WHERE words MATCH ? AND words.rowid = ?",
            (query.fts5, row_id),
        ).fetchone()
        values: dict[str, Any] = {}
        matches: list[Match] = []
        for name, text in zip(FIELDS, fields, strict=True):
            values[name], found = _unmarked(name, text)
            matches += found
        return Hit(
            path=str(self._place(os.fsdecode(path))),
            matches=tuple(matches),
            num_terms=num_terms,
            bm25=round(-rank, 6),
            scores=json.loads(scores),
            **values,
        )

    def _place(self, path: str) -> Path:
        """Where a picture is. An index of a stranger could name any file of this machine, which
        `rerank` would open."""
        if Path(path).is_absolute() or Path(path).drive or ".." in Path(path).parts:
            raise OptionError(
                f"The index {str(self._store.path)!r} names {visible(path)!r}, which is outside of "
                "its folder, as `paligemma index` never does. Make the index again."
            )
        return self.folder / path


def _unmarked(field: str, marked: str) -> tuple[str, list[Match]]:
    """The text of a field without marks, and where they were."""
    matches, shift = [], 0
    for found in _MARKED.finditer(marked):
        start = found.start() - shift
        end = start + len(found[1])
        matches.append(Match(field=field, start=start, end=end, word=found[1]))
        shift += 2
    return marked.replace(_OPEN, "").replace(_CLOSE, ""), matches
