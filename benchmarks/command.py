"""What the benchmark commands share: output options, and errors as one line on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from paligemma.cli.console import print_error, print_json, write_json
from paligemma.errors import PaliGemmaError


def add_output_options(parser: argparse.ArgumentParser, *, plot: str | None = None) -> None:
    """Adds --json and --out, and --plot if there is something to plot."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report as JSON")
    if plot is not None:
        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help=f"plot {plot} (.png, .svg, .pdf)"
        )


def write_report(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Writes the report where the output options ask for it."""
    if options.json:
        print_json(report)
    if options.out is not None:
        write_json(options.out, report)


def run_command(command: Callable[[], None]) -> NoReturn:
    """Runs a command and exits: 0 after success, 2 after an error that its message explains."""
    try:
        command()
    except PaliGemmaError as error:
        print_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
