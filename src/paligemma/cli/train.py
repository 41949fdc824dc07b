"""`paligemma train`, from labelled pictures to a scored model, and `paligemma fit` before it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paligemma.cli.console import print_json, print_note, print_table, print_text, stderr
from paligemma.cli.data_options import (
    Ask,
    DataFormat,
    MaxObjects,
    NoiseToken,
    ObjectTask,
    Order,
    Prefix,
    Split,
)
from paligemma.cli.memory import in_gigabytes, machine_memory

if TYPE_CHECKING:
    from paligemma.finetune.config import TrainConfig


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            show_default=False,
            help="Labelled pictures, as `paligemma data check` takes them.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same one again goes on.")],
    model: Annotated[
        str, typer.Option(envvar="PALIGEMMA_MODEL", help="mini, a hub id or a folder.")
    ] = "mini",
    method: Annotated[
        Literal["lora", "qlora", "full", "frozen-encoder"] | None,
        typer.Option(
            help="Which weights are trained: adapters, adapters on a small base, all, or all but "
            "the vision encoder.",
            show_default="lora; with a recipe full",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Train by a recipe: a name that `paligemma recipes` lists, or your own TOML file.",
            show_default="none",
        ),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Data to score on.", show_default="a part of DATA")
    ] = None,
    hold_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="The part that is held back; 0: none.")
    ] = 0.1,
    data_format: DataFormat = None,
    split: Split = None,
    prefix: Prefix = None,
    task: ObjectTask = None,
    ask: Ask = "dataset",
    order: Order = "random",
    max_objects: MaxObjects = None,
    noise_token: NoiseToken = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Name of a metric; may be repeated.", show_default="by task"),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="How often the data are seen.", show_default="10")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples a step.", show_default="8")
    ] = None,
    accumulation: Annotated[
        int, typer.Option(min=1, help="Parts of a batch, one after the other: less memory.")
    ] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its peak.", show_default="by method and size")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of matrices.", show_default="0")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Given to the other tokens.", show_default="0")
    ] = None,
    llm_dropout: Annotated[
        float | None, typer.Option(help="In the decoder's blocks.", show_default="0")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of adapters.")] = 16,
    alpha: Annotated[
        float | None, typer.Option(help="Of adapters.", show_default="twice the rank")
    ] = None,
    rslora: Annotated[
        bool, typer.Option("--rslora", help="Scale by the root of the rank.")
    ] = False,
    dora: Annotated[bool, typer.Option("--dora", help="Train lengths apart from directions.")] = (
        False
    ),
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="With adapters: decoder, vision_encoder, projector; may be repeated.",
            show_default="decoder",
        ),
    ] = None,
    base: Annotated[
        Literal["nf4", "int8"], typer.Option(help="The frozen weights of qlora.")
    ] = "nf4",
    bfloat16_weights: Annotated[
        bool,
        typer.Option("--bfloat16-weights", help="Not adapters: with a float32 copy for updates."),
    ] = False,
    checkpoint_activations: Annotated[
        bool | None,
        typer.Option(help="Compute blocks twice, keep little.", show_default="for 3B and up"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of order, dropout and adapters.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make batches.")] = 0,
    bad: Annotated[
        Literal["error", "skip"], typer.Option(help="What follows a bad record.")
    ] = "error",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves for TensorBoard, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Fine-tune a model: checked, trained, scored, saved, reported.

    Writes adapter/ (or model/), log.jsonl, checkpoints/, evaluation/ and report.html into --out.
    A run that was stopped or killed goes on with the same command. Several GPUs or machines:
    torchrun --nproc-per-node 8 -m paligemma train ...
    """
    from paligemma.finetune.run.options import RunOptions
    from paligemma.finetune.run.run import run

    parts: Any = tuple(part) if part else ("decoder",)
    options = RunOptions(
        data=data,
        model=model,
        method=method,
        validation=validation,
        validation_split=hold_out,
        format=data_format,
        split=split,
        recipe=recipe,
        prefix=prefix,
        task=task,
        ask=ask,
        order=order,
        max_objects=max_objects,
        noise_token=noise_token,
        metrics=tuple(metric or ()),
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        llm_dropout=llm_dropout,
        rank=rank,
        alpha=alpha,
        rslora=rslora,
        dora=dora,
        parts=parts,
        base_format=base,
        bfloat16_weights=bfloat16_weights,
        checkpoint_activations=checkpoint_activations,
        seed=seed,
        num_workers=workers,
        on_bad_record=bad,
    )
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
            }
        )
        return
    if scores:
        print_table(
            "on what was held back",
            ("task", "metric", "value", "95 %", "records"),
            [
                (
                    score.task,
                    score.result.name,
                    f"{score.result.value:.3f}",
                    "" if (i := score.interval) is None else f"{i.low:.3f} to {i.high:.3f}",
                    str(score.num_records),
                )
                for score in scores
            ],
            right=("value", "records"),
        )
    print_text(f"saved: {result.saved}")
    print_text(f"report: {result.report}")
    if result.saved.name == "adapter":
        print_text(
            f"to use it: paligemma detect PICTURE ... --model {model} --adapter {result.saved}"
        )


class _Watcher:
    """Shows each step: a bar on a terminal, else a line now and then; and TensorBoard's files."""

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
            found = record["validation"]
            said = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print_note(f"step {step}: {said}")
            self._write({f"validation/{name}": value for name, value in found.items()}, step)
            return
        if self.bar is None:
            self.bar = self.progress.add_task("", total=config.total_steps)
        said = f"loss {record['loss']:.3f}, {record['tokens_per_second']:.0f} tokens/s"
        self.progress.update(self.bar, completed=step, description=said)
        every = max(1, config.total_steps // 20)
        if self.progress.disable and (step % every == 0 or step == config.total_steps):
            left = record["seconds_left"]
            print_note(f"step {step} of {config.total_steps}: {said}, {left:.0f} s left")
        self._write({f"train/{n}": record[n] for n in ("loss", "grad_norm", "learning_rate")}, step)

    def _write(self, values: dict[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                if math.isfinite(value):
                    self.writer.add_scalar(name, value, step)


def _summary_writer(folder: Path) -> Any:
    from paligemma.errors import OptionError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError(
            'TensorBoard is not installed. Run: pip install "paligemma[train]"'
        ) from error
    return SummaryWriter(folder / "tensorboard")


def fit(
    model: Annotated[
        str, typer.Option(envvar="PALIGEMMA_MODEL", help="mini, a release, a hub id or a folder.")
    ] = "mini",
    num_examples: Annotated[
        int | None, typer.Option("--examples", min=1, help="Of the data, for the time.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="How often they are seen.")] = 10.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 8,
    accumulation: Annotated[int, typer.Option(min=1, help="Parts of a batch.")] = 1,
    text_length: Annotated[
        int, typer.Option(min=1, help="Tokens of prefix and suffix together.")
    ] = 64,
    rank: Annotated[int, typer.Option(min=1, help="Of adapters.")] = 16,
    base: Annotated[Literal["nf4", "int8"], typer.Option(help="The base of qlora.")] = "nf4",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Tell which methods of training fit this machine: memory and time, before anything starts."""
    from dataclasses import asdict
    from typing import get_args

    import torch

    from paligemma.cli.models import config_of
    from paligemma.finetune.config import Method
    from paligemma.finetune.run.memory_estimate import estimate, measure_rate

    config = config_of(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else machine_memory()[1]
    rate = measure_rate(device)
    found = {
        method: estimate(
            config,
            method,
            text_length=text_length,
            batch_size=batch_size,
            accumulation=accumulation,
            rank=rank,
            base_format=base,
        )
        for method in get_args(Method)
    }
    num_steps = None if num_examples is None else math.ceil(epochs * num_examples / batch_size)
    if as_json:
        rows = {
            method: {
                **asdict(one),
                "total": one.total,
                "fits": one.total <= free,
                "seconds_a_step": one.seconds(rate),
                "seconds": None if num_steps is None else num_steps * one.seconds(rate),
            }
            for method, one in found.items()
        }
        print_json({"free": free, "operations_per_second": rate, "methods": rows})
        return
    numbers = ("weights", "gradients and optimizer", "activations", "in all")
    times = ("a step", "the run")
    print_table(
        f"training {model} with batches of {batch_size} (estimate; {in_gigabytes(free)} are free)",
        ("method", *numbers, "fits", *times),
        [
            (
                method,
                *map(in_gigabytes, (one.weights, one.training, one.activations, one.total)),
                "yes" if one.total <= free else "no",
                _duration(one.seconds(rate)),
                "" if num_steps is None else _duration(num_steps * one.seconds(rate)),
            )
            for method, one in found.items()
        ],
        right=(*numbers, *times),
    )
    fitting = [method for method, one in found.items() if one.total <= free]
    if fitting:
        print_text(f"{fitting[0]} fits.")
    else:
        print_text("None fits: take --accumulation, a smaller batch or model, or several machines.")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
