"""`python -m benchmarks.side_by_side`: this package next to transformers and keras-hub.

python -m benchmarks.side_by_side --model paligemma2-3b-224 --plot ratios.png
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from importlib.util import find_spec

from benchmarks.command import add_output_options, run_command, write_report
from benchmarks.side_by_side import harness
from benchmarks.side_by_side.plot import draw
from benchmarks.side_by_side.report import build_report, headlines, table
from benchmarks.side_by_side.stages import GROUPS, STAGES, choose_stages
from paligemma.bench.workload import MINI
from paligemma.cli.console import check_output_files, print_note, print_table, print_text
from paligemma.cli.memory import machine_memory

_LARGE = "paligemma2-3b-224"
_LARGE_BYTES = 18_000_000_000  # memory for the default comparison with _LARGE
_OTHER_PROGRAMS = ("transformers", "keras-hub")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side",
        description="Measure this package next to transformers on this machine's processor.",
        epilog="Real shapes with random weights; nothing is downloaded. Each program has its own "
        "process, and they are asked in turn. A cell has the time, the speedup over transformers, "
        "and the share of the machine's limit (memory reads or matrix products, measured in the "
        "same run). Compare the ratios: they carry over to other machines better than times.",
    )
    parser.add_argument(
        "--model",
        help="shapes: mini, a release, or a size and resolution such as paligemma2-10b-448 "
        f"({_LARGE} if memory allows, else mini)",
    )
    parser.add_argument(
        "--runners",
        help=f"programs, comma-separated: {', '.join(harness.RUNNERS)} (all that are installed, "
        "without ours-plain)",
    )
    parser.add_argument(
        "--stages",
        default="main",
        help=f"stages, comma-separated: {', '.join(STAGES)}; or groups: {', '.join(GROUPS)} "
        "(%(default)s). load needs disk space for the weights",
    )
    parser.add_argument("--repeat", type=int, default=3, help="samples per figure (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="same as --stages quick --repeat 2")
    add_output_options(parser, plot="the ratios")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace) -> None:
    """Measures and writes what was asked for."""
    check_output_files(options.out, options.plot)
    missing = [name for name in _OTHER_PROGRAMS if find_spec(name.replace("-", "_")) is None]
    default = [
        name
        for name in harness.RUNNERS
        if name != "ours-plain" and name.removesuffix("-frozen") not in missing
    ]
    plan = harness.Plan(
        model=options.model or (_LARGE if machine_memory()[1] >= _LARGE_BYTES else MINI),
        runners=tuple(default if options.runners is None else _names(options.runners)),
        stages=choose_stages(["quick"] if options.quick else _names(options.stages)),
        repeat=2 if options.quick else options.repeat,
    )
    measurements = harness.measure(
        plan, free_bytes=lambda: machine_memory()[1], progress=print_note
    )
    measurements.notes += [f"{name}: not installed" for name in missing]
    measurements.notes.append(
        "gemma.cpp: not installed"
        if shutil.which("gemma") is None
        else "gemma.cpp: not measured, because it runs only on weights in its own format"
    )
    report = build_report(plan, measurements)
    if not options.json:
        headings, rows = table(report)
        print_table(
            f"{plan.model}: time, speedup over {plan.reference}, share of the machine's limit",
            headings,
            rows,
            right=headings[1:],
        )
        for line in headlines(report):
            print_text(line)
    write_report(report, options)
    if options.plot is not None:
        draw(report, options.plot)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    run_command(lambda: compare(parse_arguments(None)))
