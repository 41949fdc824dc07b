"""The journal of a job: what is finished, in a file that survives being killed at any point.

The first line holds the settings of the job, and each further line one item. All lines of one
call of `add` count, or none: each says how many follow it in its batch, and opening the journal
cuts off a batch whose last line is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from paligemma.batch.lock import acquire_lock, is_locked
from paligemma.errors import OptionError, changed_settings
from paligemma.writing import flush

JOURNAL_FILE = "journal.jsonl"
LOCK_FILE = "journal.lock"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One item that is finished: it has a result, or an error."""

    key: str
    fingerprint: str
    """Of the source, such as its size and time of change: where it differs, the item is done
    again."""
    result: dict[str, Any] | None
    error: str | None
    seconds: float | None
    """What the item took; no output depends on it."""
    asks: dict[str, str] = field(default_factory=dict)
    """What its row of a table asks by itself, such as {"question": "how many?"}."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    offset: int
    length: int
    fingerprint: str
    is_done: bool


class Journal:
    """One JSON line for each finished or failed item, appended by one process.

    Use `open` to write and `read` to look at it while another process writes.

    >>> with Journal.open(Path("out"), {"task": "caption"}) as journal:
    ...     journal.add([Entry(key="a.jpg", fingerprint="1", result={}, error=None, seconds=0.2)])
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self.path = folder / JOURNAL_FILE
        self._places: dict[str, _Place] = {}
        self._size = 0
        self._file: int | None = None
        self._lock: int | None = None

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> Journal:
        """Create the journal of a folder, or resume it. The folder is made where it is missing.

        Raises OptionError when it was made with other settings (naming what differs), when another
        process has it open, and when it cannot be read or written.
        """
        with _said_as_option_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder)
            try:
                journal = cls(folder, json.loads(json.dumps(dict(settings), allow_nan=False)))
                journal._lock = lock
                journal._resume()
            except BaseException:
                os.close(lock)
                raise
            return journal

    @classmethod
    def read(cls, folder: Path) -> Journal:
        """The journal as it is now, read-only; another process may be adding to it.

        Raises OptionError when there is none.
        """
        journal = cls(folder, {})
        with _said_as_option_error(folder):
            if not journal.path.is_file():
                raise OptionError(
                    f"{str(folder)!r} has no {JOURNAL_FILE}: it is not the folder of a job. Give "
                    "the folder that the job writes to."
                )
            with open(journal.path, "rb") as file:
                journal._scan(file)
        return journal

    @classmethod
    def check(cls, folder: Path, settings: Mapping[str, Any]) -> None:
        """Raises OptionError where there is a journal that was made with other such settings."""
        if (folder / JOURNAL_FILE).is_file():
            made = cls.read(folder).settings
            given = json.loads(json.dumps(dict(settings), allow_nan=False))
            _check_same(folder, made={name: made.get(name) for name in given}, given=given)

    @staticmethod
    def is_open(folder: Path) -> bool:
        """Whether a process has the journal open to write."""
        return is_locked(folder / LOCK_FILE)

    def add(self, entries: Sequence[Entry]) -> None:
        """Append a batch with one write, and wait until it is on the disk.

        Raises OptionError, and leaves the journal as it was, when there is no space.
        """
        if self._file is None:
            raise ValueError("The journal is closed, or was opened to be read only.")
        lines = [
            _encode({**_values(entry), "following": len(entries) - number})
            for number, entry in enumerate(entries, start=1)
        ]
        with _said_as_option_error(self.folder):
            try:
                _write_all(self._file, b"".join(lines))
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
        for entry, line in zip(entries, lines, strict=True):
            self._places[entry.key] = _Place(
                offset=self._size,
                length=len(line),
                fingerprint=entry.fingerprint,
                is_done=entry.error is None,
            )
            self._size += len(line)

    def entries(self) -> Iterator[Entry]:
        """The last entry of each key, sorted by key, read one by one."""
        if not self._places:
            return
        with open(self.path, "rb") as file:
            for key in sorted(self._places):
                place = self._places[key]
                file.seek(place.offset)
                values = json.loads(file.read(place.length))
                del values["following"]
                yield Entry(**values)

    def done(self) -> Mapping[str, str]:
        """Key -> fingerprint of the source, of the items that have a result."""
        return {key: place.fingerprint for key, place in self._places.items() if place.is_done}

    def failed(self) -> Mapping[str, str]:
        """Key -> fingerprint of the source, of the items that have an error."""
        return {key: place.fingerprint for key, place in self._places.items() if not place.is_done}

    def close(self) -> None:
        """Release the journal to other processes."""
        for descriptor in (self._file, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resume(self) -> None:
        settings = self.settings
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            with open(self.path, "rb") as file:
                self._scan(file)
            os.ftruncate(self._file, self._size)
            if self._size == 0:
                self.settings = settings
                header = _encode({"journal": _VERSION, "settings": settings})
                _write_all(self._file, header)
                os.fsync(self._file)
                flush(self.folder)
                self._size = len(header)
            _check_same(self.folder, made=self.settings, given=settings)
        except BaseException:
            os.close(self._file)
            self._file = None
            raise

    def _scan(self, file: BinaryIO) -> None:
        """Find the whole batches, and the place of the last entry of each key."""
        header = _parse(file.readline())
        if header is None:
            if any(_parse(line) for line in file):
                raise self._damaged(1)
            return
        if header.get("journal") != _VERSION:
            raise self._damaged(1)
        self.settings = header["settings"]
        self._size = offset = file.tell()
        batch: dict[str, _Place] = {}
        number = 1
        for line in file:
            number += 1
            values = _parse(line)
            if values is None:
                break
            batch[values["key"]] = _Place(
                offset=offset,
                length=len(line),
                fingerprint=values["fingerprint"],
                is_done=values["error"] is None,
            )
            offset += len(line)
            if values["following"] == 0:
                self._places |= batch
                self._size = offset
                batch = {}
        if any(_parse(line) for line in file):
            raise self._damaged(number)

    def _damaged(self, line: int) -> OptionError:
        return OptionError(
            f"The journal {str(self.path)!r} is damaged: its line {line} cannot be read, but later "
            "ones can. Restore it from a copy, or start again in another folder."
        )


def _values(entry: Entry) -> dict[str, Any]:
    """Its fields, without "asks" where it asks nothing by itself."""
    return {name: value for name, value in asdict(entry).items() if name != "asks" or value}


def _encode(values: dict[str, Any]) -> bytes:
    # ASCII, because names of files may be no UTF-8, which only "\udce9" can say.
    return json.dumps(values, allow_nan=False).encode("ascii") + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object of a whole line; None where the line is torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or not (
        values.keys() >= {"journal", "settings"}
        or values.keys() - {"asks"}
        == {"key", "fingerprint", "result", "error", "seconds", "following"}
    ):
        return None
    return cast("dict[str, Any]", values)


def _check_same(folder: Path, *, made: dict[str, Any], given: dict[str, Any]) -> None:
    if different := changed_settings(made, given):
        raise OptionError(
            f"The job in {str(folder)!r} was started with other settings: {'; '.join(different)}. "
            "Results of different settings are not mixed: use the same settings, or another folder."
        )


@contextmanager
def _said_as_option_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(
            f"The journal in {str(folder)!r} cannot be read or written: {error.strerror}."
        ) from error


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _acquire(folder: Path) -> int:
    try:
        return acquire_lock(folder / LOCK_FILE, wait=False)
    except BlockingIOError:
        raise OptionError(
            f"Another process is working in {str(folder)!r}. Wait until it has ended, or use "
            "another folder."
        ) from None
