"""Processes of their own, killed or told to stop: nothing is lost, and no number differs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from paligemma.finetune.state import load_weights
from paligemma.finetune.trainer import LOG_NAME
from paligemma.processor.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[2]
FIELDS: dict[str, Any] = {"llm_dropout": 0.1, "accumulation": 2, "label_smoothing": 0.1}


def command(way: str, tokenizer: Tokenizer, out: Path, fields: dict[str, Any]) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "tokenizer.model"
    path.write_bytes(tokenizer.model_proto)
    arguments = [str(path), str(out), json.dumps(fields)]
    return [sys.executable, "-m", "tests.finetune.runner", way, *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LOG_NAME).read_text().splitlines()]


def numbers(out: Path) -> list[tuple[int, str]]:
    """Every loss, gradient norm and score, to the last bit."""
    found = []
    for record in records(out):
        kept = record.get("validation", record)
        names = kept.keys() & {"loss", "grad_norm", "score", "length"}
        found += [(record["step"], float(kept[name]).hex()) for name in sorted(names)]
    return found


def assert_equal_runs(whole: Path, other: Path) -> None:
    assert numbers(whole) == numbers(other)
    weights, others = load_weights(whole), load_weights(other)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(
    "kills",
    [pytest.param(2, id="2 kills"), pytest.param(20, id="20 kills", marks=pytest.mark.slow)],
)
def test_g1_a_run_killed_at_random_moments_is_bit_equal_to_one_that_was_not(
    tmp_path: Path, tiny_tokenizer: Tokenizer, kills: int
) -> None:
    fields = FIELDS | {"kills": kills, "seed": kills, "num_steps": 24, "save_every": 3}
    made = subprocess.run(
        command("killed", tiny_tokenizer, tmp_path, fields),
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    disturbed = sorted(tmp_path.glob("killed-*"))
    assert disturbed
    assert len(numbers(tmp_path / "whole")) == 24 * 2 + 4 * 2  # and a validation every 5.5 steps
    for other in disturbed:
        assert_equal_runs(tmp_path / "whole", other)


def test_g12_a_process_that_gets_sigterm_ends_with_75_and_a_state(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    fields = {"num_steps": 100_000, "save_every": 100_000}
    with subprocess.Popen(
        command("run", tiny_tokenizer, tmp_path, fields),
        cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            until = time.monotonic() + 200
            while not (tmp_path / LOG_NAME).exists() and time.monotonic() < until:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 75, errors
    assert (
        tmp_path / "checkpoints" / "latest"
    ).read_text() == f"step-{records(tmp_path)[-1]['step']}\n"
