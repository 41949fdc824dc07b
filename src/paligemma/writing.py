"""Write a file whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from paligemma.errors import OptionError


def short_name(name: str) -> str:
    """A name that stands for a file's own in that of a temporary file, which must not be longer
    than file systems allow.

    >>> short_name("page.html"), len(short_name(250 * "x"))
    ('page.html', 16)
    """
    octets = os.fsencode(name)
    return name if len(octets) <= 200 else hashlib.sha256(octets).hexdigest()[:16]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file next to `path`, which takes its place when the context ends without an exception.

    It is synced to the disk before, so that after a crash there is the old file or the new one. The
    permissions of the old file are kept, and a link is followed. What is no file but takes bytes,
    such as /dev/stdout or a named pipe, gets those of a finished file and stays what it is.

    Raises OptionError where it cannot be written.
    """
    if is_stream(path):
        with _streaming(path) as unfinished:
            yield unfinished
        return
    target = path.resolve() if path.is_symlink() else path
    unfinished = target.with_name(f".{short_name(target.name)}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        with suppress(FileNotFoundError):
            unfinished.chmod(target.stat().st_mode & 0o7777)
        flush(unfinished)
        unfinished.replace(target)
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def is_stream(path: Path) -> bool:
    """Whether bytes go to a device, a pipe, or where this process prints, instead of to a file."""
    try:
        found = path.stat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode):
        return not stat.S_ISDIR(found.st_mode)
    return any(_is_same(stream, found) for stream in (sys.__stdout__, sys.__stderr__))


def _is_same(stream: TextIO | None, found: os.stat_result) -> bool:
    try:
        return stream is not None and os.path.samestat(os.fstat(stream.fileno()), found)
    except (OSError, ValueError):  # closed
        return False


@contextmanager
def _streaming(path: Path) -> Iterator[Path]:
    """A new file elsewhere, whose bytes go to `path` at the end."""
    with tempfile.TemporaryDirectory() as folder:
        unfinished = Path(folder, "unfinished")
        yield unfinished
        try:
            # "a": what was printed to the same place before is not overwritten
            with unfinished.open("rb") as source, path.open("ab") as target:
                shutil.copyfileobj(source, target)
        except OSError as error:
            raise OptionError(f"{path} cannot be written: {error.strerror or error}.") from error


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt":  # cannot flush a file that is open for reading only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file by one with these bytes. Raises OptionError where it cannot be written."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)
