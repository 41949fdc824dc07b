"""Locks between processes that the system releases when a process ends, however it ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.errors import OptionError

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}


def acquire_lock(path: Path, *, wait: bool) -> int:
    """Lock a file, which is made if need be. Returns its descriptor, which `os.close` releases.

    Raises BlockingIOError, unless it waits, when another process has it, OptionError where the file
    system has no locks, and OSError for a file that cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _lock(descriptor, path, wait=wait)
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether another process has the lock; nothing is written, so that it may lie on a read-only
    disk."""
    try:
        # Windows locks only what is open to write.
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    except OSError:
        return False
    try:
        _lock(descriptor, path, wait=False)
    except BlockingIOError:
        return True
    except OptionError:  # where there are no locks, none is held
        return False
    os.close(descriptor)
    return False


def _lock(descriptor: int, path: Path, *, wait: bool) -> None:
    """Closes the descriptor where the lock is not to be had."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if error.errno in _HELD:
            raise BlockingIOError(error.errno, error.strerror) from None
        raise OptionError(
            f"{str(path)!r} cannot be locked: {error.strerror}. Without a lock, another process "
            "could write there at the same time. Use a folder on a disk of this machine."
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the context, no other process is within one for the same path.

    Raises OptionError where the file cannot be made, or the file system has no locks.
    """
    try:
        descriptor = acquire_lock(path, wait=True)
    except OSError as error:
        raise OptionError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        os.close(descriptor)
