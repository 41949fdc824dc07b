"""Locks between processes that the system releases when a process ends, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def acquire_lock(path: Path, *, wait: bool) -> int:
    """Lock a file, which is made if need be. Returns its descriptor, which `os.close` releases.

    Raises BlockingIOError, unless it waits, when another process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        raise BlockingIOError(error.errno, error.strerror) from None
    return descriptor


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the context, no other process is within one for the same path."""
    descriptor = acquire_lock(path, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)
