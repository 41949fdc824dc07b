"""Starts one process per program and asks them in turn, stage by stage and sample by sample.

So other load on the machine affects all programs alike. The processes of a group are in memory
together. If not all fit, there are several groups, and the reference is measured again in each:
both sides of a ratio were always measured at the same time.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.side_by_side.stages import Stage, cache_bytes, file_bandwidth
from benchmarks.side_by_side.worker import LIMITS
from paligemma.bench.limits import Limits, weight_bytes
from paligemma.bench.workload import named_config
from paligemma.config import PaliGemmaConfig
from paligemma.errors import OptionError

FROZEN = "transformers-frozen"
KERAS = "keras-hub"
ANSWERS_ONLY = (FROZEN, KERAS)
RUNNERS = ("transformers", FROZEN, KERAS, "ours-plain", "ours-bf16", "ours-int8", "ours-int4")
WEIGHTS = dict.fromkeys(RUNNERS, "bfloat16") | {"ours-int8": "int8", "ours-int4": "int4"}

_ENOUGH_SECONDS = 15.0  # a runner's time in one stage after which two samples are enough
_OVERHEAD = 700_000_000  # bytes of torch and of the model's intermediate results
# Memory relative to the bfloat16 weights: while the model is built, and while it runs.
_BUILDING = {KERAS: 1.3, "ours-int8": 0.65, "ours-int4": 0.5}
_WORKING = {"transformers": 1.5, KERAS: 1.5, "ours-int8": 0.65, "ours-int4": 0.5}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure: shapes by name, programs of `RUNNERS`, stages, number of samples."""

    model: str
    runners: tuple[str, ...]
    stages: tuple[Stage, ...]
    repeat: int

    def __post_init__(self) -> None:
        named_config(self.model)  # raises for an unknown name
        for name in self.runners:
            if name not in RUNNERS:
                raise OptionError(f"Unknown runner {name!r}. Runners: {', '.join(RUNNERS)}.")
        if not self.runners or not self.stages:
            raise OptionError("Nothing to measure: name at least one runner and one stage.")
        if self.repeat < 1:
            raise OptionError(f"repeat is {self.repeat}; it must be at least 1.")

    @property
    def reference(self) -> str:
        """The runner that the others are compared with."""
        order = ("transformers", "ours-plain", *self.runners)
        return next(name for name in order if name in self.runners)


@dataclass(kw_only=True)
class Measurements:
    """Raw samples, in seconds."""

    samples: dict[tuple[int, str, str], list[float]] = field(default_factory=dict)
    """By group, runner and metric."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """By runner, over the stages with one row; runners in one process share it."""
    limits: list[Limits] = field(default_factory=list)
    limits_measured_by: str = ""
    file_bandwidth: float | None = None
    """Bytes per second, if loading was measured."""
    notes: list[str] = field(default_factory=list)


class WorkerError(Exception):
    """A worker replied with an error, or its process ended."""


class Worker:
    """A process that runs worker.py; `first_answer` is its reply to `command`."""

    def __init__(self, runner: str, model: str, *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.side_by_side.worker", runner, model, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        try:
            self.first_answer = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, **request: str) -> dict[str, Any]:
        """Raises WorkerError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; `_answer` says so
        return self._answer()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if code == -signal.SIGKILL:
                raise WorkerError("its process was killed, probably because memory ran out")
            raise WorkerError(f"its process ended with exit code {code}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply


def measure(
    plan: Plan, *, free_bytes: Callable[[], int], progress: Callable[[str], None]
) -> Measurements:
    """Runs the plan; failures are noted and left out."""
    config = named_config(plan.model)
    run = _Run(plan, config, free_bytes, progress)
    groups, notes = group_processes(plan, config, free_bytes())
    run.measurements.notes += notes
    with ExitStack() as stack:
        limits = Worker(LIMITS, plan.model, "serve")
        stack.callback(limits.close)
        kept: dict[str, Worker] = {}
        stack.callback(_close_all, kept)
        for number, group in enumerate(groups):
            for process in [process for process in kept if process not in group]:
                kept.pop(process).close()
            run.start(group, kept)
            for stage in plan.stages:
                if stage.kind != "load":
                    run.measure_stage(number, stage, kept, limits)
    if any(stage.kind == "load" for stage in plan.stages):
        run.measure_load(groups)
    return run.measurements


def _close_all(workers: dict[str, Worker]) -> None:
    for worker in workers.values():
        worker.close()


def group_processes(
    plan: Plan, config: PaliGemmaConfig, free: int
) -> tuple[list[list[str]], list[str]]:
    """The processes that are in memory together, the reference first; notes on those left out."""
    weights = weight_bytes(config, "bfloat16")

    def fits(processes: Sequence[str]) -> bool:
        taken = 0.0
        for process in processes:
            building = _BUILDING.get(process, 1.0) * weights + _OVERHEAD
            if taken + building > free:
                return False
            taken += _WORKING.get(process, 1.05) * weights + _OVERHEAD
        return taken <= free

    processes = [_process(plan.reference)]
    processes += [p for p in dict.fromkeys(map(_process, plan.runners)) if p not in processes]
    groups: list[list[str]] = []
    notes = []
    for process in processes:
        if not fits([process]):
            notes.append(
                f"{process} was not run: it needs about "
                f"{(_WORKING.get(process, 1.05) * weights + _OVERHEAD) / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free."
            )
        elif groups and fits([*groups[-1], process]):
            groups[-1].append(process)
        elif groups and fits([groups[0][0], process]):
            groups.append([groups[0][0], process])
        else:
            groups.append([process])
    return groups, notes


def _process(runner: str) -> str:
    """The process that has this runner."""
    return "transformers" if runner == FROZEN else runner


class _Run:
    """The state while a plan runs."""

    def __init__(
        self,
        plan: Plan,
        config: PaliGemmaConfig,
        free_bytes: Callable[[], int],
        progress: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.config = config
        self.free_bytes = free_bytes
        self.progress = progress
        self.measurements = Measurements()

    def start(self, group: Sequence[str], workers: dict[str, Worker]) -> None:
        for process in group:
            if process in workers:
                continue
            self.progress(f"{process}: creating {self.plan.model} with random weights")
            try:
                workers[process] = Worker(process, self.plan.model, "serve")
            except WorkerError as error:
                self.measurements.notes.append(f"{process} was not run: {error}")

    def measure_stage(
        self, group: int, stage: Stage, workers: dict[str, Worker], limits: Worker
    ) -> None:
        """In every round one sample of each runner in turn, and of the machine's limits."""
        runners = [name for name in self.plan.runners if self._measures(name, group, stage)]
        runners = [name for name in runners if _process(name) in workers]
        if not runners or not self._has_memory(stage):
            return
        self.progress(f"{stage.name}: {', '.join(runners)}")
        spent = dict.fromkeys(runners, 0.0)
        failed = set()
        for number in range(self.plan.repeat):
            reply = limits.ask()
            self.measurements.limits.append(Limits(**reply["limits"]))
            self.measurements.limits_measured_by = reply["measured_by"]
            for runner in runners:
                process = _process(runner)
                is_enough = number >= 2 and spent[runner] > _ENOUGH_SECONDS
                if is_enough or runner in failed or process not in workers:
                    continue
                try:
                    reply = workers[process].ask(runner=runner, stage=stage.name)
                except WorkerError as error:
                    self.measurements.notes.append(f"{stage.name}, {runner}: {error}")
                    failed.add(runner)
                    if workers[process].has_ended:
                        workers.pop(process).close()
                    continue
                spent[runner] += sum(reply["seconds"].values())
                self._keep(group, runner, stage, reply)

    def _keep(self, group: int, runner: str, stage: Stage, reply: dict[str, Any]) -> None:
        for metric, seconds in reply["seconds"].items():
            self.measurements.samples.setdefault((group, runner, metric), []).append(seconds)
        if stage.num_rows == 1:  # later peaks are those of the batch
            before = self.measurements.peak_bytes.get(runner, 0)
            self.measurements.peak_bytes[runner] = max(before, reply["peak_bytes"])

    def _measures(self, runner: str, group: int, stage: Stage) -> bool:
        """Frozen weights are measured once: they are never the reference."""
        if runner == FROZEN and group > 0:
            return False
        return runner not in ANSWERS_ONLY or stage.kind == "answer"

    def _has_memory(self, stage: Stage) -> bool:
        """Room for keys and values, which some programs copy, and for attention in the prefill."""
        if stage.num_rows == 1:
            return True
        decoder, length = self.config.decoder, self.config.vision.num_image_tokens
        need = 2.2 * cache_bytes(self.config, stage.num_rows, stage.num_tokens)
        if stage.kind == "answer":
            attention = 12 * decoder.num_heads * length**2
            need += stage.num_rows * max(attention, 6 * decoder.mlp_dim * length)
        free = self.free_bytes()
        if need > free:
            self.measurements.notes.append(
                f"{stage.name} was not run: it needs about {need / 1e9:.1f} GB more, and "
                f"{free / 1e9:.1f} GB are free."
            )
        return need <= free

    def measure_load(self, groups: list[list[str]]) -> None:
        """A new process per sample; the file was just written, so it is in the page cache."""
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.progress("load: writing a checkpoint")
            try:
                Worker("ours-plain", self.plan.model, "save", str(folder)).close()
            except WorkerError as error:
                self.measurements.notes.append(f"load: cannot write a checkpoint: {error}")
                return
            self.measurements.file_bandwidth = file_bandwidth(folder)
            together = (process for group in groups for process in group if process != KERAS)
            processes = list(dict.fromkeys(together))
            self.progress(f"load: {', '.join(processes)}")
            for _ in range(self.plan.repeat):
                for process in processes:
                    try:
                        worker = Worker(process, self.plan.model, "load", str(folder))
                    except WorkerError as error:
                        self.measurements.notes.append(f"load, {process}: {error}")
                        continue
                    worker.close()
                    seconds = worker.first_answer["seconds"]["load"]
                    self.measurements.samples.setdefault((0, process, "load"), []).append(seconds)
