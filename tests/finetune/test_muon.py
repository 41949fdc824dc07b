"""Muon: held to torch's, and what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paligemma.errors import OptionError
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.muon import MOMENTUM, Muon, orthogonalized
from paligemma.finetune.optim import Trained, build_optimizer
from paligemma.finetune.trainer import Objective, train


class Small(nn.Module):
    """A block with a matrix and a bias, and a matrix outside of blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        first = nn.Linear(12, 7)
        self.blocks = nn.ModuleList([first])
        self.first = first
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.first(x).tanh())
        return logits


def config(**options: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "num_steps": 6,
        "learning_rate": 0.02,
        "weight_decay": 0.1,
        "warmup_steps": 0,
    }
    values |= {"autocast": False, "optimizer": "muon", "clip_norm": None} | options
    return TrainConfig(**values)


@pytest.mark.parametrize("shape", [(30, 30), (20, 50), (50, 20)])
def test_all_directions_of_a_step_are_equally_long(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    u, s, vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    uneven = u @ torch.diag(torch.linspace(1, 0.05, len(s))) @ vt
    step = orthogonalized(uneven)
    assert step.dtype == torch.float32
    assert step.shape == shape
    sizes = torch.linalg.svdvals(step)
    assert 0.6 < sizes.min() <= sizes.max() < 1.3
    # The same singular vectors: U^T step V is diagonal.
    turned = u.T @ step @ vt.T
    assert (turned - torch.diag(turned.diag())).abs().max() < 1e-4


def test_matrices_of_blocks_take_the_steps_of_torchs_muon_and_the_rest_those_of_adamw() -> None:
    ours, theirs = Small(), Small()
    optimizer = build_optimizer(Trained(ours, master_weights=False), config())
    assert isinstance(optimizer, Muon)
    matrix = theirs.first.weight
    others = [p for p in theirs.parameters() if p is not matrix]
    references = [
        torch.optim.Muon(
            [matrix], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim == 2], "weight_decay": 0.1},
                {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=0.02,
        ),
    ]
    x = torch.randn(16, 12)
    for _ in range(4):
        for module, optimizers in ((ours, [optimizer]), (theirs, references)):
            module.zero_grad()
            module(x).square().mean().backward()
            for one in optimizers:
                one.step()
    moved = (matrix - Small().first.weight).abs().max()
    # torch's rounds its products to bfloat16.
    assert (ours.first.weight - matrix).abs().max() < 0.02 * moved
    assert torch.allclose(ours.head.weight, theirs.head.weight, atol=2e-3)
    assert torch.allclose(ours.first.bias, theirs.first.bias, atol=2e-3)
    assert set(optimizer.state[ours.first.weight]) == {MOMENTUM}


class Source:
    def batch(self, number: int) -> Tensor:
        return torch.randn(8, 12, generator=torch.Generator().manual_seed(number))


def trained_for(steps: tuple[int, ...], out: Path) -> Small:
    model = Small()
    objective: Objective[Tensor] = Objective(
        losses=lambda x: {"loss": (model(x) - 1).square().mean()}
    )
    for last in steps:
        model = Small()
        settings = config(save_every=2, num_steps=6)
        if last < 6:
            stopping = _Stops(last)
            with pytest.raises(KeyboardInterrupt):
                train(model, stopping, objective, settings, out)
        else:
            train(model, Source(), objective, settings, out)
    return model


class _Stops(Source):
    def __init__(self, at: int) -> None:
        self.at = at

    def batch(self, number: int) -> Tensor:
        if number >= self.at:
            raise KeyboardInterrupt
        return super().batch(number)


def test_a_run_with_muon_continues_where_it_was(tmp_path: Path) -> None:
    whole = trained_for((6,), tmp_path / "whole")
    resumed = trained_for((4, 6), tmp_path / "resumed")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sharded_matrices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.finetune.optim._is_sharded", lambda parameter: True)
    with pytest.raises(OptionError, match="needs whole matrices"):
        build_optimizer(Trained(Small(), master_weights=False), config())
