"""The loop: what is learned and logged, and that a stopped run goes on as if it had not been."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from paligemma.errors import CheckpointError, NumericalError
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.state import load_state, save_state
from paligemma.finetune.trainer import LOG_NAME, STATE_NAME, train


class Line(nn.Module):
    """y = w x + b, to be found from noisy points."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        error = self.linear(batch[:, :3]) - batch[:, 3:]
        return {"loss": error.square().mean(), "bias": self.linear.bias.detach()[0]}


class Points:
    def batch(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 3, generator=generator)
        return torch.cat([x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.25], dim=1)


class Broken(Points):
    def batch(self, step: int) -> Tensor:
        points = super().batch(step)
        return points * float("nan") if step == 7 else points


def config(num_steps: int) -> TrainConfig:
    return TrainConfig(
        num_steps=num_steps,
        learning_rate=0.05,
        schedule="constant",
        warmup_steps=2,
        save_every=5,
        log_every=4,
        autocast=False,
    )


def test_training_finds_the_line(tmp_path: Path) -> None:
    line = Line()
    train(line, Points(), line.losses, config(150), tmp_path)
    found = line.linear.weight.detach()[0]
    assert torch.allclose(found, torch.tensor([1.0, -2.0, 0.5]), atol=0.05)
    records = [json.loads(row) for row in (tmp_path / LOG_NAME).read_text().splitlines()]
    assert records[-1]["step"] == 150
    assert records[-1]["loss"] < 0.01 < records[0]["loss"]


def test_a_run_stopped_between_saves_resumes_bit_equal(tmp_path: Path) -> None:
    whole = Line()
    train(whole, Points(), whole.losses, config(20), tmp_path / "whole")
    stopped = Line()
    with pytest.raises(NumericalError):
        train(stopped, Broken(), stopped.losses, config(20), tmp_path / "parts")
    resumed = Line()
    train(resumed, Points(), resumed.losses, config(20), tmp_path / "parts")
    assert torch.equal(whole.linear.weight, resumed.linear.weight)
    assert torch.equal(whole.linear.bias, resumed.linear.bias)

    def losses_by_step(folder: str) -> dict[int, float]:
        rows = (tmp_path / folder / LOG_NAME).read_text().splitlines()
        return {record["step"]: record["loss"] for record in map(json.loads, rows)}

    # Step 8's average is over 5..8 in one run and over 6..8 in the other; the rest is the same.
    first, second = losses_by_step("whole"), losses_by_step("parts")
    assert first.keys() == second.keys() == {4, 8, 12, 16, 20}
    assert all(first[step] == second[step] for step in (4, 12, 16, 20))


def test_a_loss_that_is_not_finite_stops_and_names_the_good_state(tmp_path: Path) -> None:
    line = Line()
    with pytest.raises(NumericalError, match=r"The loss of step 7 is nan.*state\.safetensors"):
        train(line, Broken(), line.losses, config(20), tmp_path)
    assert load_state(tmp_path / STATE_NAME, Line()) == 5


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    line = Line()
    save_state(tmp_path / STATE_NAME, line, torch.optim.AdamW(line.parameters()), 3)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_state(tmp_path / STATE_NAME, nn.Sequential(line))


def test_an_unfinished_state_file_is_not_mistaken_for_a_state(tmp_path: Path) -> None:
    (tmp_path / (STATE_NAME + ".partial")).write_bytes(b"half")
    line = Line()
    train(line, Points(), line.losses, config(5), tmp_path)
    assert load_state(tmp_path / STATE_NAME, Line()) == 5


def test_the_vision_encoder_may_learn_more_slowly(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_encoder = nn.Linear(1, 1)
            self.decoder = nn.Linear(1, 1)

        def losses(self, batch: Tensor) -> dict[str, Tensor]:
            return {"loss": self.decoder(self.vision_encoder(batch[:, :1])).square().mean()}

    two = Two()
    before = {name: p.detach().clone() for name, p in two.named_parameters()}
    slow = replace(config(1), vision_learning_rate_scale=0.1)
    train(two, Points(), two.losses, slow, tmp_path)
    # Adam's first step has the size of the learning rate: 0.05 / 2 in the warm-up's first step.
    moved = {name: (p.detach() - before[name]).abs().max() for name, p in two.named_parameters()}
    assert moved["decoder.weight"] == pytest.approx(0.025, rel=1e-3)
    assert moved["vision_encoder.weight"] == pytest.approx(0.0025, rel=1e-3)
