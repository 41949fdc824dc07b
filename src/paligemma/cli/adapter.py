"""`paligemma merge`: merge an adapter into its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paligemma.cli.console import print_json, print_text
from paligemma.cli.memory import in_gigabytes
from paligemma.cli.model_options import (
    DtypeOption,
    ModelArgument,
    OutArgument,
    RevisionOption,
    check_new_folder,
)
from paligemma.cli.options import Json


def merge(
    model: ModelArgument,
    adapter: Annotated[
        Path,
        typer.Argument(metavar="ADAPTER", show_default=False, help="Folder of the adapter."),
    ],
    out: OutArgument,
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its model and write the result.

    The adapter is a LoRA, rsLoRA or DoRA adapter, made by this package or by peft. The result is a
    plain checkpoint, which transformers can read too.
    """
    import paligemma
    from paligemma.checkpoints.hub import Source
    from paligemma.fast.weights import Plain

    check_new_folder(out)
    merged = paligemma.load(
        model, weights=Plain(dtype), device="cpu", adapter=adapter, source=Source(revision=revision)
    )
    folder = merged.save(out)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if as_json:
        print_json({"folder": str(folder), "adapter": str(adapter), "bytes": num_bytes})
    else:
        print_text(f"{folder}: {adapter} merged into {merged.name}, {in_gigabytes(num_bytes)}")
