"""What a person types -> a query for FTS5, whose own syntax is never reached.

receipt from Paris      pictures with "receipt" or "Paris"; those with both come first
"red car"               these words next to each other
invoic*                 words that begin so
-dog                    not pictures with "dog"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.errors import OptionError

MAX_TERMS = 32
_PART = re.compile(r'(-?)(?:"([^"]*)"|([^\s"]+))(\*?)')
_LETTERS = re.compile(r"[^\W_]")
# In the languages of the models' captions: words that say nothing about a picture by themselves.
_SMALL = frozenset(
    {
        *("a", "an", "and", "are", "at", "by", "for", "from", "in", "is", "of", "on", "or", "the"),
        *("this", "that", "to", "with", "am", "auf", "aus", "bei", "das", "dem", "den", "der"),
        *(
            "des",
            "die",
            "ein",
            "eine",
            "einem",
            "einen",
            "einer",
            "für",
            "im",
            "ist",
            "mit",
            "oder",
        ),
        *(
            "und",
            "von",
            "zu",
            "au",
            "aux",
            "avec",
            "de",
            "du",
            "et",
            "la",
            "le",
            "les",
            "ou",
            "par",
        ),
        *("pour", "sur", "un", "une", "con", "del", "el", "los", "las", "o", "para", "por", "una"),
        *("y", "che", "di", "e", "il", "lo", "nel", "per", "su", "com", "da", "do", "em", "na"),
        *("no", "os", "um", "uma"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Term:
    """A word or phrase to look for."""

    text: str
    is_prefix: bool = False
    is_excluded: bool = False

    @property
    def fts5(self) -> str:
        """As FTS5 takes it: a string, in which nothing is syntax but the doubled quotes."""
        return '"' + self.text.replace('"', '""') + '"' + ("*" if self.is_prefix else "")


@dataclass(frozen=True, kw_only=True)
class Query:
    """Terms of which a picture has at least one, and none of those that are excluded."""

    terms: tuple[Term, ...]
    excluded: tuple[Term, ...] = ()
    ignored: tuple[str, ...] = ()
    """Words such as "the", which are not looked for."""

    @property
    def fts5(self) -> str:
        """The whole query."""
        found = " OR ".join(term.fts5 for term in self.terms)
        if not self.excluded:
            return found
        return f"({found}) NOT ({' OR '.join(term.fts5 for term in self.excluded)})"


def read_query(text: str) -> Query:
    """The query that a text means. Raises OptionError where there is nothing to look for.

    >>> read_query('receipt from "Rue de" -dog').fts5
    '("receipt" OR "Rue de") NOT ("dog")'
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = text.replace("\0", " ").replace("“", '"').replace("”", '"')
    terms = [
        Term(text=words, is_prefix=bool(star), is_excluded=bool(minus))
        for minus, phrase, word, star in _parts(text)
        if _LETTERS.search(words := phrase or word)
    ]
    wanted = [term for term in terms if not term.is_excluded]
    telling = [term for term in wanted if term.text.casefold() not in _SMALL] or wanted
    excluded = [term for term in terms if term.is_excluded]
    if len(terms) > MAX_TERMS:
        raise OptionError(f"The query has {len(terms)} words; at most {MAX_TERMS} are looked for.")
    if not wanted:
        found = f"only what to leave out, {excluded[0].text!r}" if excluded else "no word"
        raise OptionError(f"The query {text!r} has {found}. Give a word to look for.")
    return Query(
        terms=tuple(dict.fromkeys(telling)),
        excluded=tuple(excluded),
        ignored=tuple(term.text for term in wanted if term not in telling),
    )


def _parts(text: str) -> Sequence[tuple[str, str, str, str]]:
    found = []
    for minus, phrase, word, star in _PART.findall(text):
        if word.endswith("*"):
            word, star = word.rstrip("*"), "*"
        found.append((minus, phrase, word, star))
    return found
