"""The command about adapters: merging one into its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paligemma.cli.console import print_json, print_text
from paligemma.cli.memory import in_gigabytes
from paligemma.cli.predict import DtypeOption
from paligemma.errors import OptionError


def merge(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="What the adapter was trained on: mini, a hub id or a folder.",
        ),
    ],
    adapter: Annotated[Path, typer.Argument(show_default=False, help="The adapter's folder.")],
    out: Annotated[Path, typer.Argument(show_default=False, help="The folder to make.")],
    dtype: DtypeOption = "auto",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default="main")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, on one line.")] = False,
) -> None:
    """Write a model with an adapter merged into it.

    The adapter is LoRA, rsLoRA or DoRA, of this package or of peft. The result is a plain
    checkpoint: transformers reads it too.
    """
    import paligemma
    from paligemma.checkpoints.hub import Source
    from paligemma.fast.weights import Plain

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out} exists already. Choose another name or remove it first.")
    merged = paligemma.load(
        model, weights=Plain(dtype), device="cpu", adapter=adapter, source=Source(revision=revision)
    )
    made = merged.save(out)
    num_bytes = sum(path.stat().st_size for path in made.iterdir())
    if as_json:
        print_json({"folder": str(made), "adapter": str(adapter), "bytes": num_bytes})
    else:
        print_text(f"{made}: {adapter} merged into {merged.name}, {in_gigabytes(num_bytes)}")
