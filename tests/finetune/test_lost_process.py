"""One of two processes dies or hangs: the other says so and ends, and the run can go on."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from paligemma.processor.tokenizer import Tokenizer
from tests.finetune.runner import run
from tests.finetune.test_resume import REPOSITORY, command, environment, records

FIELDS: dict[str, Any] = {"num_steps": 8, "batch_size": 8}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_two(
    tokenizer: Tokenizer, out: Path, fields: dict[str, Any]
) -> list[subprocess.Popen[str]]:
    """As torchrun does, but with nobody who ends one when the other has died."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            command("deadly", tokenizer, out, fields),
            cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
            env=environment() | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "patience"),
    [
        pytest.param(signal.SIGKILL, 300, id="killed"),
        pytest.param(signal.SIGSTOP, 15, id="hangs", marks=pytest.mark.slow),
    ],
)
def test_g10_when_one_process_dies_or_hangs_the_other_ends_with_one_clear_error(
    tmp_path: Path, tiny_tokenizer: Tokenizer, number: signal.Signals, patience: int
) -> None:
    fields = FIELDS | {"number": number, "patience": patience}
    first, second = start_two(tiny_tokenizer, tmp_path, fields)
    try:
        until = time.monotonic() + 200
        while not (tmp_path / "mark").exists() and time.monotonic() < until:
            time.sleep(0.05)
        began = time.monotonic()
        _, errors = first.communicate(timeout=200)
        seconds = time.monotonic() - began
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert first.returncode == 1
    assert seconds < 60 + (patience if number == signal.SIGSTOP else 0)
    (line,) = [line for line in errors.splitlines() if "paligemma.errors." in line]
    assert line.removeprefix("[rank0]: ").startswith(
        "paligemma.errors.ProcessLostError: Process 0 of 2 lost another process, which has ended "
        f"or did not respond for {patience} s."
    )
    # What is left is whole: one process goes on from it.
    assert records(tmp_path)[-1]["step"] == 4
    run(tiny_tokenizer, tmp_path, **FIELDS)
    run(tiny_tokenizer, tmp_path / "undisturbed", **FIELDS)
    losses, expected = (
        [r["loss"] for r in records(out) if "loss" in r]
        for out in (tmp_path, tmp_path / "undisturbed")
    )
    assert losses == pytest.approx(expected, rel=1e-6)
