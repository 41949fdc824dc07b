"""Optimization: frozen parts, parameter groups, master copies, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from paligemma.errors import OptionError
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.muon import ORTHOGONALIZED, Muon


def freeze(module: nn.Module, patterns: Iterable[str]) -> None:
    """Exclude parameters from training by name: "vision_encoder.*", "decoder.embedding.weight".

    Raises OptionError for a pattern that matches nothing, which must be a typo.
    """
    parameters = dict(module.named_parameters())
    for pattern in patterns:
        matching = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matching:
            raise OptionError(
                f"The frozen pattern {pattern!r} matches no parameter. The first names are "
                f"{', '.join(list(parameters)[:3])}; * matches anything."
            )
        for name in matching:
            parameters[name].requires_grad_(False)


class Trained:
    """The parameters that the optimizer updates, by name.

    With master copies, bfloat16 parameters have copies in float32: gradients are accumulated
    there, micro-batch by micro-batch, and `publish` rounds the updated copies into the model.
    """

    def __init__(self, module: nn.Module, *, master_weights: bool) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self._copies: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._hooks: list[RemovableHandle] = []
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            updated = parameter
            if master_weights and parameter.dtype != torch.float32:
                updated = nn.Parameter(parameter.detach().float())
                self._copies.append((parameter, updated))
                hook = parameter.register_post_accumulate_grad_hook(_gradient_hook(updated))
                self._hooks.append(hook)
            self.parameters[name] = updated
        if not self.parameters:
            raise OptionError(
                "No parameter requires a gradient, so nothing would be learned. Freeze less."
            )

    def publish(self) -> None:
        """Copy the master copies into the model."""
        with torch.no_grad():
            for parameter, copy in self._copies:
                parameter.copy_(copy)

    def release(self) -> None:
        """Stop redirecting gradients: they stay with the model's own parameters again."""
        for hook in self._hooks:
            hook.remove()

    def clip_gradients(self, max_norm: float | None) -> float:
        """Scale the gradients together to a norm of at most `max_norm`; return the norm before."""
        norm: Any = nn.utils.clip_grad_norm_(self.parameters.values(), max_norm or math.inf)
        if _is_sharded(norm):
            norm = norm.full_tensor()
        return float(norm)


def _gradient_hook(master: nn.Parameter) -> Callable[[Tensor], None]:
    def move_gradient(parameter: Tensor) -> None:
        if parameter.grad is not None:
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    return move_gradient


def build_optimizer(trained: Trained, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters; `TrainConfig.weight_decay_kind` says what decays.

    Each group has the `scale` of its learning rate, which the loop applies. Raises OptionError for
    Muon on a model that is sharded over processes.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.parameters.items():
        scale = config.vision_learning_rate_scale if "vision_encoder." in name else 1.0
        decay = _weight_decay(name, parameter, config, scale)
        is_block_matrix = parameter.ndim == 2 and ".blocks." in f".{name}"
        key = scale, decay, config.optimizer == "muon" and is_block_matrix
        groups.setdefault(key, []).append(parameter)
    param_groups = [
        {"params": parameters, "weight_decay": weight_decay, "scale": scale, ORTHOGONALIZED: turned}
        for (scale, weight_decay, turned), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(param_groups, lr=config.learning_rate)
    if config.optimizer == "muon" and any(map(_is_sharded, trained.parameters.values())):
        raise OptionError(
            'The optimizer "muon" needs whole matrices, and this model is sharded over processes. '
            'Train in one process, or use "adamw".'
        )
    optimizer = Muon if config.optimizer == "muon" else torch.optim.AdamW
    return optimizer(param_groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "full_tensor")


def _weight_decay(name: str, parameter: Tensor, config: TrainConfig, scale: float) -> float:
    if config.weight_decay_kind == "adamw":
        return config.weight_decay if parameter.ndim > 1 else 0.0  # no norms, no biases
    # torch shrinks by learning rate * weight decay; dividing by the peak leaves the schedule.
    is_kernel = parameter.ndim > 1 and "position_embedding" not in name
    has_kernels = any(part in name for part in ("vision_encoder.", "projector."))
    peak = config.learning_rate * scale
    return config.weight_decay / peak if is_kernel and has_kernels and peak else 0.0


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """The learning rate of step `step`, counted from 0.

    >>> config = TrainConfig(num_steps=100, learning_rate=1.0, warmup_steps=10)
    >>> [round(learning_rate_at(config, s), 2) for s in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    warmup = config.warmup
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "rsqrt":
        return config.learning_rate * math.sqrt(max(1, warmup) / max(1, step))
    done = (step - warmup) / max(1, config.total_steps - warmup)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * done))
