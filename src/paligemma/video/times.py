"""Times of a film as people write them."""

from __future__ import annotations

import math
import re

from paligemma.errors import OptionError

_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2}(?:\.\d{1,9})?)", re.ASCII)
_UNITS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|sec|m|min|h)?", re.ASCII)
_SECONDS = {None: 1.0, "ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_time(text: str) -> float:
    """Seconds of a time such as 90, 1.5s, 500ms, 2m, 0:10 or 1:02:03.5.

    Raises OptionError for anything else.

    >>> parse_time("1:02:03.5"), parse_time("500ms"), parse_time("2m")
    (3723.5, 0.5, 120.0)
    """
    stripped = text.strip()
    if (match := _CLOCK.fullmatch(stripped)) and float(match[3]) < 60:
        hours, minutes, seconds = match.groups()
        if hours is None or int(minutes) < 60:
            return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)
    if match := _UNITS.fullmatch(stripped):
        return float(match[1]) * _SECONDS[match[2]]
    raise OptionError(
        f"{text!r} is not a time. Write seconds, such as 90 or 2.5s, or minutes and hours, such as "
        "0:10, 1:02:03 or 2m."
    )


def clock(time_s: float, mark: str = ".") -> str:
    """Hours, minutes, seconds and milliseconds, as subtitles have them.

    >>> clock(3723.5), clock(59.9996, ",")
    ('01:02:03.500', '00:01:00,000')
    """
    milliseconds = max(0, math.floor(time_s * 1000 + 0.5))
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{milliseconds:03}"


def short_clock(time_s: float) -> str:
    """Minutes and seconds, with hours and tenths where there are any.

    >>> short_clock(5), short_clock(65.5), short_clock(3600)
    ('0:05', '1:05.5', '1:00:00')
    """
    tenths = max(0, math.floor(time_s * 10 + 0.5))
    seconds, tenths = divmod(tenths, 10)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    front = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{front}:{seconds:02}" + (f".{tenths}" if tenths else "")
