"""Dates and times as people write them. What can be read in two ways is a problem, not a guess."""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal

from paligemma.errors import MissingExtraError

DateOrder = Literal["auto", "dmy", "mdy", "ymd"]

_LANGUAGES = (
    "en", "de", "fr", "es", "it", "pt", "nl", "da", "sv", "no", "fi", "pl", "cs", "hu", "ro",
    "hr", "tr", "el", "ru", "uk", "id",
)  # fmt: skip
_DAY_FIRST = frozenset(_LANGUAGES) - {"en", "hu"}
_TIME = re.compile(
    r"(?<![0-9.,:])(?:"
    r"(?P<hour>[0-9]{1,2})[:.hH](?P<minute>[0-9]{2})(?:[:.](?P<second>[0-9]{2})(?:[.,][0-9]+)?)?"
    r"|(?P<only_hour>[0-9]{1,2})(?=\s*(?:[ap]\.?m|h|hrs?|uhr|uur|o'clock|heures?|horas?|ore)\b)"
    r")(?![0-9]|[.,:][0-9])(?:\s*(?P<half>[ap]\.?m)\b)?",
    re.IGNORECASE,
)
_ERA = re.compile(r"(?<![0-9])[0-9]{1,3}\s*年|\b[MTSHR][0-9]{1,2}[./-]")  # of Japan or Taiwan
_WORD = re.compile(r"[^\W\d_]{3,}", re.UNICODE)


def plain(text: str) -> str:
    """Return the text in compatibility form, with the digits 0 to 9 and the marks "." and "," for
    those of all scripts."""
    text = unicodedata.normalize("NFKC", text).translate({ord("٫"): ".", ord("٬"): ","})
    return re.sub(r"\d", lambda digit: str(unicodedata.digit(digit[0])), text)


class UnreadableError(ValueError):
    """The text is no such value; the message says why, without repeating the text."""


class AmbiguousDateError(UnreadableError):
    """Day and month may be either way round."""


def read_date(text: str, order: DateOrder = "auto", language: str | None = None) -> datetime.date:
    """Return the date. Raises UnreadableError for what is none, or may be one of several.

    >>> read_date("Sep 24, 2019"), read_date("9. Mai 2017")
    (datetime.date(2019, 9, 24), datetime.date(2017, 5, 9))
    """
    text = re.sub(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?", "", plain(text))
    numbers = [(int(m[0]), len(m[0])) for m in re.finditer(r"[0-9]+", text)]
    if _ERA.search(text):
        raise UnreadableError("its year is counted from the beginning of an era")
    month = _month_in(text, language)
    if month is not None:
        return _with_month(numbers, month)
    if len(numbers) == 1 and numbers[0][1] == 8:  # 20190924
        digits = f"{numbers[0][0]:08}"
        numbers = [(int(digits[:4]), 4), (int(digits[4:6]), 2), (int(digits[6:]), 2)]
    if len(numbers) != 3:
        raise UnreadableError("it is not a date with a day, a month and a year")
    (a, len_a), (b, _), (c, len_c) = numbers
    if len_a >= 3:
        return _date(_full_year(a, len_a), b, c)
    is_year_last = len_c >= 3 or order != "ymd"
    if not is_year_last:
        return _date(_full_year(a, len_a), b, c)
    year = _full_year(c, len_c)
    if order in ("dmy", "mdy"):
        return _date(year, b, a) if order == "dmy" else _date(year, a, b)
    if a > 12 or a == b:
        return _date(year, b, a)
    if b > 12:
        return _date(year, a, b)
    if re.fullmatch(r"\D*\d+\. ?\d+\. ?\d+\D*", text) or language in _DAY_FIRST:
        return _date(year, b, a)
    raise AmbiguousDateError("day and month may be either way round; set the order of dates")


def order_of_dates(texts: Iterable[str]) -> DateOrder:
    """The order in which all dates among the texts are written that leave no choice, else "auto".

    >>> order_of_dates(["25/01/2024", "03/04/2024", "total"])
    'dmy'
    """
    orders: set[DateOrder] = set()
    for text in texts:
        match = re.fullmatch(r"\D*([0-9]{1,2})([/.-])([0-9]{1,2})\2(?:[0-9]{4}|[0-9]{2})\D*", text)
        if match is not None and (int(match[1]) > 12) != (int(match[3]) > 12):
            orders.add("dmy" if int(match[1]) > 12 else "mdy")
    return orders.pop() if len(orders) == 1 else "auto"


def read_time(text: str) -> datetime.time:
    """Return the time. Raises UnreadableError, also for a number alone.

    >>> read_time("2:05 pm"), read_time("14 Uhr")
    (datetime.time(14, 5), datetime.time(14, 0))
    """
    found = _TIME.search(plain(text))
    if found is None:
        raise UnreadableError("it is not a time of day")
    hour = int(found["hour"] or found["only_hour"])
    minute, second = int(found["minute"] or 0), int(found["second"] or 0)
    if half := found["half"]:
        if not 1 <= hour <= 12:
            raise UnreadableError("it is not a time of day")
        hour = hour % 12 + (12 if half[0] in "pP" else 0)
    try:
        return datetime.time(hour, minute, second)
    except ValueError as error:
        raise UnreadableError("it is not a time of day") from error


def read_datetime(
    text: str, order: DateOrder = "auto", language: str | None = None
) -> datetime.datetime:
    """Return date and time. Raises UnreadableError without a time."""
    text = plain(text)
    clock = re.search(r"[0-9]{1,2}[:hH][0-9]{2}\S*(\s?[AaPp]\.?[Mm]\.?)?", text)
    if clock is None:
        raise UnreadableError("it has no time of day")
    date = read_date(text[: clock.start()].rstrip(" T,"), order, language)
    return datetime.datetime.combine(date, read_time(clock[0]))


def _with_month(numbers: Sequence[tuple[int, int]], month: int) -> datetime.date:
    if len(numbers) != 2:
        raise UnreadableError("it is not a date with a day, a month and a year")
    (a, len_a), (b, len_b) = numbers
    if len_a >= 3 or a > 31:
        return _date(_full_year(a, len_a), month, b)
    return _date(_full_year(b, len_b), month, a)


def _full_year(year: int, num_digits: int) -> int:
    """Two digits are the year that is at most ten years ahead. Raises UnreadableError for three,
    the most of a year that is cut off."""
    if num_digits == 3:
        raise UnreadableError("its year has three digits")
    if num_digits > 2:
        return year
    latest = datetime.date.today().year + 10
    return latest - (latest - year) % 100


def _date(year: int, month: int, day: int) -> datetime.date:
    try:
        return datetime.date(year, month, day)
    except (ValueError, OverflowError) as error:
        raise UnreadableError("there is no such day") from error


def _month_in(text: str, language: str | None) -> int | None:
    """The month that a word names: in this language, else in English, else in any other.

    Raises UnreadableError where it may be one of several, as for "listopad": October or November.
    """
    words = _WORD.findall(text.casefold())
    if language in _LANGUAGES and (months := _months(words, (language,))):
        return _only(months.values())
    english = _months(words, ("en",))
    others = _months([word for word in words if word not in english], _LANGUAGES)
    months = {**english, **others}
    return _only(months.values()) if months else None


def _months(words: Sequence[str], languages: Sequence[str]) -> dict[str, set[int]]:
    """The months that each word may be, for those that are one in a language."""
    found: dict[str, set[int]] = {}
    for word in words:
        months = {
            month
            for language in languages
            for name, month in months_of(language).items()
            if name == word or (len(word) >= 4 and name.startswith(word))
        }
        if months:
            found[word] = months
    return found


def _only(candidates: Iterable[set[int]]) -> int:
    months = set().union(*candidates)
    if len(months) > 1:
        raise UnreadableError("the month may be one of several; set the language")
    return int(months.pop())


@cache
def months_of(language: str) -> dict[str, int]:
    """Names of months in a language, long and short, in lower case and without full stops."""
    try:
        from babel.dates import get_month_names
    except ModuleNotFoundError as error:
        raise MissingExtraError("babel", "guided", "Reading names of months") from error
    names: dict[str, int] = {}
    for width in ("wide", "abbreviated"):
        for context in ("format", "stand-alone"):
            for month, name in get_month_names(width, context, language).items():
                word = name.casefold().rstrip(".")
                if _WORD.fullmatch(word):
                    names.setdefault(word, month)
    return names
