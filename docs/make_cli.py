"""Writes docs/cli.md: the help of every command, as the commands print it.

python docs/make_cli.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from typer.main import get_command_name
from typer.testing import CliRunner

from paligemma.cli.app import app

HEAD = """# The command line

`paligemma COMMAND -h` shows the help of a command. This page is written by `make docs` from these
help texts; a test keeps it current.

- Results go to stdout, everything else to stderr. `--json` prints JSON on stdout and nothing else.
- An image is a file, a folder (with `--recursive` also its folders), a quoted pattern such as
  `'scans/*.png'`, `-` or a pipe, `file://` or a data URI, or with `--allow-urls` a web address.
- Line k of `--json` belongs to image k; one that cannot be read has an `error`, and the others are
  read.
- Exit codes: 0 success; 2 invalid usage, input, option, checkpoint or data; 3 some of several files
  could not be read, and are listed; 1 any other error; 130 interrupted.
- `--out` and `--output` are one option, which every command takes under both names.
- Tab completion: run `paligemma --install-completion` once, then open a new shell.
- `$PALIGEMMA_MODEL` sets the default of `--model`. `$PALIGEMMA_DEBUG=1` shows tracebacks.
- Short options mean the same in every command: `-m` model, `-a` adapter, `-o` output, `-n` maximum
  new tokens, `-l` language, `-b` batch size, `-f` data format, `-d` drawing, `-p` port, `-j` JSON.
"""


def command_paths(group: typer.Typer, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that call each command: (), ("caption",), ..., ("data", "check"), ..."""
    yield above
    for command in group.registered_commands:
        if command.hidden:
            continue
        assert command.callback is not None
        yield (*above, command.name or get_command_name(command.callback.__name__))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        assert inner.name is not None
        yield from command_paths(inner.typer_instance, (*above, inner.name))


def document() -> str:
    """The whole page."""
    runner = CliRunner(env={"COLUMNS": "100", "PALIGEMMA_MODEL": None, "NO_COLOR": "1"})
    parts = [HEAD]
    for path in command_paths(app):
        shown = runner.invoke(app, [*path, "--help"], prog_name="paligemma", terminal_width=96)
        lines = [line.rstrip() for line in shown.output.strip().splitlines()]
        title = " ".join(("paligemma", *path))
        parts.append("\n".join([f"## {title}\n", "```text", *lines, "```\n"]))
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(document(), encoding="utf-8")
