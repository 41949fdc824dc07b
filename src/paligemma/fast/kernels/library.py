"""Finds and loads the compiled kernels: the best level that this processor has.

Every function of the library takes raw addresses; `products.py`, `layers.py` and `block.py` are
its only callers. PALIGEMMA_KERNELS names a level to use at most ("amx", "avx512", "generic"), or
"none".
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch

from paligemma.errors import OptionError
from paligemma.fast.kernels.build import LEVELS, library_path
from paligemma.fast.kernels.memory import keep_freed_memory

LEVEL_VARIABLE = "PALIGEMMA_KERNELS"

_NEEDS: dict[str, set[str]] = {
    "amx": {"amx_tile", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx512bw", "avx512vl"},
    "avx512": {"avx512_bf16", "avx512_vnni", "avx512bw", "avx512vl"},
    "generic": {"avx2", "fma"} if platform.machine().lower() in ("x86_64", "amd64") else set(),
}

# fmt: off
_ATTENTION: list[object] = [
    c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_float, c_float, c_void_p,
    c_int64, c_int, c_int, c_int64, c_int64, c_int, c_int,
]
_ARGUMENTS: dict[str, tuple[object, list[object]]] = {
    "linear": (None, [
        c_int, c_void_p, c_void_p, c_int, c_int, c_int, c_void_p, c_int,  # weights
        c_void_p, c_int64, c_int64, c_int, c_void_p, c_int64, c_int, c_int,
    ]),
    "add_rms_norm": (None, [
        c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int, c_float, c_int,
    ]),
    "add_layer_norm": (None, [
        c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int, c_float, c_int,
    ]),
    "split_heads": (None, [
        c_void_p, c_int64, c_void_p, c_void_p, c_float, c_void_p,
        c_int64, c_int64, c_int, c_int, c_int,
    ]),
    "attend": (None, _ATTENTION),
    "attend_many": (None, _ATTENTION),
    "decoder_blocks": (None, [
        c_void_p, c_int, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p,
        c_int64, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_int,
    ]),
    "decoder_work": (c_int64, [c_void_p]),
    "read_bandwidth": (c_double, [c_void_p, c_int64, c_int]),
    "matrix_peak": (c_double, [c_int64, c_int]),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The loaded library. `level` says for which kind of processor it was compiled."""

    level: str
    library: ctypes.CDLL

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        function: ctypes._NamedFuncPointer = getattr(self.library, f"paligemma_{name}")
        return function

    def measure_read_bandwidth(self, num_bytes: int = 1 << 30) -> float:
        """Bytes a second that torch's threads read from memory together."""
        memory = torch.ones(num_bytes, dtype=torch.uint8)
        threads = torch.get_num_threads()
        return max(
            float(self.library.paligemma_read_bandwidth(memory.data_ptr(), num_bytes, threads))
            for _ in range(3)
        )

    def measure_matrix_peak(self, steps: int = 1_000_000) -> float:
        """Operations a second of the matrix units (float32 vectors where there are none)."""
        threads = torch.get_num_threads()
        return max(float(self.library.paligemma_matrix_peak(steps, threads)) for _ in range(3))


@functools.cache
def kernels() -> Kernels | None:
    """The kernels for this processor, or None where none were compiled, or none are wanted.

    Raises OptionError when PALIGEMMA_KERNELS has a value that it cannot have.
    """
    levels = list(LEVELS)
    wanted = os.environ.get(LEVEL_VARIABLE, levels[0])
    if wanted == "none":
        return None
    if wanted not in levels:
        raise OptionError(f"{LEVEL_VARIABLE} is {wanted!r}; it must be none, {', '.join(levels)}.")
    found = (load_kernels(level) for level in levels[levels.index(wanted) :])
    best = next((one for one in found if one is not None), None)
    if best is not None:
        keep_freed_memory()
    return best


def load_kernels(level: str) -> Kernels | None:
    """The kernels of one level, or None where they were not compiled or cannot run."""
    path = library_path(level)
    if not (_NEEDS[level] <= processor_flags() and path.is_file()):
        return None
    if level == "amx" and not _allow_tiles():
        return None
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _ARGUMENTS.items():
        if name == "attend_many" and level != "amx":
            continue
        function = getattr(library, f"paligemma_{name}")
        function.restype, function.argtypes = result, arguments
    return Kernels(level=level, library=library)


@functools.cache
def processor_flags() -> frozenset[str]:
    """What the processor can do, in the words of Linux; empty where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":")[1].split())
    return frozenset()


def _allow_tiles() -> bool:
    """Ask Linux for the tile registers, which are large and therefore not given unasked."""
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)
