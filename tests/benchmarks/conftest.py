"""What the tests of the benchmark commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.command import run_command


@dataclass
class Ran:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> Any:
        return json.loads(self.out)


RunCommand = Callable[[Callable[[], None]], Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Runs a benchmark command in this process."""

    def call(command: Callable[[], None]) -> Ran:
        with pytest.raises(SystemExit) as stopped:
            run_command(command)
        out, err = capsys.readouterr()
        return Ran(code=int(stopped.value.code or 0), out=out, err=err)

    return call
