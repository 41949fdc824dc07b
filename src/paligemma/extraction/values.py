"""The text of an answer -> a value: amounts, numbers, dates, choices, check digits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from paligemma.errors import check_choice
from paligemma.extraction.dates import (
    AmbiguousDateError,
    DateOrder,
    UnreadableError,
    plain,
    read_date,
    read_datetime,
    read_time,
)
from paligemma.extraction.mrz import read_mrz
from paligemma.extraction.schema import Leaf
from paligemma.results import one_line
from paligemma.tasks.chart import scale_of

DecimalMark = Literal["auto", ".", ","]

_MOST_DIGITS = 40
"""Of a number or date: more overflow what computes with them."""

_ABSENT = frozenset(
    {
        *("", "-", "--", "—", "unanswerable", "none", "null", "n/a", "na", "nil", "not stated"),
        *("not given", "not available", "not applicable", "no answer", "unknown", "empty"),
        *("keine angabe", "k.a", "nicht angegeben", "keine", "unbekannt"),
        *("aucun", "aucune", "néant", "non renseigné", "ninguno", "ninguna", "no consta"),
    }
)
_YES = frozenset({"yes", "y", "true", "x", "1", "ja", "oui", "sí", "si", "sim", "da", "tak"})
_NO = frozenset({"no", "n", "false", "0", "nein", "non", "não", "nee", "nej", "nie"})

CURRENCY_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£", "JPY": "¥", "INR": "₹", "CHF": "Fr."}
"""What documents print for the code of a currency."""


@dataclass(frozen=True, kw_only=True)
class Formats:
    """How values are written in a document, where that can be read in several ways."""

    date_order: DateOrder = "auto"
    decimal_mark: DecimalMark = "auto"
    language: str | None = None

    def __post_init__(self) -> None:
        check_choice("date_order", self.date_order, DateOrder)
        check_choice("decimal_mark", self.decimal_mark, DecimalMark)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What became of an answer: a value, or None with the reason, unless it says that there is
    none."""

    value: Any = None
    problem: str | None = None
    is_ambiguous: bool = False
    """Whether the order of day and month would settle it."""


def is_absent(text: str) -> bool:
    """Return whether an answer says that the document has no such value."""
    return one_line(text).casefold().rstrip(".") in _ABSENT


def read_value(leaf: Leaf, text: str, formats: Formats) -> Reading:
    """Return the value of an answer's text; never raises."""
    line = one_line(text)
    if is_absent(line):
        return Reading()
    try:
        if leaf.kind not in ("text", "choice") and sum(map(str.isdigit, line)) > _MOST_DIGITS:
            raise UnreadableError(f"it has more than {_MOST_DIGITS} digits")
        return _READERS[leaf.kind](leaf, line, formats)
    except UnreadableError as error:
        is_ambiguous = isinstance(error, AmbiguousDateError)
        return Reading(problem=f"not read as {leaf.kind}: {error}", is_ambiguous=is_ambiguous)


def comparable(value: Any) -> Any:
    """Return the value in a form in which readings that mean the same are equal."""
    if isinstance(value, str):
        return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", value).casefold())
    return value


def read_amount(text: str, mark: DecimalMark = "auto") -> Decimal:
    """Return the number in a text with currency signs and separators. Raises UnreadableError.

    >>> read_amount("$4,699.67"), read_amount("1.234,50 €"), read_amount("(12,00)")
    (Decimal('4699.67'), Decimal('1234.50'), Decimal('-12.00'))
    """
    printed = plain(text)
    # A mark in front belongs to the number, as in ".99", but not that of "Rs.500".
    match = re.search(r"(?:(?<![^\W\d_])[.,])?[0-9](?:[0-9.,' ’]*[0-9])?", printed)
    if match is None:
        raise UnreadableError("it has no digits")
    before, after = printed[: match.start()].rstrip(), printed[match.end() :]
    if re.search("[0-9]", after):
        raise UnreadableError("it has several numbers")
    scale = _scale(after)
    after = after.strip()
    is_negative = bool(re.search(r"[-−–]\W{0,2}$", before)) or after[:1] in ("-", "−")
    is_negative |= before.endswith("(") and after.startswith(")")
    is_negative |= bool(re.match(r"^[-−–(]", before)) and len(before) <= 6
    if match[0].startswith(",") and re.search("[-−–—]$", before):
        raise UnreadableError("its dash may be a minus sign or stand for zero")
    number = Decimal(_with_point(match[0], mark)) * scale
    return -number if is_negative else number


def _scale(unit: str) -> int:
    """That of "Mio. €" and "k€"; a letter apart, as in "1,29 B", may be a class of taxes."""
    word = unit.strip()
    is_letter = re.match(r"[^\W\d_](?!\S)", word) is not None
    if is_letter and not re.match("[kKM]", unit):
        return 1
    return int(scale_of(word))


def _with_point(printed: str, mark: DecimalMark) -> str:
    """Digits with at most one point, that of the decimals."""
    printed = re.sub(r" *([.,]) *", r"\1", printed)
    marks = [c for c in printed if c in ".,"]
    decimal = mark if mark != "auto" else _decimal_mark(printed, marks)
    if decimal and marks.count(decimal) > 1:
        raise UnreadableError("it has several decimal marks")
    whole, _, decimals = printed.partition(decimal) if decimal else (printed, "", "")
    # Thousands are in groups of three, in India of two before the last one.
    groups = re.split(r"[.,' ’]+", whole)
    is_grouped = all(len(group) in (2, 3) for group in groups[1:]) and len(groups[-1]) == 3
    if (len(groups) > 1 and not is_grouped) or not (decimals or "0").isdigit():
        raise UnreadableError("its separators contradict each other")
    return f"{''.join(groups) or '0'}.{decimals}" if decimals else "".join(groups)


def _decimal_mark(printed: str, marks: Sequence[str]) -> str:
    """The mark of the decimals, as far as the number tells; "" where it has none."""
    if not marks:
        return ""
    last = marks[-1]
    if len(set(marks)) == 2:
        if marks.count(last) > 1:
            raise UnreadableError("its separators contradict each other")
        return last
    if len(marks) > 1:
        return ""
    whole, decimals = printed.split(last)
    # "1,299" is a thousand and more; "0.125" and "1 234,567" have decimals.
    is_group = len(decimals) == 3 and whole.strip("0") != "" and len(whole) <= 3
    return "" if is_group else last


def _text(leaf: Leaf, text: str, formats: Formats) -> Reading:
    if leaf.format == "iban":
        return _checked(re.sub(r"\s", "", text).upper(), is_iban, "the check digits of this IBAN")
    if leaf.format == "vat":
        number = re.sub(r"[\s.-]", "", text).upper()
        number = found[0] if (found := re.search(r"[A-Z]{2}[A-Z0-9]{2,14}$", number)) else number
        return _checked(number, is_vat, "the check digits of this VAT number")
    if leaf.format == "mrz":
        zone = read_mrz(text)
        if zone is None:
            raise UnreadableError("a machine-readable zone has 90, 72 or 88 characters")
        wrong = "the check digits of this machine-readable zone are wrong"
        return Reading(value=text.upper(), problem=None if zone.is_valid else wrong)
    if len(text) > leaf.max_length:
        return Reading(problem=f"longer than {leaf.max_length} characters")
    return Reading(value=text)


def _checked(number: str, is_valid: Callable[[str], bool], what: str) -> Reading:
    return Reading(value=number, problem=None if is_valid(number) else f"{what} are wrong")


def _whole(leaf: Leaf, text: str, formats: Formats) -> Reading:
    number = read_amount(text, formats.decimal_mark)
    if number != number.to_integral_value():
        raise UnreadableError("it has decimals")
    return Reading(value=int(number))


def _number(leaf: Leaf, text: str, formats: Formats) -> Reading:
    if formats.decimal_mark == "auto" and re.fullmatch(r"\D*[1-9][0-9]{0,2},[0-9]{3}\D*", text):
        raise UnreadableError("the comma may be a decimal mark or not; set the decimal mark")
    mark = formats.decimal_mark
    if mark == "auto" and re.fullmatch(r"\D*[0-9]+\.[0-9]{3}\D*", text):
        mark = "."
    return Reading(value=float(read_amount(text, mark)))


def _amount(leaf: Leaf, text: str, formats: Formats) -> Reading:
    return Reading(value=read_amount(text, formats.decimal_mark))


def _boolean(leaf: Leaf, text: str, formats: Formats) -> Reading:
    word = text.casefold().rstrip(".! ")
    if word not in _YES | _NO:
        raise UnreadableError("expected yes or no")
    if leaf.choices and (word in _YES) not in leaf.choices:
        raise UnreadableError("expected one of the schema's values")
    return Reading(value=word in _YES)


def _choice(leaf: Leaf, text: str, formats: Formats) -> Reading:
    choices = {comparable(str(choice)) or str(choice): choice for choice in leaf.choices}
    for choice in leaf.choices:
        if str(choice) == text:
            return Reading(value=choice)
    key = comparable(text) or text
    if key in choices:
        return Reading(value=choices[key])
    raise UnreadableError("expected one of the schema's values")


def _date(leaf: Leaf, text: str, formats: Formats) -> Reading:
    return Reading(value=read_date(text, formats.date_order, formats.language))


def _time(leaf: Leaf, text: str, formats: Formats) -> Reading:
    return Reading(value=read_time(text))


def _datetime(leaf: Leaf, text: str, formats: Formats) -> Reading:
    return Reading(value=read_datetime(text, formats.date_order, formats.language))


_READERS: dict[str, Callable[[Leaf, str, Formats], Reading]] = {
    "text": _text,
    "integer": _whole,
    "number": _number,
    "amount": _amount,
    "boolean": _boolean,
    "choice": _choice,
    "date": _date,
    "time": _time,
    "datetime": _datetime,
}


def is_iban(number: str) -> bool:
    """Return whether the check digits are right (ISO 13616).

    >>> is_iban("DE88200800000970375700"), is_iban("DE88200800000970375701")
    (True, False)
    """
    if not re.fullmatch(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}", number):
        return False
    return _mod97(number[4:] + number[:4]) == 1


def is_vat(number: str) -> bool:
    """Return whether a VAT number has the form, and for some countries the check digits, it must.

    >>> is_vat("DE136695976"), is_vat("DE136695978"), is_vat("FR40303265045")
    (True, False, True)
    """
    country, rest = number[:2], number[2:]
    if not re.fullmatch(r"[A-Z]{2}[A-Z0-9]{2,13}", number):
        return False
    check = _VAT_CHECKS.get(country)
    return check is None or check(rest)


def _mod97(text: str) -> int:
    return int("".join(str(int(c, 36)) for c in text)) % 97


def _german(rest: str) -> bool:
    if not re.fullmatch("[1-9][0-9]{8}", rest):
        return False
    product = 10
    for digit in map(int, rest[:-1]):
        product = 2 * ((digit + product) % 10 or 10) % 11
    return (11 - product) % 10 == int(rest[-1])


def _french(rest: str) -> bool:
    if not re.fullmatch("[0-9]{11}", rest):  # older forms have letters
        return bool(re.fullmatch("[0-9A-HJ-NP-Z]{2}[0-9]{9}", rest))
    return int(rest[:2]) == (12 + 3 * (int(rest[2:]) % 97)) % 97


def _belgian(rest: str) -> bool:
    return bool(re.fullmatch("[01][0-9]{9}", rest)) and 97 - int(rest[:8]) % 97 == int(rest[8:])


def _luhn(rest: str) -> bool:
    digits = [int(digit) for digit in reversed(rest)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _italian(rest: str) -> bool:
    return bool(re.fullmatch("[0-9]{11}", rest)) and _luhn(rest)


def _austrian(rest: str) -> bool:
    if not re.fullmatch("U[0-9]{8}", rest):
        return False
    digits = [int(digit) for digit in rest[1:]]
    total = sum(d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits[:7]))
    return (6 - total) % 10 == digits[7]


_VAT_CHECKS: dict[str, Callable[[str], bool]] = {
    "AT": _austrian,
    "BE": _belgian,
    "DE": _german,
    "FR": _french,
    "IT": _italian,
}
