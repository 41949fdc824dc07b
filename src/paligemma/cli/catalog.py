"""`paligemma catalog`: attributes of articles, read from their photos into a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paligemma.cli.console import (
    check_output_files,
    print_error,
    print_json,
    print_note,
    track,
    warnings_as_notes,
)
from paligemma.cli.extract import load_schema, print_questions
from paligemma.cli.interrupt import exit_when_interrupted
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import takes
from paligemma.errors import counted
from paligemma.options import Option

if TYPE_CHECKING:
    from paligemma.catalog.articles import Article
    from paligemma.catalog.build import CatalogOptions


@dataclass(frozen=True, kw_only=True)
class CatalogCommandOptions(LoadOptions):
    """What to read, and where to write it."""

    schema: Annotated[str, Option(flags=("--schema", "-s"))]
    """What to read: product, a JSON schema (schema.json), or a pydantic model in a Python file
    (my.py:Article), which is run."""
    out: Annotated[Path, Option(flags=("--out",))]
    """File to write: .csv, .jsonl or .parquet. What each photo says is kept in the folder OUT.job
    next to it; a run that was interrupted goes on, and photos that are unchanged are not read
    again."""
    dry_run: bool = False
    """Print the questions instead of asking them; needs no model."""
    json: bool = False
    """Print one JSON object per article, on one line."""
    quiet: bool = False
    """Print no notes, only results and errors."""


@takes(command=CatalogCommandOptions, options="paligemma.catalog.build:CatalogOptions")
def catalog(
    photos: Annotated[
        Path,
        typer.Argument(
            metavar="PHOTOS",
            show_default=False,
            help="Folder of photos, with or without a folder for each article.",
        ),
    ],
    *,
    command: CatalogCommandOptions,
    options: CatalogOptions,
) -> None:
    """Read attributes of articles, such as category and color, from photos into a table.

    Each photo is asked one short question per attribute; the photos of an article vote. Cells with
    a score below --min-score stay empty, next to their score. Exits with code 3 if some of the
    photos could not be read.
    """
    from paligemma.catalog.build import CatalogJob

    with exit_when_interrupted():
        schema = load_schema(command.schema)
        if command.dry_run:
            print_questions(schema, options.for_photos)
            return
        check_output_files(command.out)
        job = CatalogJob(folder=photos, schema=schema, options=options, out=command.out)
    with warnings_as_notes(is_quiet=command.quiet):
        predictor = command.load()
        if predictor.note and not (command.json or command.quiet):
            print_note(predictor.note)
        job.use(predictor)
        read = list(track(job.photos(), job.num_left, "catalog"))
        job.write()
        articles = job.articles()
    for article in articles:
        for photo, error in article.failed.items():
            print_error(f"{photo}: {error}")
        if command.json:
            print_json(article.to_dict())
    if not command.quiet:
        _print_summary(articles, len(read), command.out)
    num_failed = sum(len(article.failed) for article in articles)
    if num_failed:
        raise typer.Exit(3 if num_failed < len(job.all_photos) else 2)


def _print_summary(articles: Sequence[Article], num_read: int, out: Path) -> None:
    """How much of the table is filled, by attribute."""
    filled: Counter[str] = Counter()
    for article in articles:
        filled.update(name for name, value in article.values.items() if value is not None)
    names = articles[0].cells if articles else ()
    shown = ", ".join(f"{name} {filled[name]}" for name in names)
    print_note(
        f"written: {out}, {counted(len(articles), 'article')}, {counted(num_read, 'photo')} read "
        f"now. Cells filled: {shown}"
    )
