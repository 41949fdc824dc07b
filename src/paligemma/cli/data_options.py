"""Options of every command that reads labelled pictures to learn from."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

DataFormat = Annotated[
    str | None, typer.Option("--format", help="Of the data.", show_default="guessed")
]
Split = Annotated[str | None, typer.Option(help="Where there are several.", show_default="train")]
Prefix = Annotated[
    str | None, typer.Option(help="For records that bring none.", show_default="by format")
]
ObjectTask = Annotated[
    Literal["detect", "segment"] | None,
    typer.Option(help="What to make of objects.", show_default="by format"),
]
Ask = Annotated[
    Literal["dataset", "present", "all classes"],
    typer.Option(help="Which classes the prefix names."),
]
Order = Annotated[
    Literal["random", "position", "area", "given"], typer.Option(help="Of the objects.")
]
MaxObjects = Annotated[
    int | None, typer.Option(min=1, help="Objects a picture.", show_default="all")
]
NoiseToken = Annotated[
    str | None,
    typer.Option(
        help="Fill up to --max-objects with random boxes of this label, such as <unused0>.",
        show_default="none",
    ),
]
