"""Option: what the command line needs to know of a dataclass field beyond its type.

A field's name is the option's name, its default the option's default, and the docstring under it
the help text. The rest stands in the annotation:

    num_workers: Annotated[int, Option(flags=("--num-workers", "--workers"), least=0)] = 0
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Option:
    """The command-line option that belongs to a dataclass field."""

    flags: tuple[str, ...] = ()
    """Names, the main one first; without them `--` and the field's name."""
    least: float | None = None
    """Smallest value."""
    most: float | None = None
    """Largest value."""
    shown_default: str | None = None
    """What the help shows as default, for None that stands for something else."""
