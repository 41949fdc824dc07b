"""CPU memory: huge pages for weights, and how glibc's `malloc` handles freed memory.

On systems without these features, the functions do nothing.
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
    """Ask Linux to back a large CPU tensor with huge pages, before the first write to it.

    Huge pages are faster to fill and to read.
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
    """Keep memory that a layer frees for the next one.

    By default, glibc returns blocks of a few megabytes to the system immediately, so the output of
    every layer gets fresh pages, whose page faults cost more time than filling them.
    """
    libc = ctypes.CDLL(None)
    if _is_glibc(libc):
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the maximum
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)


def share_one_arena() -> None:
    """Make threads that start after this call share one arena, instead of one per thread.

    Each arena retains up to the trim threshold, which `return_freed_memory` cannot free.
    """
    libc = ctypes.CDLL(None)
    if _is_glibc(libc):
        libc.mallopt(_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Return free pages to the system, including those between used ones.

    Call it after allocations much larger than a layer: it takes a few milliseconds, and the next
    layers have to allocate fresh pages once.
    """
    libc = ctypes.CDLL(None)
    if _is_glibc(libc):
        libc.malloc_trim(0)


def _is_glibc(libc: ctypes.CDLL) -> bool:
    return hasattr(libc, "gnu_get_libc_version")
