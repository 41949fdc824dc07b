"""Text of documents and models, made safe to show: in a terminal, and in a spreadsheet."""

from __future__ import annotations

import re
import unicodedata

# Control characters of ASCII and Latin-1, line and paragraph separators, bidirectional embeddings,
# overrides and isolates, surrogates (file names that are not UTF-8), and noncharacters.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
# After spaces, also those without width.
_FORMULA_START = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*[=+\-@\t\r＝＋－＠]")
_PLAIN_NUMBER = re.compile(r"\s*[-+]?[0-9][0-9.,' ]*\s*[%€$£¥]?\s*")


def visible(text: str, *, keep: str = "") -> str:
    r"""The text with unsafe characters written out, except those in `keep`.

    >>> visible("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    return _UNSAFE.sub(lambda match: c if (c := match[0]) in keep else ascii(c)[1:-1], text)


def without_formula(text: str) -> str:
    """The text with an apostrophe in front where a spreadsheet would read it as a formula.

    Numbers stay as they are.

    >>> without_formula("=HYPERLINK(A1)"), without_formula("-12.50")
    ("'=HYPERLINK(A1)", '-12.50')
    """
    is_formula = _FORMULA_START.match(text) and not _PLAIN_NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def csv_cell(text: str, *, safe: bool = False) -> str:
    r"""The text as a cell of a CSV file that does nothing to the terminal on which it is shown.

    With `safe`, formulas are marked as by `without_formula`.

    >>> csv_cell("=A1\x1b[2J", safe=True)
    "'=A1\\x1b[2J"
    """
    return visible(without_formula(text) if safe else text, keep="\n\t")


def width_in_terminal(text: str) -> int:
    """Columns that a terminal takes for a text without control characters.

    >>> width_in_terminal("日本"), width_in_terminal("e\u0301")
    (4, 1)
    """
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def columns_of_text(rows: list[list[str]], *, widest: int = 40) -> list[str]:
    """Rows of cells as lines with aligned columns; longer cells end with "…".

    >>> columns_of_text([["a", "1"], ["long", "2"]])
    ['a     1', 'long  2']
    """
    shown = [[_shortened(visible(" ".join(cell.split())), widest) for cell in row] for row in rows]
    num_columns = max(map(len, shown), default=0)
    widths = [
        max((width_in_terminal(row[i]) for row in shown if i < len(row)), default=0)
        for i in range(num_columns)
    ]
    return [
        "  ".join(
            cell + " " * (width - width_in_terminal(cell))
            for cell, width in zip(row, widths, strict=False)
        ).rstrip()
        for row in shown
    ]


def _shortened(text: str, widest: int) -> str:
    if width_in_terminal(text) <= widest:
        return text
    while width_in_terminal(text) >= widest:
        text = text[: max(1, widest) - 1] if len(text) >= widest else text[:-1]
    return f"{text}…"
