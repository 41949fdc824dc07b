"""Find and load the compiled kernels: the best level that this processor supports; CPU memory.

The functions of the library take raw addresses; only `products.py`, `layers.py` and `block.py` call
them. The environment variable PALIGEMMA_KERNELS sets the highest level to use ("amx", "avx512",
"generic"), or "none" to disable the kernels.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import warnings
from collections.abc import Callable
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from paligemma.errors import OptionError
from paligemma.fast.kernels.build import LEVELS, library_path, other_libraries

LEVEL_VARIABLE = "PALIGEMMA_KERNELS"

_AVX512 = {"avx512_bf16", "avx512_vnni", "avx512bw", "avx512vl"}
_NEEDS: dict[str, set[str]] = {
    "amx": {"amx_tile", "amx_bf16", "amx_int8", *_AVX512},
    "avx512": _AVX512,
    "generic": {"avx2", "fma"} if platform.machine().lower() in ("x86_64", "amd64") else set(),
}

# A C argument: its Python type and its C type.
Address = Annotated[int | ctypes.Array[Any] | None, c_void_p]
"""The address of a tensor's values or of an array; None is a null pointer."""
Int32 = Annotated[int, c_int]
Int64 = Annotated[int, c_int64]
Float32 = Annotated[float, c_float]


# The arguments of each function in `csrc/`, in the order of its C++ declaration. A test compares
# the two, because a wrong order would corrupt memory.


class LinearArguments(NamedTuple):
    """out = activation(x W^T + bias)."""

    format: Int32
    values: Address
    scales: Address
    group: Int32
    panels: Int32
    k: Int32
    bias: Address
    epilogue: Int32
    x: Address
    x_stride: Int64
    rows: Int64
    inputs: Int32
    out: Address
    out_stride: Int64
    out_is_float: Int32
    threads: Int32


class Float32LinearArguments(NamedTuple):
    """out = x W^T + bias in float32, for many rows."""

    weight: Address
    bias: Address
    x: Address
    rows: Int64
    inputs: Int32
    outputs: Int32
    out: Address
    threads: Int32


class RmsNormArguments(NamedTuple):
    """x += norm(delta); out = norm(x)."""

    x: Address
    delta: Address
    delta_weight: Address
    out_weight: Address
    out: Address
    rows: Int64
    width: Int32
    eps: Float32
    is_float32: Int32
    threads: Int32


class LayerNormArguments(NamedTuple):
    """x += delta; out = LayerNorm(x)."""

    x: Address
    delta: Address
    weight: Address
    bias: Address
    out: Address
    rows: Int64
    width: Int32
    eps: Float32
    is_float32: Int32
    threads: Int32


class SplitHeadsArguments(NamedTuple):
    """Split heads, [B, T, N * H] -> [B, N, T, H], and apply rotary positions and a scale."""

    x: Address
    x_stride: Int64
    cos: Address
    sin: Address
    scale: Float32
    out: Address
    batch: Int64
    tokens: Int64
    heads: Int32
    head_dim: Int32
    is_float32: Int32
    threads: Int32


class AttentionArguments(NamedTuple):
    """Attention over keys and values that may be slices of a cache."""

    queries: Address
    keys: Address
    values: Address
    batch_stride: Int64
    head_stride: Int64
    bias: Address
    scale: Float32
    cap: Float32
    out: Address
    batch: Int64
    heads: Int32
    kv_heads: Int32
    tokens: Int64
    num_keys: Int64
    head_dim: Int32
    is_float32: Int32
    threads: Int32


class DecoderBlocksArguments(NamedTuple):
    """Run all decoder blocks."""

    blocks: Address
    num_blocks: Int32
    x: Address
    batch: Int64
    tokens: Int64
    lengths: Address
    cos: Address
    sin: Address
    keys: Address
    values: Address
    batch_stride: Int64
    head_stride: Int64
    slots: Address
    reach: Int64
    bias: Address
    at: Address
    work: Address
    is_float32: Int32
    threads: Int32


class DecoderWorkArguments(NamedTuple):
    blocks: Address


class BandwidthArguments(NamedTuple):
    memory: Address
    num_bytes: Int64
    threads: Int32


class MatrixPeakArguments(NamedTuple):
    steps: Int64
    threads: Int32


FUNCTIONS: dict[str, tuple[type, Any]] = {
    "linear": (LinearArguments, None),
    "linear_float32": (Float32LinearArguments, c_int),
    "add_rms_norm": (RmsNormArguments, None),
    "add_layer_norm": (LayerNormArguments, None),
    "split_heads": (SplitHeadsArguments, None),
    "attend": (AttentionArguments, None),
    "attend_many": (AttentionArguments, None),
    "decoder_blocks": (DecoderBlocksArguments, None),
    "decoder_work": (DecoderWorkArguments, c_int64),
    "read_bandwidth": (BandwidthArguments, c_double),
    "matrix_peak": (MatrixPeakArguments, c_double),
}
"""The arguments and result of the library's functions, by name without "paligemma_"."""


def argument_types(arguments: type) -> list[Any]:
    """Return the ctypes of the fields of an arguments class."""
    return [
        hint.__metadata__[0] for hint in get_type_hints(arguments, include_extras=True).values()
    ]


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The loaded library. `level` is the instruction set that it was compiled for."""

    level: str
    library: ctypes.CDLL

    @property
    def multiplies_bfloat16(self) -> bool:
        """Return whether the level has instructions for products of bfloat16 numbers."""
        return self.level != "generic"

    def linear(self, arguments: LinearArguments) -> None:
        self.library.paligemma_linear(*arguments)

    def linear_float32(self, arguments: Float32LinearArguments) -> bool:
        """Return False where it has to be computed in another way.

        That is without tiles, or where a sum is not finite; `out` then holds any numbers.
        """
        return bool(self.library.paligemma_linear_float32(*arguments))

    def add_rms_norm(self, arguments: RmsNormArguments) -> None:
        self.library.paligemma_add_rms_norm(*arguments)

    def add_layer_norm(self, arguments: LayerNormArguments) -> None:
        self.library.paligemma_add_layer_norm(*arguments)

    def split_heads(self, arguments: SplitHeadsArguments) -> None:
        self.library.paligemma_split_heads(*arguments)

    def attend(self, arguments: AttentionArguments) -> None:
        """For few queries per row."""
        self.library.paligemma_attend(*arguments)

    def attend_many(self, arguments: AttentionArguments) -> None:
        """For many queries per row."""
        self.library.paligemma_attend_many(*arguments)

    def decoder_blocks(self, arguments: DecoderBlocksArguments) -> None:
        self.library.paligemma_decoder_blocks(*arguments)

    def decoder_work(self, blocks: ctypes.Array[Any]) -> int:
        """Return how many values of scratch memory a row needs in `decoder_blocks`."""
        return int(self.library.paligemma_decoder_work(*DecoderWorkArguments(blocks=blocks)))

    def measure_read_bandwidth(self, num_bytes: int = 1 << 30) -> float:
        """Measure how many bytes per second all of torch's threads read from memory."""
        memory = torch.ones(num_bytes, dtype=torch.uint8)
        arguments = BandwidthArguments(
            memory=memory.data_ptr(), num_bytes=num_bytes, threads=torch.get_num_threads()
        )
        return max(float(self.library.paligemma_read_bandwidth(*arguments)) for _ in range(3))

    def measure_matrix_peak(self, steps: int = 1_000_000) -> float:
        """Measure the operations per second of the matrix units (without any: of float32 SIMD)."""
        arguments = MatrixPeakArguments(steps=steps, threads=torch.get_num_threads())
        return max(float(self.library.paligemma_matrix_peak(*arguments)) for _ in range(3))


@functools.cache
def kernels() -> Kernels | None:
    """Return the kernels for this processor; None if none were compiled or they are disabled.

    Warns if only those of other sources were compiled, such as an earlier version's. Raises
    OptionError when PALIGEMMA_KERNELS has an unknown value.
    """
    levels = list(LEVELS)
    highest = os.environ.get(LEVEL_VARIABLE, levels[0])
    if highest in ("none", "off"):
        return None
    if highest not in levels:
        choices = ", ".join(["none", *levels])
        raise OptionError(f"{LEVEL_VARIABLE} is {highest!r}; it must be one of {choices}.")
    libraries = (load_kernels(level) for level in levels[levels.index(highest) :])
    best = next((library for library in libraries if library is not None), None)
    if best is not None:
        keep_freed_memory()
    elif not any(library_path(level).is_file() for level in levels) and other_libraries():
        warnings.warn(
            "The compiled kernels are those of another version of paligemma, so plain torch is "
            "used, which is slower. Run: python -m paligemma.fast.kernels.build",
            stacklevel=2,
        )
    return best


def load_kernels(level: str) -> Kernels | None:
    """Load the kernels of one level; None if they were not compiled or cannot run here."""
    path = library_path(level)
    if not (_NEEDS[level] <= processor_flags() and path.is_file()):
        return None
    if level == "amx" and not _allow_tiles():
        return None
    return open_library(path, level)


def open_library(path: Path, level: str) -> Kernels:
    """Load a library that was compiled for the level; whether it can run here is not checked."""
    library = ctypes.CDLL(str(path))
    for name, (arguments, result) in FUNCTIONS.items():
        function = getattr(library, f"paligemma_{name}")
        function.restype, function.argtypes = result, argument_types(arguments)
    return Kernels(level=level, library=library)


@functools.cache
def processor_flags() -> frozenset[str]:
    """Return the processor's features by their Linux names; empty on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":")[1].split())
    return frozenset()


def _allow_tiles() -> bool:
    """Request the AMX tile registers from Linux, which a process must do before using them."""
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)


# CPU memory: huge pages for weights, and how glibc's `malloc` handles freed memory. On systems
# without these features, the functions do nothing.

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
