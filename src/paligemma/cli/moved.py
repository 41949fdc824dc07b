"""Commands that the package no longer has: typed, they name the command that replaces them."""

from __future__ import annotations

import typer

from paligemma.errors import OptionError

ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def bench_serve(context: typer.Context) -> None:
    """Moved."""
    raise _moved("paligemma bench serve", "python -m benchmarks.serving")


def _moved(old: str, new: str) -> OptionError:
    return OptionError(
        f"`{old}` has moved. Run `{new}` in a clone of the repository; it is not part of the "
        "installed package."
    )
