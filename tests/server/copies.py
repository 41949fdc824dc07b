"""Processes that start as copies of one which has imported everything: imports take seconds.

A copy runs the same `main` with the same arguments, environment, signals and exit codes as
`python -m paligemma` does. What it cannot prove is that a new Python finds and imports the package,
and that its interpreter ends; the processes that are no copies prove that.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

_COPIES = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Start the process that is copied, unless there is one."""
    _COPIES.set_forkserver_preload([f"{__package__}.everything"])
    named = {name: value for name, value in os.environ.items() if not name.startswith("PALIGEMMA")}
    with patch.dict(os.environ, {**named, "OMP_NUM_THREADS": "1"}, clear=True):
        forkserver.ensure_running()


class Copy:
    """`paligemma ARGUMENTS` with its output in a file; as much of `Popen` as tests need."""

    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str], log_file: Path, faults: str
    ) -> None:
        """`faults` is a plan for `tests.server.faults`."""
        prepare()
        log_file.touch()
        self._process = _COPIES.Process(
            target=_run, args=([*arguments], environment, str(log_file), faults)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("paligemma", timeout)
        return code

    def kill(self) -> None:
        self._process.kill()


def _run(arguments: list[str], environment: dict[str, str], log_file: str, faults: str) -> None:
    """What the copy does; it ends with the exit code of `main`."""
    os.chdir(Path(__file__).parents[2])
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # looked up again, from the copy's own TMPDIR
    sys.argv = ["paligemma", *arguments]
    from paligemma.cli.main import main
    from tests.server.faults import plan_faults

    if faults:
        plan_faults(faults)
    main()
