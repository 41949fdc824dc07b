"""Compiles the kernels of levels that few processors have, with their instructions emulated, and
the generic ones as for a processor without vector instructions of their own."""

from __future__ import annotations

import fcntl
import functools
import subprocess
from pathlib import Path

from paligemma.fast.kernels.build import SOURCES, find_compiler
from paligemma.fast.kernels.library import Kernels, open_library

# The macros by which a compiler says that a level's instructions may be used.
EMULATED_LEVELS = {
    "avx512": ["__AVX512BF16__", "__AVX512VNNI__"],
    "amx": ["__AVX512BF16__", "__AVX512VNNI__", "__AMX_BF16__", "__AMX_INT8__"],
    "generic": [],
}

_HEADERS = Path(__file__).parent / "emulated"
# fmt: off
_FLAGS = [
    "-O1", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-Wno-psabi",
    f"-I{_HEADERS}",
]
# fmt: on


@functools.cache
def emulated_kernels(level: str, folder: Path) -> Kernels:
    """Compile them into a folder that the processes of the tests share, if none has yet."""
    compiler = find_compiler()
    assert compiler is not None
    target = folder / f"emulated_{level}.so"
    macros = [f"-D{macro}" for macro in EMULATED_LEVELS[level]]
    sources = sorted(str(path) for path in SOURCES.glob("*.cpp"))
    with (folder / f"emulated_{level}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            part = folder / f"emulated_{level}.part"
            subprocess.run([compiler, *_FLAGS, *macros, *sources, "-o", str(part)], check=True)
            part.rename(target)
    return open_library(target, level)
