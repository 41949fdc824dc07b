"""Training state on disk: weights, optimizer moments and step number, whole or not at all.

One safetensors file, written beside its final name and renamed over it, so that a run killed at
any moment finds the state before or the state after. There is no random state to keep: data is
a function of (seed, step).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paligemma.errors import CheckpointError

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write what a run needs to go on after `step` steps."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach().contiguous()
        for moment in _MOMENTS:
            if moment in (kept := optimizer.state.get(parameter, {})):
                tensors[f"{moment}/{name}"] = kept[moment].detach().contiguous()
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"step": str(step)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_state(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> int:
    """Fill a module, and its optimizer when given; returns the number of steps done."""
    parameters = dict(module.named_parameters())
    with _opened(path) as file:
        stored = set(file.keys())
        expected = {f"weight/{name}": list(p.shape) for name, p in parameters.items()}
        found = {
            key: file.get_slice(key).get_shape() for key in stored if key.startswith("weight/")
        }
        if found != expected:
            differing = {k for k in found.keys() | expected if found.get(k) != expected.get(k)}
            raise CheckpointError(
                f"The training state {path} belongs to another model: "
                f"{', '.join(sorted(differing)[:5])} differ. "
                "Train into an empty folder, or use the settings it was made with."
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(f"weight/{name}"))
        if optimizer is not None:
            for name, parameter in parameters.items():
                for moment in _MOMENTS:
                    if f"{moment}/{name}" in stored:
                        kept = file.get_tensor(f"{moment}/{name}")
                        optimizer.state[parameter][moment] = kept.to(parameter.device)
        return int(file.metadata()["step"])


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights alone, by parameter name: what the next stage starts from."""
    with _opened(path) as file:
        names = [key for key in file.keys() if key.startswith("weight/")]  # noqa: SIM118
        return {name.removeprefix("weight/"): file.get_tensor(name) for name in names}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The training state {path} is missing or damaged ({error}). Remove it to start anew."
        ) from error
