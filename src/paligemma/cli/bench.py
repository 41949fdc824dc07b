"""`paligemma bench`: how fast this machine runs the model, beside transformers."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from paligemma.cli.console import print_note, print_table, print_text
from paligemma.cli.memory import machine_memory
from paligemma.errors import OptionError

_LARGE = "paligemma2-3b-224"
_OTHERS = ("transformers", "keras-hub")
_ROOM = 18_000_000_000  # bytes that the default comparison takes with it

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Shapes: mini, a release, or family, size and resolution, such as "
            "paligemma2-10b-448.",
            show_default="paligemma2-3b-224 if memory allows, else mini",
        ),
    ] = None,
    runners: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Programs, comma-separated: transformers, transformers-frozen (with "
            "weights that require no gradients), keras-hub, ours-plain, ours-bf16, ours-int8, "
            "ours-int4.",
            show_default="all that are installed, without ours-plain",
        ),
    ] = None,
    stages: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated: image, vision, prefill, answer (first token and decode step), "
            "caption, detect, page, batch-1 to batch-64, questions-1 to questions-32, load (needs "
            "disk for the weights); or groups: main, quick, tasks, batch, questions, all.",
        ),
    ] = "main",
    repeat: Annotated[int, typer.Option(help="Samples of each figure; medians are shown.")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="The stages of `quick`, two samples.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the ratios (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Measure this package beside transformers, on this machine's processor.

    Real shapes with random weights; nothing is downloaded. Each program has a process of its own,
    and they are asked in turn. A cell has the time, how many times as fast as transformers that
    is, and the share of what memory and matrix units allow, both measured in the same run. Compare
    the ratios: they hold where milliseconds do not.
    """
    if context.invoked_subcommand is not None:
        return
    from paligemma.bench.harness import RUNNERS, Plan, measure
    from paligemma.bench.plot import draw
    from paligemma.bench.report import build_report, headlines, table
    from paligemma.bench.workload import MINI, choose_stages

    for path in (json_file, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise OptionError(f"There is no folder {path.parent} to write {path.name} into.")
    missing = [name for name in _OTHERS if find_spec(name.replace("-", "_")) is None]
    default = [
        name
        for name in RUNNERS
        if name != "ours-plain" and name.removesuffix("-frozen") not in missing
    ]
    plan = Plan(
        model=model or (_LARGE if machine_memory()[1] >= _ROOM else MINI),
        runners=tuple(default if runners is None else _names(runners)),
        stages=choose_stages(["quick"] if quick else _names(stages)),
        repeat=2 if quick else repeat,
    )
    found = measure(plan, free_bytes=lambda: machine_memory()[1], progress=print_note)
    found.notes += [f"{name}: not installed" for name in missing]
    if shutil.which("gemma") is None:
        found.notes.append("gemma.cpp: not installed")
    else:
        found.notes.append("gemma.cpp: not measured, as it runs on weights in its own format only")
    report = build_report(plan, found)
    headings, rows = table(report)
    print_table(
        f"{plan.model}: time, times as fast as {plan.reference}, share of the machine's limit",
        headings,
        rows,
        right=headings[1:],
    )
    for line in headlines(report):
        print_text(line)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        draw(report, plot)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
