"""The training loop: step, log, validate, save, resume. Model and data are arguments."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from paligemma.errors import CheckpointError, DataError, NumericalError, PaliGemmaError
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.distributed import World, usable
from paligemma.finetune.optim import Trained, build_optimizer, learning_rate_at
from paligemma.finetune.state import Best, Checkpoints, Progress, write_atomically

LOG_NAME = "log.jsonl"
SKIPPED_NAME = "skipped_steps.jsonl"
STOPPED_EXIT_CODE = 75
"""Exit code of a run that saved a checkpoint on SIGTERM or SIGUSR1: EX_TEMPFAIL, try again."""

_MAX_SKIPS_IN_A_ROW = 10

# Fields of TrainConfig that do not change the numbers of a run, except for rounding.
_FREE_FIELDS = {
    "accumulation", "checkpoint_activations", "save_every", "keep_last", "validate_every",
    "log_every", "num_workers", "on_non_finite", "on_bad_record", "max_skipped",
    "strict_resume",
}  # fmt: skip

Batch = TypeVar("Batch")
BatchT_co = TypeVar("BatchT_co", covariant=True)


class BatchSource(Protocol[BatchT_co]):
    """Makes micro-batches, each a function of (seed, number) only.

    With a config's `accumulation` A, step s takes the numbers s * A ... s * A + A - 1.
    """

    def batch(self, number: int, /) -> BatchT_co: ...


def _one(_: Any) -> float:
    return 1.0


def _nothing(_: Any) -> tuple[str, ...]:
    return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Generic[Batch]):
    """The losses of a micro-batch, and what else the loop needs from it."""

    losses: Callable[[Batch], Mapping[str, Tensor]]
    """Named scalars, each a sum over what `count` counts; "loss" is minimized, the rest logged."""
    count: Callable[[Batch], float] = _one
    """The divisor of a step's sums, added up over its micro-batches and all processes, so that the
    loss does not depend on how a batch is divided. 1, the default, is for `losses` that are
    means."""
    num_tokens: Callable[[Batch], float] = _one
    """The number of tokens, for the speed in the log."""
    ids: Callable[[Batch], Sequence[str]] = _nothing
    """The ids of the examples, for messages."""
    validate: Callable[[], Mapping[str, float]] | None = None
    """Returns named metrics. Called with the module in eval mode and without gradients; must
    change neither modes nor random state."""


class _Numbered(Dataset[Any], Generic[Batch]):
    def __init__(self, source: BatchSource[Batch], end: int) -> None:
        self.source = source
        self.end = end

    def __len__(self) -> int:
        return self.end

    def __getitem__(self, number: int) -> Batch | PaliGemmaError:
        # An error raised in a worker would arrive wrapped in that worker's traceback.
        try:
            return self.source.batch(number)
        except PaliGemmaError as error:
            return error


def train(
    module: nn.Module,
    source: BatchSource[Batch],
    objective: Objective[Batch],
    config: TrainConfig,
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    steps_per_epoch: float | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train the parameters of `module` that require a gradient, for the steps of the config.

    `out` gets `checkpoints/` (see `state.py`) and `log.jsonl`: one line per step, with numbers that
    are bit-equal when read, and one line per validation. The same call again resumes;
    another config, or other `settings` (JSON values: the data's fingerprint, the method), is
    refused. `on_log` gets, every `log_every` steps, the step's record with losses averaged since
    the last call, and the record of every validation.

    SIGTERM and SIGUSR1 save a checkpoint and raise SystemExit(75). Raises NumericalError when loss
    or gradients are not finite and the config says "stop" (the last checkpoint is then still
    good), DataError when nothing in a batch counts, CheckpointError when checkpoints cannot be
    written, read or resumed.
    """
    run = _Run(module, objective, config, out, settings or {}, steps_per_epoch, on_log)
    try:
        first = run.resume()
        end = config.total_steps * config.accumulation
        batches = _batches(source, first * config.accumulation, end, config.num_workers)
        devices = [run.device] if run.device.type == "cuda" else []
        with _stop_signals() as stop, torch.random.fork_rng(devices):
            module.train()
            run.started = time.monotonic()
            for step in range(first, config.total_steps):
                run.step(step, [next(batches) for _ in range(config.accumulation)], stop)
    finally:
        run.trained.release()


class _Run(Generic[Batch]):
    """The parts and the progress of one call of `train`."""

    def __init__(
        self,
        module: nn.Module,
        objective: Objective[Batch],
        config: TrainConfig,
        out: Path,
        settings: Mapping[str, Any],
        steps_per_epoch: float | None,
        on_log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.module = module
        self.objective = objective
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.validate = objective.validate
        self.on_log = on_log
        self.world = World.current()
        self.device = next(module.parameters()).device
        self.trained = Trained(module, master_weights=config.master_weights)
        self.optimizer = build_optimizer(self.trained, config)
        self.checkpoints = Checkpoints(out, keep_last=config.keep_last, world=self.world)
        self.settings = _settings(config, settings)
        self.log = _Log(out / LOG_NAME, self.world)
        self.skipped = _Log(out / SKIPPED_NAME, self.world)
        self.best: Best | None = None
        self.started = time.monotonic()
        self.first = 0
        self.saved_step: int | None = None
        self.skips_in_a_row = 0
        self.unlogged: list[dict[str, Any]] = []

    def resume(self) -> int:
        """Load the newest checkpoint; return the number of steps it has done."""
        make_folder(self.log.path.parent)
        progress = self.checkpoints.newest(strict=self.config.strict_resume)
        if progress is not None:
            _check_same(progress.settings, self.settings, self.checkpoints.root)
            self.checkpoints.load(progress, self.trained, self.optimizer)
            self.best, self.first = progress.best, progress.step
            self.saved_step = progress.step
        self.log.drop_after(self.first)
        self.skipped.drop_after(self.first)
        return self.first

    def step(self, step: int, batches: Sequence[Batch], stop: threading.Event) -> None:
        config, done = self.config, step + 1
        start = time.monotonic()
        losses, norm, num_tokens = self._gradients(step, batches)
        rate = learning_rate_at(config, step)
        is_finite = math.isfinite(losses["loss"]) and math.isfinite(norm)
        if is_finite:
            self._update(rate)
            self.skips_in_a_row = 0
        else:
            self._not_finite(step, losses["loss"], norm, batches)
        self.optimizer.zero_grad()
        seconds = time.monotonic() - start
        record: dict[str, Any] = {"step": done}
        if self.steps_per_epoch is not None:
            record["epoch"] = done / self.steps_per_epoch
        record |= losses | {
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": round(num_tokens / max(seconds, 1e-9), 1),
            "seconds_left": self._seconds_left(done),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        self.log.write(record)
        if is_finite:
            self.unlogged.append(record)
        if done % config.log_every == 0 or done == config.total_steps:
            self._report(losses)
        if self._validates_at(done):
            self._validate(done)
        must_stop = self.world.sum([float(stop.is_set())], self.device)[0] > 0
        if must_stop or done % config.save_every == 0 or done == config.total_steps:
            self._save(done)
        if must_stop and done < config.total_steps:
            raise SystemExit(STOPPED_EXIT_CODE)

    def _gradients(
        self, step: int, batches: Sequence[Batch]
    ) -> tuple[dict[str, float], float, float]:
        """Accumulate gradients; return mean losses, gradient norm and number of tokens."""
        for batch in batches:
            if isinstance(batch, PaliGemmaError):
                raise batch
        counts = [sum(map(self.objective.count, batches))]
        counts.append(sum(map(self.objective.num_tokens, batches)))
        count, num_tokens = self.world.sum(counts, self.device)
        if count == 0:
            ids = self.world.gather([i for batch in batches for i in self.objective.ids(batch)])
            raise DataError(
                f"No token in the batch of step {step} counts in the loss, so nothing would be "
                f"learned: {', '.join(ids[:10]) or 'no examples'}. Give examples with a suffix."
            )
        sums: dict[str, float] = {}
        for part, batch in enumerate(batches):
            torch.manual_seed(_seed(self.config.seed, step, part, self.world.rank))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
                losses = self.objective.losses(batch)
            # Sharded gradients are averages over processes: the factor makes them sums.
            (losses["loss"] * (self.world.size / count)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        totals = self.world.sum(list(sums.values()), self.device)
        means = {name: total / count for name, total in zip(sums, totals, strict=True)}
        return means, self.trained.clip_gradients(self.config.clip_norm), num_tokens

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.trained.publish()

    def _not_finite(self, step: int, loss: float, norm: float, batches: Sequence[Batch]) -> None:
        ids = self.world.gather([i for batch in batches for i in self.objective.ids(batch)])
        self.skipped.write({"step": step + 1, "loss": loss, "grad_norm": norm, "ids": ids})
        self.skips_in_a_row += 1
        if self.config.on_non_finite == "stop" or self.skips_in_a_row >= _MAX_SKIPS_IN_A_ROW:
            raise NumericalError(
                f"The loss of step {step} is {loss} and its gradient norm {norm}. The last good "
                f"checkpoint is in {self.checkpoints.root}; {self.skipped.path} names the step's "
                "examples. Lower the learning rate, or check these examples."
            )

    def _report(self, latest: Mapping[str, float]) -> None:
        if self.on_log is not None and self.unlogged and self.world.is_first:
            means = {
                name: sum(record[name] for record in self.unlogged) / len(self.unlogged)
                for name in (*latest, "grad_norm", "tokens_per_second")
            }
            self.on_log(self.unlogged[-1] | means)
        self.unlogged = []

    def _seconds_left(self, done: int) -> float:
        per_step = (time.monotonic() - self.started) / max(1, done - self.first)
        return round(per_step * (self.config.total_steps - done), 1)

    def _validates_at(self, done: int) -> bool:
        if self.validate is None:
            return False
        every = self.config.validate_every
        if every is None and self.steps_per_epoch is not None:
            every = max(1, math.ceil(self.steps_per_epoch))
        return done == self.config.total_steps or (every is not None and done % every == 0)

    def _validate(self, done: int) -> None:
        assert self.validate is not None
        training = {part: part.training for part in self.module.modules()}
        self.module.eval()
        with torch.no_grad(), usable(self.module):
            metrics = dict(self.validate())
        for part, was_training in training.items():
            part.training = was_training
        record = {"step": done, "validation": metrics}
        self.log.write(record)
        if self.on_log is not None and self.world.is_first:
            self.on_log(record)
        name = self.config.best_metric
        if name is None:
            return
        if name not in metrics:
            raise DataError(
                f"best_metric is {name!r}, but validation returns "
                f"{', '.join(sorted(metrics)) or 'nothing'}. Set best_metric to one of these."
            )
        value = metrics[name]
        sign = 1 if self.config.best_mode == "max" else -1
        if math.isfinite(value) and (self.best is None or sign * (value - self.best.value) > 0):
            self.best = Best(step=done, metric=name, value=value)
            self._save(done)

    def _save(self, done: int) -> None:
        if self.saved_step == done:
            return
        finite = all(bool(torch.isfinite(p).all()) for p in self._local_parameters())
        if self.world.sum([float(not finite)], self.device)[0]:
            raise NumericalError(
                f"Weights are not finite after step {done}, so no checkpoint is saved. The last "
                f"good one is in {self.checkpoints.root}. Lower the learning rate."
            )
        self.log.sync()
        progress = Progress(
            step=done,
            epoch=None if self.steps_per_epoch is None else done / self.steps_per_epoch,
            settings=self.settings,
            best=self.best,
            world_size=self.world.size,
        )
        self.checkpoints.save(progress, self.trained, self.optimizer)
        self.saved_step = done

    def _local_parameters(self) -> Iterator[Tensor]:
        for parameter in self.trained.parameters.values():
            tensor = parameter.detach()
            yield tensor.to_local() if hasattr(tensor, "to_local") else tensor


class _Log:
    """JSON Lines, written by the first process; floats are bit-equal when read."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.world = world

    def write(self, record: Mapping[str, Any]) -> None:
        if not self.world.is_first:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_without_nan(record)) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"The log {self.path} cannot be written: {error.strerror}. Free some space or fix "
                "the folder's permissions; the same command resumes from the last checkpoint."
            ) from error

    def sync(self) -> None:
        """Flush the log to disk: the lines of a saved step must be as durable as its checkpoint."""
        if self.world.is_first and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def drop_after(self, step: int) -> None:
        """Remove the lines that a killed run logged after its last checkpoint."""
        if not self.world.is_first or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        complete = [line for line in lines if line.endswith("}")]
        kept = [line for line in complete if json.loads(line)["step"] <= step]
        write_atomically(self.path, "".join(line + "\n" for line in kept))


def _without_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has neither NaN nor infinity; null represents both."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }


def _batches(source: BatchSource[Batch], first: int, end: int, num_workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        _Numbered(source, end),
        batch_size=None,
        sampler=range(first, end),
        num_workers=num_workers,
        worker_init_fn=_leave_signals,
    )
    yield from loader


def _leave_signals(_: int) -> None:
    # A worker inherits the trainer's handlers, but must end on these signals.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGUSR1 sets. Only the main thread can handle signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _settings(config: TrainConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the numbers of a run depend on, as it is after a round trip through JSON."""
    fields = dataclasses.asdict(config)
    kept = {name: value for name, value in fields.items() if name not in _FREE_FIELDS}
    through_json: dict[str, Any] = json.loads(json.dumps(kept | dict(settings)))
    return through_json


def _check_same(saved: Mapping[str, Any], now: Mapping[str, Any], root: Path) -> None:
    differing = [
        f"{name} was {saved.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"The checkpoint in {root} was created with different settings: "
            f"{'; '.join(differing)}. Use the same ones to resume, or choose another folder. A run "
            "that has ended is continued by a new one from its adapter: paligemma train --from."
        )


def make_folder(out: Path) -> None:
    """Create the folder of a run, with those above. Raises CheckpointError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"The folder {out} cannot be created: {error.strerror}. Choose one that can be written."
        ) from error
