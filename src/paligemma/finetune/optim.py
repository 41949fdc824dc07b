"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from paligemma.finetune.config import TrainConfig


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; matrices decay, vectors (norms, biases) do not.

    Each group carries the `scale` of its learning rate, which the loop applies.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = ("vision_encoder." in name, parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if is_matrix else 0.0,
                "scale": config.vision_learning_rate_scale if is_vision else 1.0,
            }
            for (is_vision, is_matrix), parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """The learning rate of step `step`, counted from 0.

    >>> config = TrainConfig(num_steps=100, learning_rate=1.0, warmup_steps=10)
    >>> [round(learning_rate_at(config, s), 2) for s in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * done))
