"""What glibc's `malloc` does with freed memory; elsewhere nothing is done."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # names of glibc's <malloc.h>


def keep_freed_memory() -> None:
    """Keep what a layer frees for the next one.

    By default glibc returns blocks of a few megabytes to the system at once, and every layer's
    output comes back as fresh pages, which cost more time than filling them.
    """
    libc = ctypes.CDLL(None)
    if _is_glibc(libc):
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)


def share_one_arena() -> None:
    """Let threads that start from here on allocate from one arena, instead of one each.

    Each arena keeps up to the trim threshold for itself, out of reach of `return_freed_memory`.
    """
    libc = ctypes.CDLL(None)
    if _is_glibc(libc):
        libc.mallopt(_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Give free pages back to the system, also those that lie between used ones.

    For after something far larger than a layer: it takes a few milliseconds, and the next layers
    pay for fresh pages once.
    """
    libc = ctypes.CDLL(None)
    if _is_glibc(libc):
        libc.malloc_trim(0)


def _is_glibc(libc: ctypes.CDLL) -> bool:
    return hasattr(libc, "gnu_get_libc_version")
