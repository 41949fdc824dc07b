"""How many CPU threads torch computes with, and how they wait for each other.

Torch's threads meet at a barrier after every operation. By default they wait there by spinning.
On a machine that does other work, a spinning thread takes the core that the thread it waits for
needs, and everything becomes ten times slower. So threads of this package sleep while they wait,
and there are no more of them than the CPUs that the process may use.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from functools import cache
from pathlib import Path

from paligemma.errors import OptionError

WAIT_POLICY = "OMP_WAIT_POLICY"
_SPIN_SETTINGS = (WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_IDLE_TEAM = "paligemma-idle-team"


def wait_passively() -> None:
    """Let the threads of a torch that is imported later sleep while they wait.

    OpenMP reads the setting when torch is imported. A setting of the user's own stays.
    """
    if "torch" not in sys.modules and not _user_chose():
        os.environ[WAIT_POLICY] = "PASSIVE"


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and the CPU quota of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(cpus or 1, _cpu_quota())))


def set_threads(threads: int | None) -> None:
    """Compute with this many threads; None keeps what is set."""
    if threads is None:
        return
    if threads < 1:
        raise OptionError(f"threads is {threads}. Give at least 1.")
    import torch

    share_cpus()  # first, since it lowers a number that nobody chose
    torch.set_num_threads(threads)


@cache
def share_cpus() -> None:
    """Fit torch's threads to the CPUs of this process; called once, when a model is loaded.

    - No more threads than `available_cpus`, unless OMP_NUM_THREADS says otherwise. Torch itself
      does not know about container quotas.
    - Where torch was imported before this package, its threads still spin. Sleeping is then
      brought about by a second, idle team: GNU OpenMP stops spinning as soon as it manages more
      threads than there are CPUs.
    - A process that is forked later computes with one thread: the other threads do not exist in
      it, and the first operation would wait for them for ever.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > available_cpus():
        torch.set_num_threads(available_cpus())
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    if sys.platform == "linux" and torch.get_num_threads() > 1 and not _user_chose():
        _keep_idle_team()


def waits_passively() -> bool:
    """Whether torch's threads sleep while they wait for each other."""
    has_idle_team = any(thread.name == _IDLE_TEAM for thread in threading.enumerate())
    return has_idle_team or os.environ.get(WAIT_POLICY, "").upper() == "PASSIVE"


def _user_chose() -> bool:
    return any(name in os.environ for name in _SPIN_SETTINGS)


def _keep_idle_team() -> None:
    """Start a thread that owns a team of OpenMP threads and never uses it again."""
    import torch

    started = threading.Event()

    def own_a_team() -> None:
        torch.ones(1 << 20).add_(1)  # large enough to be computed in parallel
        started.set()
        threading.Event().wait()

    threading.Thread(target=own_a_team, name=_IDLE_TEAM, daemon=True).start()
    started.wait()


def _cpu_quota() -> float:
    """CPUs that Linux's control groups allow, in version 2 or 1; infinite without a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            quotas += _quotas_v2(Path("/sys/fs/cgroup"), name)
        elif "cpu" in controllers.split(","):
            quotas += _quotas_v1(Path("/sys/fs/cgroup") / controllers, name)
    return min(quotas)


def _quotas_v2(root: Path, name: str) -> list[float]:
    return [
        int(words[0]) / int(words[1])
        for folder in _with_parents(root, name)
        if (words := _words(folder / "cpu.max")) and words[0] != "max"
    ]


def _quotas_v1(root: Path, name: str) -> list[float]:
    return [
        int(quota[0]) / int(period[0])
        for folder in _with_parents(root, name)
        if (quota := _words(folder / "cpu.cfs_quota_us"))
        and (period := _words(folder / "cpu.cfs_period_us"))
        and int(quota[0]) > 0
    ]


def _with_parents(root: Path, name: str) -> list[Path]:
    """The group's folder and those around it, each of which may have a limit.

    Inside a container the group's name is often one of the host, which does not exist there: the
    root is then the container's own group.
    """
    folder = root / name.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
