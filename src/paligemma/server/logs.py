"""Logs as JSON lines: sizes, times, codes and ids, never the content of requests or answers.

An exception is logged as its class and where it was raised, because its message may quote a prompt
or a path. For the same reason messages of other libraries are left out, except uvicorn's.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from paligemma.server.errors import AbortedResponseError

_LOGGER_NAME = "paligemma.server"
_TRUSTED_LOGGERS = {_LOGGER_NAME, "uvicorn.error"}
_MAX_CHARACTERS = 200
_MINUTE = 60.0
_RARE_EVENTS = ("out_of_file_descriptors",)
"""Events that are logged once per minute at most."""

logger = logging.getLogger(_LOGGER_NAME)


def log(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log one line with these fields; fields that are None are left out.

    >>> log("request", status=200, ms=12.5)                    # doctest: +SKIP
    {"time": "2026-01-01T00:00:00.000Z", "level": "info", "event": "request", "status": 200, ...}
    """
    logger.log(level, event, extra={"fields": fields})


def log_error(event: str, error: BaseException, **fields: object) -> None:
    """Log one line about an unexpected exception."""
    log(event, level=logging.ERROR, **fields, **describe(error))


def describe(error: BaseException) -> dict[str, object]:
    """The class and traceback of an exception, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {
        "error": type(error).__name__,
        "where": [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames],
    }


def set_up_logs() -> None:
    """Write all logs of this process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


class RepeatFilter(logging.Filter):
    """Passes so many lines of a kind per minute that strangers can cause, and counts the rest.

    The first line of the next minute has their number in `suppressed`.
    """

    def __init__(self, most: int = 100, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most = most
        self._clock = clock
        self._lines: dict[object, tuple[float, int]] = {}  # kind -> start of the minute, lines

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the line."""
        if record.exc_info and isinstance(record.exc_info[1], AbortedResponseError):
            return False  # uvicorn's line about a request that has its own
        fields = getattr(record, "fields", {})
        status = fields.get("status", 0)
        is_own = record.name == _LOGGER_NAME
        # Work that was done, and our own faults. Anyone may read the page or ask for the health.
        is_work = status < 400 and fields.get("method", "POST") == "POST"
        is_ours = is_own and (is_work or record.levelno >= logging.ERROR)
        if is_ours and record.msg not in _RARE_EVENTS:
            return True
        kind = (record.name, record.msg, status) if is_own else (record.pathname, record.lineno)
        most = 1 if record.msg in _RARE_EVENTS else self._most
        now = self._clock()
        start, number = self._lines.get(kind, (now, 0))
        if now - start >= _MINUTE:
            record.suppressed = max(0, number - most) or None
            start, number = now, 0
        self._lines[kind] = start, number + 1
        return number < most


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of ASCII JSON: long texts are cut."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
        }
        if record.name in _TRUSTED_LOGGERS:
            line["event"] = record.getMessage().strip()
            fields = getattr(record, "fields", {})
            line |= {name: value for name, value in fields.items() if value is not None}
        else:
            where = f"{_short(record.pathname)}:{record.lineno}"
            line |= {"event": "library", "logger": record.name, "at": where}
        if (suppressed := getattr(record, "suppressed", None)) is not None:
            line["suppressed"] = suppressed
        if record.exc_info and record.exc_info[1] is not None:
            line |= describe(record.exc_info[1])
        return json.dumps({name: _cut(value) for name, value in line.items()}, allow_nan=False)


def _cut(value: object) -> Any:
    if isinstance(value, bool | int | list):
        return value
    if isinstance(value, float):
        return round(value, 3)
    text = str(value)
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "..."


def _short(path: str) -> str:
    """The last two parts of a path: enough to find the line without revealing the machine."""
    return "/".join(path.replace("\\", "/").split("/")[-2:])


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log_error("uncaught", error.with_traceback(trace))
