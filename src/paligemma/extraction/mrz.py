"""The machine-readable zone of identity cards and passports (ICAO Doc 9303, parts 4 to 6)."""

from __future__ import annotations

import re
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class MachineReadableZone:
    """What the zone says of the document and its holder. Dates are year, month, day: "740812"."""

    number: str
    date_of_birth: str
    date_of_expiry: str
    is_valid: bool
    """Whether all check digits are right."""


@dataclass(frozen=True, kw_only=True)
class _Format:
    """Where the parts of a zone are, in its lines joined. The check digit follows each part."""

    number: Span
    birth: Span
    expiry: Span
    optional: Span | None
    """With a check digit of its own, which may be "<" for 0 where the part is empty."""
    composite: tuple[Span, ...]
    composite_check: int


_FORMATS = {
    90: _Format(  # three lines of 30: cards
        number=(5, 14),
        birth=(30, 36),
        expiry=(38, 44),
        optional=None,
        composite=((5, 30), (30, 37), (38, 45), (48, 59)),
        composite_check=59,
    ),
    72: _Format(  # two lines of 36: larger cards
        number=(36, 45),
        birth=(49, 55),
        expiry=(57, 63),
        optional=None,
        composite=((36, 46), (49, 56), (57, 71)),
        composite_check=71,
    ),
    88: _Format(  # two lines of 44: passports
        number=(44, 53),
        birth=(57, 63),
        expiry=(65, 71),
        optional=(72, 86),
        composite=((44, 54), (57, 64), (65, 87)),
        composite_check=87,
    ),
}


def read_mrz(text: str) -> MachineReadableZone | None:
    """The zone in a text, whose lines may be separated by white space; None for another text.

    >>> zone = read_mrz("I<UTOD231458907<<<<<<<<<<<<<<< 7408122F1204159UTO<<<<<<<<<<<6 "
    ...                 "ERIKSSON<<ANNA<MARIA<<<<<<<<<<")
    >>> zone.number, zone.date_of_birth, zone.is_valid
    ('D23145890', '740812', True)
    """
    zone = re.sub(r"\s", "", text).upper()
    parts = _FORMATS.get(len(zone))
    if parts is None or not re.fullmatch("[A-Z0-9<]+", zone):
        return None
    number, check = zone[slice(*parts.number)], zone[parts.number[1]]
    if len(zone) == 90 and check == "<":  # a longer number goes on after it
        more = zone[15:30].partition("<")[0]
        number, check = number + more[:-1], more[-1:]
    checked = [(number, check)]
    checked += [(zone[slice(*span)], zone[span[1]]) for span in (parts.birth, parts.expiry)]
    if parts.optional is not None:
        last = zone[parts.optional[1]]
        checked.append((zone[slice(*parts.optional)], "0" if last == "<" else last))
    composite = "".join(zone[slice(*span)] for span in parts.composite)
    checked.append((composite, zone[parts.composite_check]))
    return MachineReadableZone(
        number=number.replace("<", ""),
        date_of_birth=zone[slice(*parts.birth)],
        date_of_expiry=zone[slice(*parts.expiry)],
        is_valid=all(str(_check_digit(part)) == digit for part, digit in checked),
    )


def _check_digit(text: str) -> int:
    values = [0 if letter == "<" else int(letter, 36) for letter in text]
    return sum(value * (7, 3, 1)[place % 3] for place, value in enumerate(values)) % 10
