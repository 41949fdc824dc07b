"""Option: what the command line needs to know about a dataclass field beyond its type.

The field's name is the option's name, its default the option's default, and the docstring under it
the help text. A field without a default is a positional argument, or a required option if it names
flags. Everything else is in the annotation:

    validation_split: Annotated[float, Option(least=0, most=0.9)] = 0.1

`paligemma.cli.options` makes the command-line options.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Option:
    """The command-line option that belongs to a dataclass field."""

    flags: tuple[str, ...] = ()
    """Spellings of the option; by default `--` and the field's name."""
    least: float | None = None
    """Smallest value allowed."""
    most: float | None = None
    """Largest value allowed."""
    shown_default: str | None = None
    """What the help shows as the default, for a None that stands for something else."""
    metavar: str | None = None
    """What the help shows in place of the value; by default its type."""
