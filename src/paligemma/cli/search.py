"""`paligemma index` and `paligemma search`: find pictures by words."""

from __future__ import annotations

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
    print_text,
    track,
    warnings_as_notes,
)
from paligemma.cli.interrupt import exit_when_interrupted
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import takes
from paligemma.errors import counted
from paligemma.escaping import visible
from paligemma.options import Option

if TYPE_CHECKING:
    from paligemma.search.build import IndexOptions
    from paligemma.search.find import Hit

_RERANKED = 50
_LONGEST_SHOWN = 200
_AROUND = 60


@dataclass(frozen=True, kw_only=True)
class IndexCommandOptions(LoadOptions):
    """Where the index is."""

    out: Annotated[Path, Option(flags=("--out",))] = Path("index.db")
    """File of the index. An index that exists is brought up to date."""
    quiet: bool = False
    """Print no notes, only errors."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(LoadOptions):
    """What to show."""

    count: Annotated[int, Option(least=1)] = 10
    """Largest number of pictures to show."""
    rerank: bool = False
    """Ask the model (--model) about the best 50 and order them by its probability."""
    json: bool = False
    """Print one JSON object per picture, on one line."""
    quiet: bool = False
    """Print no notes, only results and errors."""


@takes(command=IndexCommandOptions, options="paligemma.search.build:IndexOptions")
def index(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", show_default=False, help="Folder of pictures, with its folders."
        ),
    ],
    *,
    command: IndexCommandOptions,
    options: IndexOptions,
) -> None:
    """Make pictures searchable by words: by caption, the text in them, and objects.

    Only new and changed pictures are read, and those that are gone are taken out. A run that was
    interrupted goes on. Exits with code 3 if some pictures could not be read.
    """
    from paligemma.search.build import IndexJob

    with exit_when_interrupted():
        check_output_files(command.out)
        job = IndexJob(folder=folder, out=command.out, options=options)
    with warnings_as_notes(is_quiet=command.quiet):
        predictor = command.load()
        if predictor.note and not command.quiet:
            print_note(predictor.note)
        job.use(predictor)
        read = list(track(job.pictures(), job.num_left, "index"))
    for picture, error in job.errors.items():
        print_error(f"{picture}: {error}")
    if not command.quiet:
        total = len(job.all_pictures) - len(job.errors)
        new = counted(len(read) - len(job.errors), "picture")
        print_note(
            f"written: {command.out}, {counted(total, 'picture')}; {new} read now, "
            f"{job.num_removed} taken out"
        )
    if job.errors:
        raise typer.Exit(3 if len(job.errors) < len(job.all_pictures) else 2)


@takes(options=SearchOptions)
def search(
    index_file: Annotated[
        Path,
        typer.Argument(
            metavar="INDEX", show_default=False, help="File that `paligemma index` made."
        ),
    ],
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY",
            show_default=False,
            help="Words to look for. In double quotes: a phrase; invoic*: a beginning; -dog: "
            "not with this word.",
        ),
    ],
    *,
    options: SearchOptions,
) -> None:
    """Find pictures in an index by words, with the reason: which words, and where.

    Pictures with more of the words come first. The index is only read.
    """
    from paligemma.search.find import Index
    from paligemma.search.query import read_query

    with Index.open(index_file) as opened:
        wanted = read_query(query)
        hits = opened.search(
            query, max(options.count, _RERANKED) if options.rerank else options.count
        )
        total, language = len(opened), str(opened.settings["language"])
    if options.rerank and hits:
        hits = [*_reranked(hits[:_RERANKED], query, language, options), *hits[_RERANKED:]]
    hits = hits[: options.count]
    if not options.quiet:
        if wanted.ignored:
            print_note(f"not looked for: {', '.join(wanted.ignored)}")
        if not hits:
            print_note(f"nothing found among {counted(total, 'picture')}")
    for hit in hits:
        if options.json:
            print_json(hit.to_dict())
        else:
            _print(hit)


def _reranked(hits: Sequence[Hit], query: str, language: str, options: SearchOptions) -> list[Hit]:
    from paligemma.search.likelihood import rerank

    with warnings_as_notes(is_quiet=options.quiet):
        return rerank(options.load(), hits, query, language=language)


def _print(hit: Hit) -> None:
    """The picture, and below it every field with a word that was looked for."""
    likelihood = "" if hit.likelihood is None else f"{hit.likelihood:.2f}  "
    path, here = Path(hit.path), Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    print_text(f"{likelihood}{visible(str(shown))}")
    fields = dict.fromkeys(match.field for match in hit.matches)
    for name in fields if "caption" in fields else ("caption", *fields):
        print_text(f"    {name}: {_around(hit, name)}")


def _around(hit: Hit, field: str) -> str:
    """A field with [marks] around what was found; of a long one, the part around the first."""
    marked = hit.marked(field, "[", "]").replace("\n", " ")
    if len(marked) <= _LONGEST_SHOWN:
        return marked
    start = max(0, marked.find("[") - _AROUND)
    return f"{'…' * (start > 0)}{marked[start : start + _LONGEST_SHOWN]}…"
