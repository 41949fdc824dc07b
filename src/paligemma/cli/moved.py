"""Commands that the package no longer has: typed, they name the command that replaces them."""

from __future__ import annotations

from collections.abc import Sequence

from paligemma.errors import OptionError

_COMPARING = {"--runners", "--stages", "--plot", "--quick"}


def check_moved(arguments: Sequence[str]) -> None:
    """Raises OptionError for a command line of a command that has moved."""
    match list(arguments):
        case ["mini", "scene", *_]:
            old, new = "paligemma mini scene", "python -m mini.scene"
        case ["mini", "eval", *_]:
            old, new = "paligemma mini eval", "python -m mini.evaluate"
        case ["mini", *_]:
            old, new = "paligemma mini", "python -m mini.scene` or `python -m mini.evaluate"
        case ["bench", "serve", *_]:
            old, new = "paligemma bench serve", "python -m benchmarks.serving"
        case ["bench", *options] if _COMPARING & {text.partition("=")[0] for text in options}:
            old, new = "The comparison with transformers", "python -m benchmarks.side_by_side"
        case _:
            return
    subject = old if old.startswith("The ") else f"`{old}`"
    raise OptionError(
        f"{subject} has moved. Run `{new}` in a clone of the repository; it is not part of the "
        "installed package."
    )
