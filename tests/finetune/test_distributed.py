"""Two processes (gloo, FSDP2) are one: the same losses and weights, and one reads their states."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paligemma.finetune.state import load_weights
from paligemma.finetune.trainer import SKIPPED_NAME
from paligemma.processor.tokenizer import Tokenizer
from tests.finetune.runner import ADAPTERS, run
from tests.finetune.test_resume import (
    REPOSITORY,
    assert_equal_runs,
    command,
    environment,
    numbers,
    records,
)

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
    torchrun(command("both", tiny_tokenizer, out, FIELDS))
    return out


@pytest.fixture(scope="module")
def variants(by_two: Path, tiny_tokenizer: Tokenizer) -> Path:
    """What two processes wrote in bfloat16, with adapters, and from values that are not finite."""
    torchrun(command("variants", tiny_tokenizer, by_two, FIELDS))
    return by_two


def torchrun(alone: Sequence[str], *options: str) -> str:
    """Run a command of one process by two; what they said on stderr."""
    python, *rest = alone
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    made = subprocess.run(
        [python, *launcher, *rest],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-4000:]
    return made.stderr


def values(out: Path, name: str) -> list[Any]:
    """Of every step, or of every validation."""
    kept = [record.get("validation", record) for record in records(out)]
    return [record[name] for record in kept if name in record]


def test_g8_losses_and_weights_are_those_of_one_process(
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


def test_g1_two_processes_resume_bit_equal(by_two: Path) -> None:
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


@pytest.mark.slow
def test_two_processes_compute_in_bfloat16_from_float32_shards_as_one_does_from_copies(
    variants: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    run(tiny_tokenizer, tmp_path, dtype=torch.bfloat16, master_weights=True, **FIELDS)
    alone, together = values(tmp_path, "loss"), values(variants / "bfloat16", "loss")
    assert together == pytest.approx(alone, rel=0.01)
    assert together != pytest.approx(values(variants / "whole", "loss"), rel=0.01)
    for folder in (tmp_path, variants / "bfloat16"):
        assert {weight.dtype for weight in load_weights(folder).values()} == {torch.float32}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the two processes: cut for more threads, bfloat16 rounds otherwise."""
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(own)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("adapters", ADAPTERS)
def test_two_processes_train_adapters_on_a_bfloat16_base_as_one_does(
    variants: Path, tmp_path: Path, tiny_tokenizer: Tokenizer, adapters: str
) -> None:
    # As many micro-batches of the same rows: cut otherwise, bfloat16 would round otherwise.
    run(tiny_tokenizer, tmp_path, adapters=adapters, **FIELDS | {"accumulation": 4, "num_steps": 4})
    together, alone = variants / adapters, tmp_path
    for name, tolerance in (("loss", 1e-4), ("grad_norm", 2e-3), ("score", 1e-3)):
        assert values(together, name) == pytest.approx(values(alone, name), rel=tolerance), name
    saved, expected = load_weights(together), load_weights(alone)
    assert saved.keys() == expected.keys()
    assert all(".lora_" in name or name.endswith(".magnitude") for name in saved)
    moved = 0
    for name, weight in expected.items():
        assert saved[name].dtype == torch.float32
        assert (saved[name] - weight).abs().max() < 1e-4, name
        moved += bool(weight.abs().max() > 2e-4)
    assert moved > 0.8 * len(expected)


@pytest.mark.slow
def test_g7_what_one_process_finds_not_finite_both_skip(
    variants: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    run(tiny_tokenizer, tmp_path, poisoned=True, on_non_finite="skip", **FIELDS)
    skipped, expected = (
        [json.loads(line) for line in (out / SKIPPED_NAME).read_text().splitlines()]
        for out in (variants / "skipping", tmp_path)
    )
    assert [record["step"] for record in skipped] == [record["step"] for record in expected]
    assert len(skipped) == 3  # once an epoch
    for record, theirs in zip(skipped, expected, strict=True):
        assert len(record["ids"]) == 8  # of both processes
        assert sorted(record["ids"]) == sorted(theirs["ids"])
        assert "drawn-6" in record["ids"]
    losses, theirs = values(variants / "skipping", "loss"), values(tmp_path, "loss")
    assert losses.count(None) == 3
    finite = [loss for loss in losses if loss is not None]
    assert finite == pytest.approx([loss for loss in theirs if loss is not None], rel=1e-6)
    assert all(bool(w.isfinite().all()) for w in load_weights(variants / "skipping").values())


@pytest.mark.slow
def test_g7_what_one_process_finds_not_finite_stops_both(variants: Path) -> None:
    first, second = ((variants / f"stopped-{rank}").read_text() for rank in range(2))
    assert first == second
    (line,) = (variants / "stopping" / SKIPPED_NAME).read_text().splitlines()
    step = json.loads(line)["step"]
    assert f"The loss of step {step - 1} is nan" in first
    states = [p for p in (variants / "stopping" / "checkpoints").glob("step-*")]
    assert all(int(path.name.removeprefix("step-")) < step for path in states)


@pytest.mark.slow
def test_g10_torchrun_starts_dead_processes_again_and_no_number_differs(
    by_two: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    fields = FIELDS | {"number": signal.SIGKILL}
    torchrun(command("deadly", tiny_tokenizer, tmp_path, fields), "--max-restarts", "1")
    assert (tmp_path / "mark").exists()
    assert_equal_runs(by_two / "whole", tmp_path)
