"""`paligemma alt`: alternative texts for the images of web pages, or for pictures."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from paligemma.cli.image_arguments import NamedImage, find_images
from paligemma.cli.interrupt import exit_when_interrupted
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import takes
from paligemma.errors import InputError, OptionError, counted
from paligemma.escaping import columns_of_text, csv_cell
from paligemma.options import Option

if TYPE_CHECKING:
    from paligemma.alt.pages import Alternative, PageAlternatives
    from paligemma.alt.propose import AltOptions

_SUFFIXES = (".json", ".jsonl", ".csv")
_COLUMNS = ("page", "line", "image", "reason", "was", "alt", "score", "problem", "note")
_COLUMNS_OF_PICTURES = ("image", "alt", "score", "caption", "text", "problem", "note")
_WIDEST = 160


@dataclass(frozen=True, kw_only=True)
class AltCommandOptions(LoadOptions):
    """What becomes of the alternative texts."""

    write: bool = False
    """Write the alternative texts into the pages; nothing else in them changes."""
    patch: Annotated[Path | None, Option(shown_default="none")] = None
    """File to write the changes to as a patch instead, for `git apply` or `patch -p1`."""
    output: Annotated[Path | None, Option(shown_default="stdout")] = None
    """File to write the alternative texts to: .csv, .json or .jsonl."""
    recursive: bool = False
    """Include the pictures in the folders of a folder of pictures. Pages of a site are always
    found."""
    json: bool = False
    """Print one JSON object per image, on one line."""
    quiet: bool = False
    """Print no notes, only results and errors."""


@takes(command=AltCommandOptions, options="paligemma.alt.propose:AltOptions")
def alt(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            show_default=False,
            help="HTML pages or templates, a folder with the pages of a site, or pictures or a "
            "folder of them.",
        ),
    ],
    *,
    command: AltCommandOptions,
    options: AltOptions,
) -> None:
    """Propose alternative texts for images without one, for people who do not see them.

    In pages, images without `alt` or with a bad one (a file's name, "image", "picture of") are
    described; those with alt="" are decorative and left alone. Nothing is written without --write
    or --patch, and nothing with a score below --min-score. Exits with code 3 if some of several
    images could not be described.
    """
    with exit_when_interrupted():
        pages = _pages_of(sources)
        pictures = [] if pages else _pictures_of(sources, command, options)
        _check(command, [page for page, _ in pages])
    with warnings_as_notes(is_quiet=command.quiet):
        predictor = command.load()
        if predictor.note and not (command.json or command.quiet):
            print_note(predictor.note)
        if pages:
            _Pages(command).run(predictor, pages, options)
        else:
            _describe_pictures(predictor, pictures, command, options)


def _pages_of(sources: Sequence[str]) -> list[tuple[Path, Path]]:
    """The pages that the sources name, each with the folder of its site; [] for pictures."""
    from paligemma.alt.pages import PAGE_SUFFIXES
    from paligemma.alt.propose import pages_below

    pages: list[tuple[Path, Path]] = []
    others = []
    for word in sources:
        path = Path(os.path.expanduser(word))
        if path.is_dir():
            found = [(page, path) for page in pages_below(path)]
        else:
            is_page = word.lower().endswith(PAGE_SUFFIXES) or _is_template(path)
            found = [(path, path.absolute().parent)] if is_page else []
            if is_page and not path.is_file():
                raise InputError(f"The page {word!r} does not exist. Check the path.")
        pages += found
        if not found:
            others.append(word)
    if pages and others:
        raise InputError(
            f"{others[0]!r} is not a page and has none, and others are pages. Give pages and "
            "pictures in two calls."
        )
    return pages


def _is_template(path: Path) -> bool:
    """Whether a file of another name, such as page.php, holds HTML; of an SVG, it is a picture."""
    if path.suffix.lower() == ".svg" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def _pictures_of(
    sources: Sequence[str], command: AltCommandOptions, options: AltOptions
) -> list[NamedImage]:
    if command.write or command.patch is not None:
        raise OptionError(
            f"--write and --patch change pages, and there is no HTML page in {sources[0]!r}. "
            "Write the alternative texts of pictures to a file: --output alt.csv."
        )
    return find_images(sources, recursive=command.recursive, allow_urls=options.allow_urls)


def _check(command: AltCommandOptions, pages: Sequence[Path]) -> None:
    """Raises OptionError for what cannot be written, before any work is done."""
    if command.write and command.patch is not None:
        raise OptionError("--write excludes --patch. Choose one.")
    check_output_files(command.output, command.patch)
    output = command.output
    if output is not None and output.suffix.lower() not in _SUFFIXES:
        raise OptionError(f"--output {output} must end in one of {', '.join(_SUFFIXES)}.")
    for path in (output, command.patch):
        if path is not None and path.is_dir():
            raise OptionError(f"{path} is a folder. Give the name of a file.")
    if command.patch is not None and command.patch.resolve() in {page.resolve() for page in pages}:
        raise OptionError(f"--patch {command.patch} is one of the pages. Choose another name.")


class _Pages:
    """Prints and writes what is proposed for pages, one after the other."""

    def __init__(self, command: AltCommandOptions) -> None:
        self._command = command
        self._lines: list[dict[str, Any]] = []
        self._patches: list[bytes] = []
        self._num_described = self._num_failed = self._num_sure = self._num_written = 0

    def run(self, predictor: Any, pages: Sequence[tuple[Path, Path]], options: AltOptions) -> None:
        command = self._command
        for found in track(_described(predictor, pages, options), len(pages), "alt"):
            if isinstance(found, InputError):
                print_error(str(found))
                self._num_failed += 1
            else:
                self._add(found)
        if command.output is not None:
            _write_file(command.output, self._lines, _COLUMNS)
        if command.patch is not None:
            from paligemma.writing import write_whole

            write_whole(command.patch, b"".join(self._patches))
        if not command.quiet:
            print_note(self._summary())
        if self._num_failed:
            raise typer.Exit(3 if self._num_described else 2)

    def _add(self, found: PageAlternatives) -> None:
        command = self._command
        name = str(found.page.path)
        if command.write:
            try:
                found.write()
                self._num_written += found.num_sure
            except OptionError as error:
                print_error(str(error))
                self._num_failed += 1
        elif command.patch is not None:
            try:
                self._patches.append(found.patch())
                self._num_written += found.num_sure
            except OptionError as error:
                print_error(str(error))
                self._num_failed += 1
        self._num_sure += found.num_sure
        lines = [{"page": name, **each.to_dict()} for each in found.alternatives]
        self._num_failed += sum(line["alt"] is None for line in lines)
        self._num_described += 1 + sum(line["alt"] is not None for line in lines)
        self._lines += lines
        if command.json:
            for line in lines:
                print_json(line)
        elif lines and command.output is None:
            print_text(f"{name}: {_counts(found)}")
            _print_rows(("line", "image", "now", "score", "alternative text"), _rows(found))
            print_text("")
        elif command.output is None:
            print_text(f"{name}: {_counts(found)}")

    def _summary(self) -> str:
        command = self._command
        if command.write:
            return f"written: {counted(self._num_written, 'alternative text')}"
        if command.patch is not None:
            written = counted(self._num_written, "alternative text")
            return f"written: {command.patch}, a patch with {written}"
        if not self._num_sure:
            return "nothing to write"
        return (
            f"{counted(self._num_sure, 'alternative text')} proposed, and no page changed: add "
            "--write, or --patch FILE"
        )


def _described(
    predictor: Any, pages: Sequence[tuple[Path, Path]], options: AltOptions
) -> Iterator[PageAlternatives | InputError]:
    """What is proposed for the pages, site by site."""
    from itertools import groupby

    from paligemma.alt.propose import describe_pages

    for root, group in groupby(pages, key=lambda pair: pair[1]):
        yield from describe_pages(predictor, [page for page, _ in group], options, root=root)


def _counts(found: PageAlternatives) -> str:
    page = found.page.found
    return (
        f"{counted(len(found.alternatives), 'image')} to describe, {page.num_good} with a good "
        f"alternative text, {page.num_decorative} decorative"
    )


def _rows(found: PageAlternatives) -> Iterator[list[str]]:
    from paligemma.alt.addresses import shown

    for each in found.alternatives:
        yield [str(each.line), shown(each.image), each.reason or "", *_proposal(each)]


def _proposal(each: Alternative) -> list[str]:
    """The cells for score and text: what is not to be written says why."""
    score = "" if each.score is None else f"{each.score:.2f}"
    shown = each.alt or ""
    for remark in (each.problem, each.note):
        if remark:
            shown += f" ({remark})" if shown else f"- {remark}"
    return [score, shown]


def _print_rows(headings: Sequence[str], rows: Iterator[list[str]]) -> None:
    for line in columns_of_text([list(headings), *rows], widest=_WIDEST):
        print_text(f"  {line}")


def _describe_pictures(
    predictor: Any,
    pictures: Sequence[NamedImage],
    command: AltCommandOptions,
    options: AltOptions,
) -> None:
    from paligemma.alt.propose import describe_pictures

    named = ((picture.name, picture.read) for picture in pictures)
    lines, rows, num_failed = [], [], 0
    for each in track(describe_pictures(predictor, named, options), len(pictures), "alt"):
        line = {name: each.to_dict()[name] for name in _COLUMNS_OF_PICTURES}
        lines.append(line)
        rows.append([each.image, *_proposal(each)])
        if each.alt is None:
            num_failed += 1
            print_error(f"{each.image}: {each.problem}")
        if command.json:
            print_json(line)
    if command.output is not None:
        _write_file(command.output, lines, _COLUMNS_OF_PICTURES)
        if not command.quiet:
            print_note(f"written: {command.output}")
    elif not command.json:
        _print_rows(("image", "score", "alternative text"), iter(rows))
    if num_failed:
        raise typer.Exit(3 if num_failed < len(lines) else 2)


def _write_file(path: Path, lines: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    from paligemma.writing import write_whole

    if path.suffix.lower() == ".csv":
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for line in lines:
            writer.writerow([_cell(line[name]) for name in columns])
        text = file.getvalue()
    elif path.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    else:
        text = json.dumps(lines, ensure_ascii=False, indent=1) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def _cell(value: Any) -> Any:
    """A value in CSV, where spreadsheets take no text for a formula."""
    return csv_cell(value, safe=True) if isinstance(value, str) else value
