"""This machine: processor, memory, versions."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("paligemma", "torch", "transformers", "keras-hub")
_INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def describe_machine() -> dict[str, Any]:
    """Plain JSON values; the version of a package that is not installed is None."""
    model, flags = _processor()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": model,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _processor() -> tuple[str, set[str]]:
    """The processor's name and instruction sets, as Linux reports them."""
    lines: dict[str, str] = {}
    if (path := Path("/proc/cpuinfo")).exists():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            lines.setdefault(key.strip(), value.strip())
    flags = lines.get("flags", lines.get("Features", ""))
    return lines.get("model name") or platform.processor() or platform.machine(), set(flags.split())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
