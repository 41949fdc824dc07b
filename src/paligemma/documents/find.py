"""Find a text on a page by the words of its text layer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from paligemma.documents.geometry import Box, union
from paligemma.documents.page import Word

_QUOTES = {ord(mark): "'" for mark in "\u2018\u2019\u02bc\u2032`\u00b4"}
_QUOTES |= {ord(mark): '"' for mark in "\u201c\u201d\u201e\u00ab\u00bb\u2033"}


def find_on_page(words: Sequence[Word], text: str) -> Box | None:
    """The box around the words that a text consists of; None where they do not follow each other.

    Upper and lower case, white space, hyphens and the form of quotation marks do not matter. The
    text begins and ends with a word, or with a part of one that is set apart by punctuation. Of
    several places, the first.

    >>> words = [Word("Total:", (0, 0, 30, 10)), Word("571.04", (40, 0, 80, 10))]
    >>> find_on_page(words, "571.04")
    (40, 0, 80, 10)
    """
    return WordSearch(words).find(text)


class WordSearch:
    """Words in which many texts are searched for, each in one pass over the letters."""

    def __init__(self, words: Sequence[Word]) -> None:
        letters: list[str] = []
        owners: list[int] = []  # the word that each letter belongs to
        for index, word in enumerate(words):
            of_word = _letters(word.text)
            letters.append(of_word)
            owners.extend([index] * len(of_word))
        self._words = words
        self._page = "".join(letters)
        self._owners = owners

    def find(self, text: str) -> Box | None:
        """As `find_on_page`."""
        wanted, page, owners = _letters(text), self._page, self._owners
        if not wanted:
            return None
        # Whole words first: "2" is rather the word than a part of "2/5".
        for is_set_apart in (_ends_a_word, _ends_at_punctuation):
            start = page.find(wanted)
            while start >= 0:
                end = start + len(wanted)
                if is_set_apart(page, owners, start, -1) and is_set_apart(page, owners, end - 1, 1):
                    used = dict.fromkeys(owners[start:end])
                    return union([self._words[index].box_xyxy for index in used])
                start = page.find(wanted, start + 1)
        return None


def _ends_a_word(page: str, owners: Sequence[int], at: int, step: int) -> bool:
    """Whether no letter of the same word follows in the direction of `step`."""
    neighbor = at + step
    return not 0 <= neighbor < len(owners) or owners[neighbor] != owners[at]


def _ends_at_punctuation(page: str, owners: Sequence[int], at: int, step: int) -> bool:
    """As `_ends_a_word`, or whether punctuation follows that does not belong to a number."""
    if _ends_a_word(page, owners, at, step):
        return True
    if page[at].isalnum() and page[at + step].isalnum():
        return False
    is_inside_number = (
        page[at].isdigit()
        and page[at + step] in ".,"
        and not _ends_a_word(page, owners, at + step, step)
        and page[at + 2 * step].isdigit()
    )
    return not is_inside_number


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text.translate(_QUOTES)).casefold()
    return re.sub(r"[\s\-\u00ad\u2010-\u2015]+", "", folded)
