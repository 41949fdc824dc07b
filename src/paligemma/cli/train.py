"""`paligemma train`, and `paligemma estimate-memory` to run before it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from paligemma.cli.console import duration, print_json, print_note, print_table, print_text, stderr
from paligemma.cli.memory import in_gigabytes, machine_memory
from paligemma.cli.model_options import ThreadsOption
from paligemma.cli.options import Json, takes
from paligemma.errors import OptionError, counted
from paligemma.options import Option

if TYPE_CHECKING:
    from paligemma.finetune.config import TrainConfig
    from paligemma.finetune.run.options import RunOptions


@takes(options="paligemma.finetune.run.options:RunOptions")
def train(
    *,
    out: Annotated[
        Path, typer.Option("--out", help="Output folder of the run. Reuse it to resume.")
    ],
    options: RunOptions,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard logs to OUT/tensorboard.")
    ] = False,
    threads: ThreadsOption = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model and write an adapter, scores and a report.

    Writes adapter/ (or model/), log.jsonl, checkpoints/, evaluation/ and report.html to --out. To
    resume a run that was stopped or killed, repeat the command. On several GPUs or machines:
    torchrun --nproc-per-node 8 -m paligemma train ...
    """
    from paligemma.checkpoints.trained_on import TrainedOn
    from paligemma.finetune.run.run import run
    from paligemma.threads import set_threads

    set_threads(threads)
    with _Watcher(out if tensorboard else None) as watcher:
        result = run(options, out, on_event=print_note, on_log=watcher)
    if result is None:  # not the first of several processes
        return
    scores = () if result.evaluation is None else result.evaluation.scores
    if as_json:
        print_json(
            {
                "saved": str(result.saved),
                "report": str(result.report),
                "scores": [score.to_dict() for score in scores],
                "chosen_on_images": result.num_images,
            }
        )
        return
    if scores:
        print_table(
            "validation split",
            ("task", "metric", "value", "records"),
            [
                (
                    score.task,
                    score.result.name,
                    f"{score.result.value:.3f}",
                    str(score.num_records),
                )
                for score in scores
            ],
            right=("value", "records"),
        )
        print_text(
            "This state was chosen by its score on these records, of "
            f"{counted(result.num_images, 'image')}: other images will score less."
        )
    print_text(f"saved: {result.saved}")
    print_text(f"report: {result.report}")
    if result.saved.name == "adapter":
        trained_on = TrainedOn.read(result.saved)
        task = None if trained_on is None else trained_on.task
        words = f"{task} IMAGE" if task else "COMMAND IMAGE ..."
        model, adapter = options.model, result.saved
        print_text(f"to use it: paligemma {words} --model {model} --adapter {adapter}")


class _Watcher:
    """Shows the progress of training: a bar on a terminal, else a line per 5 % of the steps; and
    writes TensorBoard logs."""

    def __init__(self, tensorboard: Path | None) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=stderr(),
            disable=not stderr().is_terminal,
        )
        self.bar: Any = None
        self.writer = None
        if tensorboard is not None:
            self.writer = _summary_writer(tensorboard)

    def __enter__(self) -> _Watcher:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.writer is not None:
            self.writer.close()

    def __call__(self, record: dict[str, Any], config: TrainConfig) -> None:
        step = record["step"]
        if "validation" in record:
            scores = record["validation"]
            text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            print_note(f"step {step}: {text}")
            self._write({f"validation/{name}": value for name, value in scores.items()}, step)
            return
        if self.bar is None:
            self.bar = self.progress.add_task("", total=config.total_steps)
        text = f"loss {record['loss']:.3f}, {record['tokens_per_second']:.0f} tokens/s"
        self.progress.update(self.bar, completed=step, description=text)
        interval = max(1, config.total_steps // 20)
        if self.progress.disable and (step % interval == 0 or step == config.total_steps):
            left = record["seconds_left"]
            print_note(f"step {step} of {config.total_steps}: {text}, {left:.0f} s left")
        self._write({f"train/{n}": record[n] for n in ("loss", "grad_norm", "learning_rate")}, step)

    def _write(self, values: dict[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                if math.isfinite(value):
                    self.writer.add_scalar(name, value, step)


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError(
            'TensorBoard is not installed. Run: pip install "paligemma[train]"'
        ) from error
    return SummaryWriter(folder / "tensorboard")


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """The training run whose memory and time to estimate."""

    model: str = "mini"
    """Model to train: mini, a release (see `paligemma models`), a hub id or a folder."""
    num_examples: Annotated[
        int | None, Option(flags=("--examples",), least=1, shown_default="not given")
    ] = None
    """Number of training examples. With it, the time of the whole run is shown too."""
    epochs: float = 10.0
    """Number of passes over the examples."""
    batch_size: Annotated[int, Option(least=1)] = 8
    """Examples per step."""
    accumulation: Annotated[int, Option(least=1)] = 1
    """Split each batch into this many parts, to save memory."""
    text_length: Annotated[int, Option(least=1)] = 64
    """Tokens of prefix and suffix together, per example."""
    rank: Annotated[int, Option(least=1)] = 16
    """Rank of LoRA adapters."""
    base_format: Literal["nf4", "int8"] = "nf4"
    """Format of the frozen base weights when the method is qlora."""


@takes(options=EstimateOptions)
def estimate_memory(*, options: EstimateOptions, as_json: Json = False) -> None:
    """Estimate the memory and time of training, for each method.

    Says which of the methods (full, frozen-encoder, lora, qlora) fit into the memory that is free
    on this machine. No weights are loaded; the time comes from a half-second measurement.
    """
    import torch

    from paligemma.cli.models import config_of
    from paligemma.finetune.config import Method
    from paligemma.finetune.run.memory_estimate import estimate, measure_rate

    config = config_of(options.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else machine_memory()[1]
    rate = measure_rate(device)
    estimates = {
        method: estimate(
            config,
            method,
            text_length=options.text_length,
            batch_size=options.batch_size,
            accumulation=options.accumulation,
            rank=options.rank,
            base_format=options.base_format,
        )
        for method in get_args(Method)
    }
    num_steps = None
    if options.num_examples is not None:
        num_steps = math.ceil(options.epochs * options.num_examples / options.batch_size)
    if as_json:
        rows = {
            method: {
                **asdict(needed),
                "total": needed.total,
                "fits": needed.total <= free,
                "seconds_a_step": needed.seconds(rate),
                "seconds": None if num_steps is None else num_steps * needed.seconds(rate),
            }
            for method, needed in estimates.items()
        }
        print_json({"free": free, "operations_per_second": rate, "methods": rows})
        return
    numbers = ("weights", "gradients and optimizer", "activations", "total")
    times = ("per step",) if num_steps is None else ("per step", "whole run")
    run_lengths = (1,) if num_steps is None else (1, num_steps)
    print_table(
        f"Training {options.model} in batches of {options.batch_size} (estimate; "
        f"{in_gigabytes(free)} of memory are free)",
        ("method", *numbers, "fits", *times),
        [
            (
                method,
                *map(
                    in_gigabytes,
                    (needed.weights, needed.training, needed.activations, needed.total),
                ),
                "yes" if needed.total <= free else "no",
                *(duration(steps * needed.seconds(rate)) for steps in run_lengths),
            )
            for method, needed in estimates.items()
        ],
        right=(*numbers, *times),
    )
    fitting = [method for method, needed in estimates.items() if needed.total <= free]
    if fitting:
        print_text(f"Methods that fit into memory: {', '.join(fitting)}.")
    else:
        print_text(
            "No method fits into memory. Use a larger --accumulation, a smaller --batch-size, a "
            "smaller model or several machines."
        )
