"""The loop: step, log, save, resume. Knows no model and no data: both come in as arguments."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from paligemma.errors import NumericalError, PaliGemmaError
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.optim import build_optimizer, learning_rate_at
from paligemma.finetune.state import load_state, save_state

STATE_NAME = "state.safetensors"
LOG_NAME = "log.jsonl"

Batch = TypeVar("Batch")
Made_co = TypeVar("Made_co", covariant=True)


class BatchSource(Protocol[Made_co]):
    """Makes the batch of a step from nothing but (seed, step)."""

    def batch(self, step: int) -> Made_co: ...


class _Steps(Dataset[Any], Generic[Batch]):
    def __init__(self, source: BatchSource[Batch], num_steps: int) -> None:
        self.source = source
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch | PaliGemmaError:
        # An error raised in a worker would arrive wrapped in that worker's traceback.
        try:
            return self.source.batch(step)
        except PaliGemmaError as error:
            return error


def train(
    module: nn.Module,
    source: BatchSource[Batch],
    losses_of: Callable[[Batch], Mapping[str, Tensor]],
    config: TrainConfig,
    out: Path,
    *,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """Train `module` for `config.num_steps` steps, or for what is left of them.

    `losses_of` gives named scalars; "loss" is minimized, the rest is logged. State and a JSON
    Lines log stand in `out`; calling again with the same arguments resumes. Raises NumericalError
    when loss or gradients are not finite: the last saved state is then still good.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizer = build_optimizer(module, config)
    state_path, log_path = out / STATE_NAME, out / LOG_NAME
    first = load_state(state_path, module, optimizer) if state_path.exists() else 0
    _drop_log_after(log_path, first)
    module.train()
    device_type = next(module.parameters()).device.type
    totals: dict[str, float] = {}
    num_totaled = 0
    started = time.monotonic()
    batches = _batches(source, first, config.num_steps, config.num_workers)
    for step, batch in enumerate(batches, start=first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, step) * group["scale"]
        with torch.autocast(device_type, torch.bfloat16, enabled=config.autocast):
            losses = losses_of(batch)
        loss = losses["loss"]
        _check_finite("loss", loss.item(), step, state_path)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
        _check_finite("gradient", norm.item(), step, state_path)
        optimizer.step()
        optimizer.zero_grad()
        for name, scalar in {**losses, "grad_norm": norm}.items():
            totals[name] = totals.get(name, 0.0) + scalar.item()
        num_totaled += 1
        done = step + 1
        if done % config.log_every == 0 or done == config.num_steps:
            record: dict[str, float] = {
                "step": done,
                "learning_rate": learning_rate_at(config, step),
            }
            record |= {name: round(total / num_totaled, 5) for name, total in totals.items()}
            record["seconds"] = round(time.monotonic() - started, 1)
            with log_path.open("a") as log:
                log.write(json.dumps(record) + "\n")
            if on_log is not None:
                on_log(record)
            totals, num_totaled = {}, 0
        if done % config.save_every == 0 or done == config.num_steps:
            save_state(state_path, module, optimizer, done)


def _batches(source: BatchSource[Batch], first: int, end: int, num_workers: int) -> Iterator[Batch]:
    steps = _Steps(source, end)
    for batch in DataLoader(
        steps, batch_size=None, sampler=range(first, end), num_workers=num_workers
    ):
        if isinstance(batch, PaliGemmaError):
            raise batch
        yield batch


def _check_finite(what: str, value: float, step: int, state_path: Path) -> None:
    if not math.isfinite(value):
        raise NumericalError(
            f"The {what} of step {step} is {value}. The last good state is in {state_path}; "
            "lower the learning rate or look at that step's data."
        )


def _drop_log_after(path: Path, step: int) -> None:
    """Forget what a killed run logged after its last saved state."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))
