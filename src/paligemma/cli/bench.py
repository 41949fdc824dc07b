"""`paligemma bench`: how fast this machine runs a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paligemma.cli.console import (
    check_output_files,
    print_json,
    print_note,
    print_table,
    print_text,
    write_json,
)
from paligemma.cli.memory import in_gigabytes, machine_memory
from paligemma.errors import OptionError

_LARGE = "paligemma2-3b-224"


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Shapes to measure: mini, a release, or a size and resolution such as "
            "paligemma2-10b-448.",
            show_default="paligemma2-3b-224 if memory allows, else mini",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Format of the weights: float32, bfloat16, int8 or int4.",
        ),
    ] = "bfloat16",
    repeat: Annotated[int, typer.Option(min=1, help="Number of samples; medians are shown.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write the report to, as JSON.")
    ] = None,
) -> None:
    """Measure how fast this machine's processor runs a model.

    Real shapes with random weights; nothing is downloaded. Shows the time per stage, the share of
    the machine's limit (memory reads or matrix products, measured in the same run), tokens per
    second and memory.
    """
    from paligemma.bench import measure as benchmark
    from paligemma.bench.workload import MINI

    check_output_files(out)
    free = machine_memory()[1]
    if model is None:
        model = _LARGE if benchmark.bench_memory(_LARGE, weights) <= free else MINI
    if (need := benchmark.bench_memory(model, weights)) > free:
        raise OptionError(
            f"{model} with {weights} weights needs about {in_gigabytes(round(need))} of memory, "
            f"and {in_gigabytes(free)} are free. Choose smaller shapes or --weights int4."
        )
    report = benchmark.measure(model, weights, repeat=repeat, progress=print_note)
    if as_json:
        print_json(report)
    else:
        print_table(
            f"{model}, {weights}",
            ("stage", "time", "share of limit"),
            benchmark.table_rows(report),
            right=("time", "share of limit"),
        )
        for line in benchmark.summary_lines(report):
            print_text(line)
    if out is not None:
        write_json(out, report)
