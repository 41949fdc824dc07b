"""The commands of the program `paligemma`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from paligemma import __version__
from paligemma.cli import (
    alt,
    batch,
    bench,
    catalog,
    certify,
    compare,
    convert,
    data,
    doctor,
    eval,
    extract,
    models,
    predict,
    recipes,
    search,
    serve,
    tables,
    tracking,
    train,
    video,
)
from paligemma.cli.options import Command
from paligemma.errors import OptionError

# Options of the comparison with transformers, which `paligemma bench` no longer has.
_COMPARING = {"--runners", "--stages", "--plot", "--quick"}

app = typer.Typer(
    name="paligemma",
    help="Image captioning, question answering, OCR, detection and segmentation with Google's "
    "PaliGemma models, or with the small built-in model `mini`.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (
    predict.caption,
    predict.describe,
    predict.ask,
    predict.ocr,
    extract.extract,
    predict.detect,
    predict.segment,
    predict.generate,
    tables.table,
    tables.chart,
    batch.batch,
    alt.alt,
    catalog.catalog,
    search.index,
    search.search,
    models.models,
    models.download,
    models.info,
    models.quantize,
    models.merge,
    convert.convert,
    recipes.recipes,
    train.train,
    train.estimate_memory,
    certify.certify,
    doctor.doctor,
    bench.bench,
    serve.serve,
):
    app.command(cls=Command)(command)
app.command("fit", cls=Command, hidden=True)(train.estimate_memory)  # former name
app.add_typer(data.app, name="data")
video.app.command("track", cls=Command)(tracking.track_objects)
app.add_typer(video.app, name="video")
app.command("eval", cls=Command)(eval.evaluate)
app.command(cls=Command)(compare.compare)
app.command(cls=Command)(compare.count_votes)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"paligemma {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None: ...


def check_moved(arguments: Sequence[str]) -> None:
    """Raises OptionError for a command that has moved, and names the one that replaces it."""
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
