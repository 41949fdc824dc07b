"""Two processes (gloo, FSDP2) are one: the same losses and weights, and one reads their states."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paligemma.finetune.state import load_weights
from paligemma.processor.tokenizer import Tokenizer
from tests.finetune.runner import run
from tests.finetune.test_resume import REPOSITORY, command, environment, numbers, records

FIELDS: dict[str, Any] = {
    "num_steps": 8,
    "checkpoint_activations": True,
    "batch_size": 8,
    "accumulation": 2,
}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """What two processes wrote."""
    out = tmp_path_factory.mktemp("two")
    python, _, *rest = command("both", tiny_tokenizer, out, FIELDS)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    made = subprocess.run(
        [python, *launcher, *rest],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-4000:]
    return out


def values(out: Path, name: str) -> list[float]:
    """Of every step, or of every validation."""
    kept = [record.get("validation", record) for record in records(out)]
    return [record[name] for record in kept if name in record]


def test_losses_and_weights_are_those_of_one_process(
    by_two: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    model = run(tiny_tokenizer, tmp_path, **FIELDS)
    assert model is not None
    for name, tolerance in (("loss", 1e-6), ("grad_norm", 1e-5)):
        assert values(by_two / "whole", name) == pytest.approx(
            values(tmp_path, name), rel=tolerance
        )
    whole = load_file(by_two / "whole.safetensors")
    assert whole.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        if not name.endswith("k_proj.bias"):  # softmax does not see it: its gradient is rounding
            assert (whole[name] - parameter).abs().max() < 2e-5, name


def test_two_processes_resume_bit_equal(by_two: Path) -> None:
    assert numbers(by_two / "whole") == numbers(by_two / "half")
    whole, half = (load_file(by_two / f"{name}.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(whole[name], half[name]) for name in whole)


def test_one_process_goes_on_from_the_state_of_two(by_two: Path, tiny_tokenizer: Tokenizer) -> None:
    assert (by_two / "one" / "checkpoints" / "latest").exists()
    run(tiny_tokenizer, by_two / "one", **FIELDS)
    assert values(by_two / "one", "loss") == pytest.approx(
        values(by_two / "whole", "loss"), rel=1e-6
    )
    assert len(values(by_two / "one", "loss")) == 8


def test_a_state_of_two_processes_is_read_whole(by_two: Path) -> None:
    saved, whole = load_weights(by_two / "whole"), load_file(by_two / "whole.safetensors")
    assert all(torch.equal(saved[f"model.{name}"], whole[name]) for name in whole)


def test_every_process_wrote_its_share(by_two: Path) -> None:
    folder = by_two / "whole" / "checkpoints" / "step-8"
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert json.loads((folder / "state.json").read_text())["world_size"] == 2


def test_two_processes_compute_in_bfloat16_from_float32_shards_as_one_does_from_copies(
    by_two: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    run(tiny_tokenizer, tmp_path, dtype=torch.bfloat16, master_weights=True, **FIELDS)
    alone, together = values(tmp_path, "loss"), values(by_two / "bfloat16", "loss")
    assert together == pytest.approx(alone, rel=0.01)
    assert together != pytest.approx(values(by_two / "whole", "loss"), rel=0.01)
    for folder in (tmp_path, by_two / "bfloat16"):
        assert {weight.dtype for weight in load_weights(folder).values()} == {torch.float32}
