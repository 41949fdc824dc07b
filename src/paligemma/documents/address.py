"""Whether the lines of a block are an address, or labels with values, by what they say.

Boxes alone do not tell: two addresses side by side look like the rows of a table with two columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
"""The texts of a block, row by row, those of a row from its beginning."""

_LEAST_ROWS = 3
_MOST_ROWS = 12
# 12345 Berlin, D-12345 Berlin, 1234 AB Delft, 110 00 Praha, 00-950 Warsaw
_CODE_FIRST = re.compile(
    r"(?:[A-Z]{1,3}-)?(?:\d{4,5}(?:-\d{3})?|\d{2,3}[ -]\d{2,3}) (?:[A-Z]{2} )?[^\W\d_]{2}"
)
_CODE_LAST = re.compile(  # IL 62701, NSW 2000, Delhi 110001, SW1A 2AA, K1A 0B1
    r"(?:\b[A-Z]{2,3} \d{4,5}(?:-\d{4})?|[^\W\d_]{3} \d{6}"
    r"|\b[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}|\b[A-Z]\d[A-Z] \d[A-Z]\d)$"
)
_WORD = re.compile(r"[^\W\d_]{3}")
_LABEL = re.compile(r"[^\W\d_][^:]*:(?!//)")


def is_address(rows: Rows) -> bool:
    """Whether these are the lines of an address.

    3 to 12 lines, most of one part: some have a postal code, before or after a word, as the line
    of the town, but not two thirds of them in the same way, as in the column of a table; at least
    one has no digits, as that of the name; and few are numbers alone, or labels.
    """
    if not _LEAST_ROWS <= len(rows) <= _MOST_ROWS:
        return False
    lines = [" ".join(row) for row in rows]
    num_single = sum(len(row) == 1 for row in rows)
    num_first = sum(_CODE_FIRST.match(line) is not None for line in lines)
    num_last = sum(_CODE_LAST.search(line) is not None for line in lines)
    num_names = sum(_has_word(line) and not re.search(r"\d", line) for line in lines)
    num_others = sum(not _has_word(line) or _is_label(line) for line in lines)
    return (
        3 * num_single >= 2 * len(rows)
        and num_first + num_last > 0
        and 3 * max(num_first, num_last) < 2 * len(rows)
        and num_names > 0
        and 3 * num_others <= len(rows)
    )


def is_list(rows: Rows) -> bool:
    """Whether most lines begin with a label and a colon."""
    return len(rows) >= 2 and 3 * sum(_is_label(row[0]) for row in rows) >= 2 * len(rows)


def _has_word(line: str) -> bool:
    return _WORD.search(line) is not None


def _is_label(line: str) -> bool:
    return _LABEL.match(line) is not None
