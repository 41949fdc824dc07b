"""Parameter groups, decay, learning rates and master copies, step by step against arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from paligemma.errors import OptionError
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.optim import Trained, build_optimizer, learning_rate_at
from tests.tiny import tiny_model


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_encoder = nn.Linear(3, 2)
        self.decoder = nn.Linear(3, 2)


def config(**fields: Any) -> TrainConfig:
    return TrainConfig(**{"num_steps": 100, "learning_rate": 0.01, "warmup_steps": 10} | fields)


def step(module: nn.Module, settings: TrainConfig, number: int = 9) -> None:
    """One update with gradients of 1 (or none at all, for decay alone), at a step of the peak."""
    trained = Trained(module, master_weights=settings.master_weights)
    optimizer = build_optimizer(trained, settings)
    for parameter in trained.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(settings, number) * group["scale"]
    optimizer.step()


def test_warm_up_takes_five_percent_of_all_steps_unless_given() -> None:
    assert TrainConfig(num_steps=200, learning_rate=1.0).warmup == 10
    assert TrainConfig(num_steps=200, learning_rate=1.0, warmup_steps=0).warmup == 0


def test_the_cosine_is_big_visions() -> None:
    # big_vision/utils.py, create_learning_rate_schedule: 0.5 * (1 + cos(pi * progress)).
    settings = config(num_steps=110)
    assert learning_rate_at(settings, 4) == pytest.approx(0.005)
    assert learning_rate_at(settings, 10) == pytest.approx(0.01)
    assert learning_rate_at(settings, 60) == pytest.approx(0.005)
    assert learning_rate_at(settings, 110) == pytest.approx(0.0)


def test_the_reciprocal_square_root_has_no_end() -> None:
    settings = config(schedule="rsqrt")
    assert learning_rate_at(settings, 10) == pytest.approx(0.01)
    assert learning_rate_at(settings, 40) == pytest.approx(0.005)
    assert learning_rate_at(settings, 4000) == pytest.approx(0.0005)


def test_epochs_become_steps_that_show_every_example() -> None:
    assert TrainConfig(epochs=2, learning_rate=1.0, batch_size=8).resolved(33).num_steps == 9
    with pytest.raises(OptionError, match="depends on the data"):
        _ = TrainConfig(epochs=2, learning_rate=1.0).total_steps
    with pytest.raises(OptionError, match="give one of the two"):
        TrainConfig(epochs=2, num_steps=3, learning_rate=1.0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("number", [4, 9, 55])
def test_big_visions_decay_follows_the_schedule_but_not_the_learning_rate(
    optimizer: str, number: int
) -> None:
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = config(
        weight_decay=0.01, weight_decay_kind="big_vision", learning_rate=3e-5, optimizer=optimizer
    )
    step(model, settings, number)
    shrunk = 1 - 0.01 * learning_rate_at(settings, number) / 3e-5
    decayed = set()
    for name, parameter in model.named_parameters():
        if not torch.equal(parameter, before[name]):
            decayed.add(name)
            assert torch.allclose(parameter, before[name] * shrunk, rtol=1e-5, atol=0)
    assert {name for name in before if name.endswith("proj.weight") or "fc" in name} & {
        name for name in before if name.startswith("vision_encoder.") and name.endswith("weight")
    } <= decayed
    assert "vision_encoder.patch_embedding.weight" in decayed
    assert not any(name.startswith("decoder.") or name.endswith("bias") for name in decayed)
    assert not any("norm" in name or "position_embedding" in name for name in decayed)
    assert sum(name.startswith("projector.") for name in decayed) == 1


def test_adamws_decay_is_of_all_matrices_by_learning_rate() -> None:
    two = Two()
    before = {name: p.detach().clone() for name, p in two.named_parameters()}
    step(two, config(weight_decay=0.5, vision_learning_rate_scale=0.1))
    for name, parameter in two.named_parameters():
        rate = 0.01 * (0.1 if name.startswith("vision") else 1.0)
        shrunk = 1.0 if name.endswith("bias") else 1 - rate * 0.5
        assert torch.allclose(parameter, before[name] * shrunk, rtol=1e-6, atol=0)


def test_the_vision_encoder_may_learn_more_slowly() -> None:
    two = Two()
    before = {name: p.detach().clone() for name, p in two.named_parameters()}
    trained = Trained(two, master_weights=False)
    optimizer = build_optimizer(trained, config(vision_learning_rate_scale=0.1))
    for parameter in trained.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["scale"]
    optimizer.step()  # Adam's first step has the size of the learning rate
    for name, parameter in two.named_parameters():
        rate = 0.001 if name.startswith("vision") else 0.01
        assert torch.allclose(before[name] - parameter, torch.full_like(parameter, rate), rtol=1e-3)


def test_sgd_is_plain() -> None:
    two = Two()
    before = two.decoder.weight.detach().clone()
    trained = Trained(two, master_weights=False)
    optimizer = build_optimizer(trained, config(optimizer="sgd"))
    (two.decoder.weight * 3.0).sum().backward()
    optimizer.step()
    assert torch.allclose(two.decoder.weight, before - 0.01 * 3.0)
    assert not any(state for state in optimizer.state.values())


def test_gradients_are_clipped_by_their_norm_together() -> None:
    two = Two()
    trained = Trained(two, master_weights=False)
    for parameter in trained.parameters.values():
        parameter.grad = torch.full_like(parameter, 2.0)
    norm = math.sqrt(4.0 * sum(p.numel() for p in two.parameters()))
    assert trained.clip_gradients(None) == pytest.approx(norm)
    assert two.decoder.bias.grad is not None
    assert float(two.decoder.bias.grad[0]) == 2.0
    assert trained.clip_gradients(1.0) == pytest.approx(norm)
    assert trained.clip_gradients(None) == pytest.approx(1.0, rel=1e-5)


def test_master_copies_keep_updates_that_bfloat16_would_round_away() -> None:
    weights = {}
    for master_weights in (True, False):
        layer = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
        with torch.no_grad():
            layer.weight.fill_(1.0)
        trained = Trained(layer, master_weights=master_weights)
        settings = config(optimizer="sgd", learning_rate=1e-3, master_weights=master_weights)
        optimizer = build_optimizer(trained, settings)
        for _ in range(20):
            for _ in range(2):  # micro-batches add up
                layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().mul(0.5).backward()
            optimizer.step()
            optimizer.zero_grad()
            trained.publish()
        trained.release()
        weights[master_weights] = float(layer.weight.detach()[0, 0])
        assert layer.weight.dtype == torch.bfloat16
    # 20 steps of 0.001; a bfloat16 near 1 has steps of 0.0039.
    assert weights[True] == pytest.approx(0.98, abs=0.004)
    assert weights[False] == 1.0


def test_a_released_model_keeps_its_own_gradients() -> None:
    layer = nn.Linear(2, 2, dtype=torch.bfloat16)
    trained = Trained(layer, master_weights=True)
    trained.release()
    layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None
