"""The loop: what is learned and logged, and that a stopped run goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paligemma.errors import CheckpointError, DataError, NumericalError, OptionError
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.optim import freeze
from paligemma.finetune.state import best_folder, folder_weights, load_weights
from paligemma.finetune.trainer import LOG_NAME, SKIPPED_NAME, Objective, train


class Line(nn.Module):
    """y = w x + b, to be found from noisy points."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)

    def forward(self, batch: Tensor) -> Tensor:
        x = batch[:, :3]
        x = nn.functional.dropout(x, 0.1, training=self.training)
        loss: Tensor = (self.linear(x) - batch[:, 3:]).square().sum()
        return loss

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self(batch), "bias": len(batch) * self.linear.bias.detach()[0]}


OBJECTIVE: dict[str, Any] = {
    "count": len,
    "num_tokens": len,
    "ids": lambda batch: [f"{point[3]:.3f}" for point in batch],
}


class Points:
    rows = 16

    def batch(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(self.rows, 3, generator=generator)
        return torch.cat([x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.25], dim=1)


class Broken(Points):
    """Step 7 is poisoned."""

    def batch(self, number: int) -> Tensor:
        points = super().batch(number)
        return points * float("nan") if number == 7 else points


def config(num_steps: int = 20, **fields: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "num_steps": num_steps,
        "learning_rate": 0.05,
        "schedule": "constant",
        "warmup_steps": 2,
        "save_every": 5,
        "log_every": 4,
        "autocast": False,
    }
    return TrainConfig(**defaults | fields)


def run(line: Line, points: Points, how: TrainConfig, out: Path, **arguments: Any) -> None:
    objective = Objective(losses=line.losses, validate=arguments.pop("validate", None), **OBJECTIVE)
    train(line, points, objective, how, out, **arguments)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (out / LOG_NAME).read_text().splitlines()]


def losses(out: Path) -> list[str]:
    return [record["loss"].hex() for record in records(out) if "loss" in record]


def test_training_finds_the_line_and_logs_every_step(tmp_path: Path) -> None:
    line = Line()
    told: list[dict[str, Any]] = []
    run(line, Points(), config(150), tmp_path, on_log=told.append, steps_per_epoch=10)
    found = line.linear.weight.detach()[0]
    assert torch.allclose(found, torch.tensor([1.0, -2.0, 0.5]), atol=0.3)
    logged = records(tmp_path)
    assert [record["step"] for record in logged] == list(range(1, 151))
    assert logged[-1]["loss"] < 1.5 < 3 < logged[0]["loss"]
    assert logged[24]["epoch"] == 2.5
    assert {"grad_norm", "learning_rate", "tokens_per_second", "seconds_left"} <= logged[0].keys()
    assert [record["step"] for record in told] == [*range(4, 150, 4), 150]
    assert told[0]["loss"] == pytest.approx(sum(r["loss"] for r in logged[:4]) / 4)


def test_a_run_that_broke_between_saves_resumes_bit_equal(tmp_path: Path) -> None:
    whole, resumed = Line(), Line()
    run(whole, Points(), config(20), tmp_path / "whole")
    with pytest.raises(NumericalError):
        run(Line(), Broken(), config(20), tmp_path / "parts")
    run(resumed, Points(), config(20), tmp_path / "parts")
    assert torch.equal(whole.linear.weight, resumed.linear.weight)
    assert torch.equal(whole.linear.bias, resumed.linear.bias)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert len(losses(tmp_path / "whole")) == 20


def test_the_random_state_of_the_caller_stays_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    line = Line()
    torch.set_rng_state(before)
    run(line, Points(), config(3), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_g8_accumulation_does_not_change_losses(tmp_path: Path, accumulation: int) -> None:
    class Part(Points):
        """Micro-batch n of the same 16 points a step, unevenly cut."""

        def batch(self, number: int) -> Tensor:
            step, part = divmod(number, accumulation)
            cuts = {2: [5, 11], 4: [1, 6, 2, 7]}[accumulation]
            parts: tuple[Tensor, ...] = super().batch(step).split(cuts)
            return parts[part]

    class Sure(Line):
        def forward(self, batch: Tensor) -> Tensor:
            loss: Tensor = (self.linear(batch[:, :3]) - batch[:, 3:]).square().sum()
            return loss

    whole, parts = Sure(), Sure()
    run(whole, Points(), config(12), tmp_path / "whole")
    run(parts, Part(), config(12, accumulation=accumulation), tmp_path / "parts")
    pairs = zip(records(tmp_path / "whole"), records(tmp_path / "parts"), strict=True)
    for one, other in pairs:
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["bias"] == pytest.approx(other["bias"], abs=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-5)


# What is not finite


def test_g7_a_loss_that_is_not_finite_stops_and_names_the_good_state(tmp_path: Path) -> None:
    line = Line()
    with pytest.raises(NumericalError, match=r"The loss of step 7 is nan.*checkpoints"):
        run(line, Broken(), config(20), tmp_path)
    assert torch.isfinite(load_weights(tmp_path)["linear.weight"]).all()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-5"]
    (skipped,) = (tmp_path / SKIPPED_NAME).read_text().splitlines()
    assert len(json.loads(skipped)["ids"]) == 16


def test_g7_a_step_that_is_not_finite_may_be_skipped(tmp_path: Path) -> None:
    skipping = config(20, on_non_finite="skip")
    line, stepwise = Line(), Line()
    told: list[dict[str, Any]] = []
    run(line, Broken(), skipping, tmp_path / "one", on_log=told.append)
    assert torch.isfinite(line.linear.weight).all()
    assert json.loads((tmp_path / "one" / SKIPPED_NAME).read_text())["step"] == 8
    assert records(tmp_path / "one")[7]["loss"] is None
    assert all(record["loss"] == record["loss"] for record in told)
    # The update of that step is dropped, and nothing else.
    run(stepwise, Broken(), replace(skipping, save_every=1), tmp_path / "two")
    first, second = (
        folder_weights(tmp_path / "two" / "checkpoints" / f"step-{step}")["linear.weight"]
        for step in (19, 20)
    )
    assert torch.equal(second, line.linear.weight.detach())
    assert not torch.equal(first, second)


def test_g7_when_every_step_is_not_finite_skipping_ends(tmp_path: Path) -> None:
    class Poison(Points):
        def batch(self, number: int) -> Tensor:
            return super().batch(number) * float("inf")

    with pytest.raises(NumericalError, match="step 9"):
        run(Line(), Poison(), config(20, on_non_finite="skip"), tmp_path)


def test_g7_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    class Overflowing(Line):
        def losses(self, batch: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                self.linear.bias.fill_(float("inf"))
            return {"loss": self.linear.weight.square().sum()}

    line = Overflowing()
    with pytest.raises(NumericalError, match="Weights are not finite after step 5"):
        run(line, Points(), config(20), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_g7_a_batch_in_which_nothing_counts_is_an_error(tmp_path: Path) -> None:
    line = Line()
    nothing = Objective(losses=line.losses, count=lambda _: 0, ids=lambda _: ["cat.png", "b"])
    with pytest.raises(DataError, match=r"batch of step 0 counts in the loss.*cat\.png, b"):
        train(line, Points(), nothing, config(3), tmp_path)


# Resuming


@pytest.mark.parametrize(
    ("changed", "facts", "message"),
    [
        ({"learning_rate": 0.1}, {"data": "a"}, r"learning_rate was 0\.05 and is 0\.1"),
        ({"num_steps": 30}, {"data": "a"}, "num_steps was 20 and is 30"),
        ({}, {"data": "b"}, "data was 'a' and is 'b'"),
        ({"seed": 5}, {"data": "c"}, "data was 'a' and is 'c'; seed was 0 and is 5"),
    ],
)
def test_g4_a_run_of_other_settings_or_data_is_not_resumed(
    tmp_path: Path, changed: dict[str, Any], facts: dict[str, str], message: str
) -> None:
    run(Line(), Points(), config(20), tmp_path, settings={"data": "a"})
    with pytest.raises(CheckpointError, match=message):
        run(Line(), Points(), config(**changed), tmp_path, settings=facts)


def test_settings_that_change_no_number_may_change(tmp_path: Path) -> None:
    with pytest.raises(NumericalError):
        run(Line(), Broken(), config(20), tmp_path)
    line = Line()
    run(line, Points(), config(20, save_every=3, num_workers=1, log_every=1), tmp_path)
    assert len(losses(tmp_path)) == 20


def test_g4_another_model_is_not_resumed(tmp_path: Path) -> None:
    class Other(Line):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(2, 2)

    run(Line(), Points(), config(5), tmp_path)
    with pytest.raises(CheckpointError, match=r"another model.*more\.bias"):
        run(Other(), Points(), config(5), tmp_path)


def test_frozen_parts_stay_and_are_not_saved(tmp_path: Path) -> None:
    line = Line()
    bias = line.linear.bias.detach().clone()
    freeze(line, ["*.bias"])
    run(line, Points(), config(5), tmp_path)
    assert torch.equal(line.linear.bias, bias)
    assert load_weights(tmp_path).keys() == {"linear.weight"}
    with pytest.raises(OptionError, match=r"'linaer\.\*' matches no parameter"):
        freeze(line, ["linaer.*"])
    freeze(line, ["*"])
    with pytest.raises(OptionError, match="nothing would be learned"):
        run(line, Points(), config(5), tmp_path / "none")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_g12_a_run_that_is_told_to_stop_saves_and_exits_with_75(
    tmp_path: Path, number: signal.Signals
) -> None:
    class Stopping(Points):
        def batch(self, step: int) -> Tensor:
            if step == 7:
                os.kill(os.getpid(), number)
            return super().batch(step)

    whole, resumed = Line(), Line()
    run(whole, Points(), config(20), tmp_path / "whole")
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        run(Line(), Stopping(), config(20), tmp_path / "parts")
    assert stopped.value.code == 75
    assert signal.getsignal(number) is handler
    assert (tmp_path / "parts" / "checkpoints" / "latest").read_text() == "step-8\n"
    run(resumed, Points(), config(20), tmp_path / "parts")
    assert torch.equal(whole.linear.weight, resumed.linear.weight)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_log_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    class Blocking(Points):
        def batch(self, number: int) -> Tensor:
            if number == 3:
                (tmp_path / LOG_NAME).unlink()
                (tmp_path / LOG_NAME).mkdir()
            return super().batch(number)

    with pytest.raises(CheckpointError, match=r"log\.jsonl cannot be written: Is a directory"):
        run(Line(), Blocking(), config(5), tmp_path)


# Validation


def test_validation_changes_nothing_but_the_log(tmp_path: Path) -> None:
    plain, validated = Line(), Line()
    validated.linear.eval()  # a part that is kept in eval mode
    seen = []

    def validate() -> Mapping[str, float]:
        seen.append((validated.training, torch.is_grad_enabled()))
        return {"score": float(torch.rand(1))}

    run(plain, Points(), config(20), tmp_path / "plain")
    run(
        validated,
        Points(),
        config(20, validate_every=6),
        tmp_path / "validated",
        validate=validate,
    )
    assert seen == [(False, False)] * 4
    assert validated.training
    assert torch.equal(plain.linear.weight, validated.linear.weight)
    assert losses(tmp_path / "plain") == losses(tmp_path / "validated")
    steps = [r["step"] for r in records(tmp_path / "validated") if "validation" in r]
    assert steps == [6, 12, 18, 20]


def test_validation_is_once_an_epoch_unless_told_otherwise(tmp_path: Path) -> None:
    run(Line(), Points(), config(20), tmp_path, validate=dict, steps_per_epoch=7.5)
    assert [r["step"] for r in records(tmp_path) if "validation" in r] == [8, 16, 20]


@pytest.mark.parametrize(("mode", "best"), [("max", 8), ("min", 16)])
def test_the_best_checkpoint_is_kept(tmp_path: Path, mode: str, best: int) -> None:
    scores = iter([0.5, 0.9, float("nan"), 0.2, 0.6])
    run(
        Line(),
        Points(),
        config(20, validate_every=4, keep_last=1, best_metric="score", best_mode=mode),
        tmp_path,
        validate=lambda: {"score": next(scores)},
    )
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == sorted(["best", "latest", f"step-{best}", "step-20"])
    assert (tmp_path / "checkpoints" / "best").read_text() == f"step-{best}\n"
    assert best_folder(tmp_path).name == f"step-{best}"
    first, last = folder_weights(best_folder(tmp_path)), load_weights(tmp_path)
    assert not torch.equal(first["linear.weight"], last["linear.weight"])


def test_a_metric_that_validation_does_not_give_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'cider', but validation returns bleu"):
        run(
            Line(),
            Points(),
            config(5, best_metric="cider"),
            tmp_path,
            validate=lambda: {"bleu": 0.1},
        )
