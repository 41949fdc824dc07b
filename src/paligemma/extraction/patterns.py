"""What the answer to a question may look like: one bounded regular expression per kind of value.

The expressions hold the model's answer to a form that `values.py` reads. They are wider than what
is valid, so that the model can write what is printed ("24. Sept. 2019", "$4,699.67", "40 years"),
and every one has a largest length. In the grammar's expressions \\d and \\w are Unicode, so that
[0-9] is written out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from paligemma.errors import OptionError
from paligemma.extraction.schema import LARGEST_TEXT, Leaf, List

ABSENT = ("unanswerable", "none", "None", "n/a", "N/A", "not stated", "no answer", "-")
"""Answers that every pattern allows: the document does not say."""

_CHARACTER = r"[^\x00-\x1f\x7f]"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]|\\(?:x[01]|x7[fF]|u00[01]|u007[fF]|U0000|0)")
_DIGIT = "0-9٠-٩۰-۹०-९"  # Latin, Arabic, Persian, Hindi
_D = f"[{_DIGIT}]"
_BEFORE = rf"[^{_DIGIT}\x00-\x1f\x7f]"
_GROUPS = rf"{_D}{{1,3}}([.,'’٬ \u00a0\u2009\u202f]{_D}{{2,3}}){{1,4}}"  # of two digits in India
_MONEY = rf"{_GROUPS}([.,٫]{_D}{{1,4}})?|{_D}{{1,12}}([.,٫]{_D}{{1,6}})?"
_NUMBER = rf"{_BEFORE}{{0,8}}({_MONEY}){_BEFORE}{{0,12}}"
_DATE = rf"({_BEFORE}{{0,24}}{_D}{{1,4}}){{1,3}}{_BEFORE}{{0,4}}"
_TIME = rf"{_D}{{1,2}}([:.hH]{_D}{{2}}){{0,2}}( ?[AaPp]\.?[Mm]\.?| ?h| ?Uhr)?"
_WHOLE = rf"{_BEFORE}{{0,8}}({_GROUPS}|{_D}{{1,12}}){_BEFORE}{{0,12}}"
_FORMATS = {
    "iban": r"[A-Z]{2}[0-9]{2}[A-Za-z0-9 ]{11,40}",
    "vat": r"[A-Za-z.: -]{0,12}[A-Z]{2}[A-Za-z0-9 .-]{2,20}",
    "mrz": r"[A-Z0-9<]{30,44}([ \n]?[A-Z0-9<]{30,44}){1,2}",
    "email": r"[^\x00-\x20\x7f@]{1,64}@[^\x00-\x20\x7f@]{1,64}",
    "uri": r"[^\x00-\x20\x7f]{1,200}",
}
_YES = "yes|no|Yes|No|true|false|ja|nein|oui|non|sí|si|x"
_LIST_TEXT = 400
"""Characters of the answer to a question about a list."""


def pattern_of(node: Leaf | List) -> str:
    """Return the regular expression of the answer."""
    absent = "|".join(map(re.escape, ABSENT))
    return f"{_value_pattern(node)}|{absent}"


def _value_pattern(node: Leaf | List) -> str:
    if isinstance(node, List):
        # Several lines: models separate the items with line breaks, commas or semicolons.
        return rf"[^\x00-\x09\x0b-\x1f\x7f]{{1,{_LIST_TEXT}}}"
    match node.kind:
        case "integer":
            return _WHOLE
        case "number" | "amount":
            return _NUMBER
        case "boolean":
            return _YES
        case "date":
            return _DATE
        case "time":
            return _TIME
        case "datetime":
            return rf"{_DATE}( |T|, | at | um )({_TIME})|{_DATE}"
        case "choice":
            spellings = dict.fromkeys(
                s for c in map(str, node.choices) for s in (c, c.lower(), c.upper(), c.capitalize())
            )
            return "|".join(map(re.escape, spellings))
    if node.pattern is not None:
        return bounded_pattern(node.pattern, node.max_length)
    if node.format is not None:
        return _FORMATS[node.format]
    return f"{_CHARACTER}{{1,{max(1, node.max_length)}}}"


def longest(node: Leaf | List) -> int:
    """Return how many characters an answer may have."""
    if isinstance(node, List):
        return _LIST_TEXT
    if node.kind == "text":
        return LARGEST_TEXT if node.pattern else node.max_length
    return 100


def bounded_pattern(pattern: str, limit: int) -> str:
    """Return a schema's pattern as one for a whole answer, in which nothing repeats for ever.

    Patterns of JSON schemas search, so that text may stand around those without ^ and $. Raises
    OptionError for what a grammar cannot have: look-around and back references.

    >>> bounded_pattern("^[A-Z]+-\\\\d*$", 20)
    '[A-Z]{1,20}-[0-9]{0,20}'
    """
    if _CONTROL.search(pattern):
        raise OptionError("it has control characters, which are no text")
    parts = list(_tokens(pattern))
    for part in parts:
        _check_meaning(part)
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise OptionError(f"it is not a regular expression: {error}") from error
    starts = bool(parts) and parts[0] == "^"
    ends = bool(parts) and parts[-1] == "$"
    parts = parts[starts : len(parts) - ends]
    if "^" in parts or "$" in parts:
        raise OptionError("^ and $ can stand at the beginning and the end only")
    body = "".join(_bounded(part, limit) for part in parts)
    around = f"{_CHARACTER}{{0,{limit}}}"
    if not starts:
        body = f"{around}({body})"
    if not ends:
        body = f"({body}){around}"
    return body


_CLASSES = {
    r"\d": "[0-9]",
    r"\D": r"[^0-9\x00-\x1f]",
    r"\w": "[0-9A-Za-z_]",
    r"\W": r"[^0-9A-Za-z_\x00-\x1f]",
    r"\s": "[ ]",
    r"\S": r"[^ \x00-\x1f]",
    ".": _CHARACTER,
}


def _tokens(pattern: str) -> Iterator[str]:
    """Escapes, classes, quantifiers, group openings and single characters, one by one."""
    expression = re.compile(
        r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[^)]{0,3}|[*+?]\??\+?|\{[0-9]*(?:,[0-9]*)?\}\??|.",
        re.DOTALL,
    )
    return (match[0] for match in expression.finditer(pattern))


def _check_meaning(part: str) -> None:
    """Raises OptionError for what regular expressions of several kinds read in several ways."""
    if part[0] == "[" and re.search(r"\[|&&|--|~~|\|\|", re.sub(r"\\.", "", part[1:])):
        raise OptionError(
            f"{part} has several meanings: in a class write \\[, \\&, \\~, \\- and \\|"
        )
    if part in (r"\p", r"\P"):
        raise OptionError(f"{part} is not supported: write the characters out")
    if part[0] == "{" and not re.fullmatch(r"\{[0-9]+(,[0-9]*)?\}\??", part):
        raise OptionError(f"{part} has several meanings: write {{0,n}}, or \\{{ for the character")


def _bounded(part: str, limit: int) -> str:
    if part in _CLASSES:
        return _CLASSES[part]
    if part[0] == "\\" and (part[1].isdigit() or part[1] in "bBAZkpP"):
        raise OptionError(f"{part} has no meaning in a grammar")
    if part.startswith("(?"):
        if part.startswith("(?:"):
            return f"({part[2:][1:]}"
        raise OptionError(f"{part}... is not supported: only (...) and (?:...) are")
    if part[0] == "[" and len(part) > 1:
        return _bounded_class(part)
    if part[0] in "*+":
        return f"{{{int(part[0] == '+')},{limit}}}"
    if part[0] == "?":
        return "?"
    if re.fullmatch(r"\{[0-9]+,\}\??", part):
        return f"{part.rstrip('?')[:-1]}{max(limit, int(part.strip('{},?')))}}}"
    if re.fullmatch(r"\{[0-9]+(,[0-9]+)?\}\??", part):
        if max(map(int, re.findall("[0-9]+", part))) > LARGEST_TEXT:
            raise OptionError(f"{part} repeats more than {LARGEST_TEXT} times")
        return part.rstrip("?")
    return part


def _bounded_class(part: str) -> str:
    inner = part.replace(r"\d", "0-9").replace(r"\w", "0-9A-Za-z_").replace(r"\s", " ")
    if re.search(r"\\[DWSbBpP0-9]", inner):
        raise OptionError(f"{part} is not supported: write the characters out")
    return inner
