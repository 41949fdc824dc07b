"""`paligemma table` and `paligemma chart`: tables and charts in images and on pages of files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paligemma.cli.console import (
    check_output_files,
    print_note,
    print_text,
    warnings_as_notes,
)
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import takes
from paligemma.errors import OptionError
from paligemma.options import Option
from paligemma.writing import write_whole

if TYPE_CHECKING:
    from paligemma.charts import Chart
    from paligemma.results import BoxXyxy
    from paligemma.tables import Table

_BY_SUFFIX = {".txt": "text", ".html": "html", ".csv": "csv", ".json": "json"}
_TO = typer.Option(
    "--to", help="Form of the result.", show_default="by the name of --output, else text"
)
_BOX = re.compile(r"\s*[,;\s]\s*")


@dataclass(frozen=True, kw_only=True)
class PartOptions(LoadOptions):
    """Which part of a file is read, and where the result goes."""

    box: Annotated[str | None, Option(metavar="X1,Y1,X2,Y2", shown_default="the whole page")] = None
    """Part of the page: in pixels of an image, in points (1/72 inch) from the top left of a PDF's
    page."""
    page: Annotated[int, Option(least=1)] = 1
    """Number of the page, from 1."""
    password: Annotated[str | None, Option(shown_default="none")] = None
    """Password of the PDF file."""
    max_new_tokens: Annotated[int | None, Option(least=1, shown_default="by task")] = None
    """Maximum length of an answer, in tokens."""
    output: Annotated[Path | None, Option(shown_default="stdout")] = None
    """File to write the result to instead of printing it."""
    safe_csv: bool = False
    """In CSV, write an apostrophe in front of what a spreadsheet would take for a formula."""
    quiet: bool = False
    """Print no notes, only results and errors."""

    @property
    def box_xyxy(self) -> BoxXyxy | None:
        """Raises OptionError for a box that is not four numbers."""
        if self.box is None:
            return None
        try:
            x1, y1, x2, y2 = (float(edge) for edge in _BOX.split(self.box.strip()))
        except ValueError:
            raise OptionError(
                f"--box is {self.box!r}; it must be four numbers, such as 50,200,550,480."
            ) from None
        return x1, y1, x2, y2


_File = Annotated[
    Path,
    typer.Argument(metavar="FILE", show_default=False, help="An image, a PDF file or a TIFF file."),
]


@takes(options=PartOptions)
def table(
    file: _File,
    *,
    to: Annotated[Literal["text", "html", "csv", "json"] | None, _TO] = None,
    spans: Annotated[
        Literal["repeat", "blank"],
        typer.Option(
            "--spans", help="In CSV, what the other positions of a cell that spans several have."
        ),
    ] = "repeat",
    options: PartOptions,
) -> None:
    """Read the table in an image or on a page, with a score for each cell."""
    form = to or _form(options.output, ("text", "html", "csv", "json"))
    _check(file, options)
    predictor = options.load()
    with warnings_as_notes(is_quiet=options.quiet):
        result = predictor.table(
            file,
            options.box_xyxy,
            page=options.page,
            password=options.password,
            max_new_tokens=options.max_new_tokens,
        )
    match form:
        case "html":
            text = result.to_html()
        case "csv":
            text = result.to_csv(spans, safe=options.safe_csv)
        case "json":
            text = _json("table", file, result, options)
        case _:
            text = _text(result, options)
    _write(text, result, options, has_remarks=form == "text")


@takes(options=PartOptions)
def chart(
    file: _File,
    *,
    to: Annotated[Literal["text", "csv", "json"] | None, _TO] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help='Labels whose values are asked for one by one, separated by ";".',
            show_default="as the model reads them",
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            "--series",
            help='Names in the legend, separated by ";", where several series share the labels.',
            show_default="none",
        ),
    ] = None,
    language: Annotated[
        str,
        typer.Option(
            "--language", help='Language code of the questions; "" leaves it out of the prompt.'
        ),
    ] = "en",
    options: PartOptions,
) -> None:
    """Read the values of a chart in an image or on a page, with a score for each."""
    form = to or _form(options.output, ("text", "csv", "json"))
    _check(file, options)
    predictor = options.load()
    with warnings_as_notes(is_quiet=options.quiet):
        result = predictor.chart(
            file,
            options.box_xyxy,
            page=options.page,
            password=options.password,
            labels=_names(labels),
            series=_names(series),
            language=language or None,
            max_new_tokens=options.max_new_tokens,
        )
    match form:
        case "csv":
            text = result.to_csv(safe=options.safe_csv)
        case "json":
            text = _json("chart", file, result, options)
        case _:
            text = _text(result, options)
    _write(text, result, options, has_remarks=form == "text")


def _text(result: Table | Chart, options: PartOptions) -> str:
    return str(replace(result, notes=()) if options.quiet else result)


def _form(output: Path | None, forms: Sequence[str]) -> str:
    """The form that a file's name asks for. Raises OptionError for another name."""
    if output is None or not output.suffix:
        return "text"
    form = _BY_SUFFIX.get(output.suffix.lower())
    if form is None or form not in forms:
        suffixes = ", ".join(suffix for suffix, form in _BY_SUFFIX.items() if form in forms)
        raise OptionError(
            f"--output {output}: the result is written to {suffixes} files. Choose such a name, or "
            "add --to."
        )
    return form


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(";") if name.strip())


def _check(file: Path, options: PartOptions) -> None:
    """Raise DocumentError and OptionError for what no model can read, before one is loaded."""
    from paligemma.documents.open import open_document
    from paligemma.documents.tables import PartOptions as Part

    check_output_files(options.output)
    part = Part(box_xyxy=options.box_xyxy, page=options.page)
    with open_document(file, password=options.password) as document:
        page = document.page(part.page)
        if part.box_xyxy is not None:
            page.clamp(part.box_xyxy)


def _json(task: str, file: Path, result: Table | Chart, options: PartOptions) -> str:
    line: dict[str, Any] = {
        "file": str(file),
        "model": options.model,
        "task": task,
        "result": result.to_dict(),
    }
    return json.dumps(line, ensure_ascii=sys.stdout.encoding.lower() != "utf-8", allow_nan=False)


def _write(text: str, result: Table | Chart, options: PartOptions, *, has_remarks: bool) -> None:
    text = text.rstrip("\n")
    if options.output is not None:
        write_whole(options.output, f"{text}\n".encode("utf-8", "backslashreplace"))
    elif sys.stdout.isatty() or has_remarks:
        print_text(text)
    else:
        sys.stdout.write(f"{text}\n")
    if options.quiet or (has_remarks and options.output is None):
        return
    for remark in (*map(str, result.problems), *result.notes):
        print_note(remark)
    if options.output is not None:
        print_note(f"written: {options.output}")
