"""Memory for the CPU: huge pages for weights, and how glibc's `malloc` treats freed memory.

Where the system offers neither, these functions do nothing.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_HUGE_PAGE = 2**21
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # names in glibc's <malloc.h>


def use_huge_pages(tensor: Tensor) -> None:
    """Ask Linux to back a large CPU tensor with huge pages, before anything is written to it.

    They are faster to fill and to read across.
    """
    madvise = _madvise()
    if madvise is None or tensor.device.type != "cpu":
        return
    start = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
    end = (tensor.data_ptr() + tensor.nbytes) // _HUGE_PAGE * _HUGE_PAGE
    if end > start:
        madvise(start, end - start, mmap.MADV_HUGEPAGE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


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
