"""Compile the kernels, at installation or with `python -m paligemma.fast.kernels.build`.

Needs a C++ compiler with OpenMP (CXX, g++ or clang++). Without one, the package computes the same
results with torch alone, but slower; `paligemma doctor` reports it. This module does not import
torch, so that an installer can run it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "csrc"
OUTPUT = HERE / "lib"

# fmt: off
_COMMON = [
    "-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
]
_AVX512 = ["-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mprefer-vector-width=512"]
# fmt: on

# Level -> compiler flags, best first. The first level that the processor supports is loaded.
LEVELS: dict[str, list[str]] = {"generic": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS = {
        "amx": [*_AVX512, "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
        "avx512": _AVX512,
        "generic": ["-march=x86-64-v3"],
    }


def library_path(level: str) -> Path:
    """Return the path of a compiled level.

    The name contains a digest of the sources: calling functions of other sources would crash.
    """
    return OUTPUT / f"paligemma_{level}_{_digest()}.so"


def other_libraries() -> list[Path]:
    """Return the libraries that were compiled from other sources, such as an earlier version's."""
    current = {library_path(level) for level in LEVELS}
    return sorted(set(OUTPUT.glob("paligemma_*.so")) - current)


@functools.cache
def _digest() -> str:
    sources = hashlib.sha256(repr((_COMMON, LEVELS)).encode())
    for path in sorted(SOURCES.iterdir()):
        sources.update(f"\n{path.name}\n".encode())
        sources.update(path.read_bytes())
    return sources.hexdigest()[:12]


def find_compiler() -> str | None:
    """Return the path of the C++ compiler to use, or None."""
    candidates = (os.environ.get("CXX"), "g++", "clang++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def build() -> dict[str, str | None]:
    """Compile all levels; return None per level, or why it could not be compiled.

    A level that fails leaves no file. Libraries of other sources are removed.
    """
    compiler = find_compiler()
    if compiler is None:
        return {level: "no C++ compiler found (set CXX, or install g++)" for level in LEVELS}
    OUTPUT.mkdir(exist_ok=True)
    for path in other_libraries():
        path.unlink()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        outcomes = threads.map(lambda level: _compile(compiler, level), LEVELS)
        return dict(zip(LEVELS, outcomes, strict=True))


def _compile(compiler: str, level: str) -> str | None:
    sources = sorted(str(path) for path in SOURCES.glob("*.cpp"))
    target = library_path(level)
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    command = [compiler, *_COMMON, *LEVELS[level], *sources, "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        partial.replace(target)
        return None
    partial.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    return (errors or ["the compiler failed"])[0]


def main() -> None:
    outcomes = build()
    for level, problem in outcomes.items():
        print(f"{level}: {problem or 'compiled'}")
    if all(outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
