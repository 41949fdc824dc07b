"""The peak memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage includes the parent process
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
