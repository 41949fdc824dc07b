"""`paligemma extract`: typed values from documents, with scores and places."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paligemma.cli.console import (
    print_error,
    print_json,
    print_note,
    print_text,
    track,
    warnings_as_notes,
)
from paligemma.cli.document_arguments import NamedDocument, find_documents, opening_errors
from paligemma.cli.interrupt import exit_when_interrupted
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import takes
from paligemma.errors import InputError, NumericalError, OptionError
from paligemma.escaping import visible
from paligemma.options import Option
from paligemma.writing import write_whole

if TYPE_CHECKING:
    from paligemma.documents.page import Document
    from paligemma.extraction.options import ExtractOptions
    from paligemma.extraction.result import Extraction
    from paligemma.extraction.schema import Schema

Format = Literal["json", "csv", "parquet", "html"]
_PER_DOCUMENT: tuple[Format, ...] = ("json", "html")
_TABLE = "fields"
_SCHEMA_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class ExtractCommandOptions(LoadOptions):
    """What to read and where to write it."""

    schema: Annotated[str, Option(flags=("--schema", "-s"))]
    """What to read: prescription, invoice, receipt, id-card, form, product, a JSON schema
    (schema.json), or a pydantic model in a Python file (my.py:Invoice), which is run."""
    out: Annotated[Path | None, Option(shown_default="stdout")] = None
    """Folder to write to: a .json or .html file for each document, fields.csv or fields.parquet
    for all of them."""
    to: Annotated[tuple[Format, ...], Option(shown_default="json with --out, else a table")] = ()
    """Format of the results; may be repeated. html: a page to review and correct the values."""
    names: Annotated[tuple[str, ...], Option(shown_default="none", metavar="[PATH=]FILE")] = ()
    """Text file with a name per line: the one nearest to what was read is shown next to it. With
    the path of a value, such as medicines.name=drugs.txt, for that value. May be repeated."""
    safe_csv: bool = False
    """Put a ' in front of text that a spreadsheet would take for a formula."""
    dry_run: bool = False
    """Print the questions instead of asking them. Needs no model, and opens no document."""
    recursive: bool = False
    """Include the documents in the folders of a folder."""
    json: bool = False
    """Print one JSON object per document, on one line. A document that cannot be read has an
    "error" instead of a "result"."""
    quiet: bool = False
    """Print no notes, only results and errors."""


@takes(command=ExtractCommandOptions, options="paligemma.extraction.options:ExtractOptions")
def extract(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            show_default=False,
            help="Documents: PDF and TIFF files, images, folders, quoted patterns "
            "('invoices/*.pdf'), or - for stdin.",
        ),
    ],
    *,
    command: ExtractCommandOptions,
    options: ExtractOptions,
) -> None:
    """Read the values of a schema from documents, such as the total of an invoice.

    Each value comes with the model's own probability, its place on the page and the question that
    was asked. What a document does not have stays empty. Exits with code 3 if some of several
    documents could not be read.
    """
    with exit_when_interrupted():
        schema = load_schema(command.schema)
        names = _read_names(command.names)
        if command.dry_run:
            print_questions(schema, options)
            return
        documents = find_documents(files, recursive=command.recursive)
        outputs = _Outputs(command, documents)
        from paligemma.extraction.names import read_names

        read_names(names, schema)  # raises before the model is loaded
        errors = opening_errors(
            documents,
            lambda document: _opened(document, options),
            lambda document, error: f"{document.name}: {error}",
        )
        documents = [replace(each, error=e) for each, e in zip(documents, errors, strict=True)]
    with warnings_as_notes(is_quiet=command.quiet):
        predictor = command.load() if options.source == "model" else None
        if predictor is not None and predictor.note and not (command.json or command.quiet):
            print_note(predictor.note)
        codes = []
        for document in track(documents, len(documents), "extract"):
            from paligemma.extraction.asking import extract as extract_fields

            try:
                with _opened(document, options) as opened:
                    found = extract_fields(predictor, opened, schema, options, names)
                    outputs.add(document, found, opened)
                codes.append(0)
            except (InputError, NumericalError) as error:
                if isinstance(error, OptionError) and error is not document.error:
                    raise
                outputs.fail(document, error)
                codes.append(2 if isinstance(error, InputError) else 1)
        outputs.close()
    if any(codes):
        raise typer.Exit(3 if len(codes) > 1 and not all(codes) else max(codes))


@contextmanager
def _opened(document: NamedDocument, options: ExtractOptions) -> Iterator[Document | bytes]:
    """The document, or the contents of an XML file where values are taken from XML.

    Raises what is known to be wrong with it.
    """
    if document.error is not None:
        raise document.error
    from paligemma.documents.open import open_document
    from paligemma.extraction.from_xml import xml_file

    xml = xml_file(document.source) if options.source == "xml" else None
    if xml is not None:
        yield xml
        return
    with open_document(document.source, password=options.password, pages=options.pages) as opened:
        yield opened


def load_schema(word: str) -> Schema[Any]:
    """The schema that a command line names. A Python file is run.

    Raises OptionError for one that does not exist or cannot be used.
    """
    from paligemma.extraction.builtin import BUILTIN
    from paligemma.extraction.schema import read_schema

    file, colon, name = word.rpartition(":")
    if colon and file.endswith(".py"):
        return read_schema(_model_in(Path(file), name))
    if not word.endswith(".json"):
        if word not in BUILTIN:
            raise OptionError(
                f"There is no schema {word!r}. Give one of {', '.join(BUILTIN)}, a JSON schema in "
                "a file that ends in .json, or a Python file with the name of a pydantic model in "
                "it, such as my.py:Invoice."
            )
        return read_schema(word)
    try:
        with open(word, "rb") as opened:
            data = opened.read(_SCHEMA_BYTES + 1)
    except OSError as error:
        raise OptionError(f"The schema {word!r} cannot be opened: {error.strerror}.") from error
    if len(data) > _SCHEMA_BYTES:
        raise OptionError(f"The schema {word!r} is larger than 1 MiB.")
    try:
        return read_schema(json.loads(data, object_pairs_hook=_without_repeated_keys))
    except (ValueError, RecursionError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"The schema {word!r} is not JSON: {error}.") from error


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    merged = dict(pairs)
    if len(merged) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise OptionError(f"The schema has the key {key!r} twice in one object.")
    return merged


def _model_in(path: Path, name: str) -> Any:
    """The class of this name in a Python file."""
    import importlib.util
    import sys

    if not path.is_file():
        raise OptionError(f"The Python file {str(path)!r} does not exist. Check the path.")
    spec = importlib.util.spec_from_file_location(f"_schema_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks annotations up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise OptionError(
            f"The Python file {str(path)!r} cannot be run: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(getattr(module, name, None), type):
        raise OptionError(f"The Python file {str(path)!r} has no class {name!r}.")
    return getattr(module, name)


def _read_names(words: Sequence[str]) -> Any:
    """The lists of names: one list, or lists by path."""
    plain: list[str] = []
    by_path: dict[str, list[str]] = {}
    for word in words:
        path, equals, file = word.rpartition("=")
        lines = _lines_of(Path(file))
        if equals:
            by_path.setdefault(path, []).extend(lines)
        else:
            plain += lines
    if plain and by_path:
        raise OptionError("Give either one list of names, or a path for each: --names PATH=FILE.")
    return by_path or plain


def _lines_of(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8"
        raise OptionError(f"The list of names {str(path)!r} cannot be read: {reason}.") from error
    if not any(lines):
        raise OptionError(f"The list of names {str(path)!r} is empty.")
    return [line for line in lines if line]


def print_questions(schema: Schema[Any], options: ExtractOptions) -> None:
    """Print the path and prompt of everything that would be asked."""
    from paligemma.extraction.asking import list_questions

    rows = list_questions(schema, options)
    if not rows:
        print_note("Nothing is asked: the values are taken from the XML.")
        return
    width = max(len(visible(path)) for path, _ in rows)
    for path, prompt in rows:
        print_text(f"{visible(path).ljust(width)}  {prompt}")
    from paligemma.extraction.questions import same_questions

    for note in (*schema.notes, *same_questions(schema, options.question_language)):
        print_note(note)


class _Outputs:
    """Prints or writes the results one by one; tables of all documents at the end."""

    def __init__(self, command: ExtractCommandOptions, documents: Sequence[NamedDocument]) -> None:
        """Raises OptionError for what cannot be written, before any work is done."""
        self._command = command
        self._is_single = len(documents) == 1
        self._formats: tuple[Format, ...] = tuple(dict.fromkeys(command.to))
        self._rows: list[tuple[Any, ...]] = []
        self._notes: set[str] = set()
        self._num_read = 0
        out = command.out
        if out is None:
            if unfit := [name for name in self._formats if name in ("parquet", "html")]:
                raise OptionError(f"--to {unfit[0]} writes files: add --out FOLDER.")
            if len(self._formats) > 1:
                raise OptionError("Several formats need files: add --out FOLDER.")
            return
        self._formats = self._formats or ("json",)
        if "parquet" in self._formats:
            _check_pyarrow()
        stem, count = Counter(document.stem for document in documents).most_common(1)[0]
        if count > 1 and set(self._formats) & set(_PER_DOCUMENT):
            raise OptionError(
                f"{count} documents are called {stem!r}, so that their results would be written to "
                "the same file. Use --to csv, or one folder at a time."
            )
        if not out.absolute().parent.is_dir():
            raise OptionError(f"The folder {out.parent} for {out.name} does not exist.")
        if out.exists() and not out.is_dir():
            raise OptionError(f"--out {out} is a file. Give the name of a folder.")
        if not os.access(out if out.is_dir() else out.absolute().parent, os.W_OK):
            raise OptionError(f"The folder {out} is not writable.")
        try:
            out.mkdir(exist_ok=True)
        except OSError as error:
            raise OptionError(f"The folder {out} cannot be made: {error.strerror}.") from error

    def add(self, document: NamedDocument, found: Extraction[Any], source: Any) -> None:
        command, out = self._command, self._command.out
        self._num_read += 1
        named = {"file": document.name, "model": command.model, "task": "extract"}
        line = {**named, "result": found.to_dict()}
        if "csv" in self._formats or "parquet" in self._formats:
            self._rows += [(document.name, *row) for row in found.csv_rows()]
        if out is not None:
            if "json" in self._formats:
                text = json.dumps(line, ensure_ascii=False, allow_nan=False, indent=1)
                _write(out / f"{document.stem}.json", text + "\n")
            if "html" in self._formats:
                page = found.to_html(file=document.name, source=source)
                _write(out / f"{document.stem}.html", page)
        if command.json or (out is None and self._formats == ("json",)):
            print_json(line)
        elif out is None and not self._formats:
            title = "" if self._is_single else f"{visible(document.name)}: "
            print_text(f"{title}{_without_notes(found)}\n")
        if not (command.quiet or command.json):
            for note in found.notes:
                if note not in self._notes:
                    self._notes.add(note)
                    print_note(note)

    def fail(self, document: NamedDocument, error: Exception) -> None:
        print_error(f"{document.name}: {error}")
        if self._command.json or (self._command.out is None and self._formats == ("json",)):
            print_json({"file": document.name, "error": str(error)})

    def close(self) -> None:
        out = self._command.out
        if out is None:
            if self._formats == ("csv",):
                from paligemma.extraction.result import csv_text

                print(csv_text(self._rows, safe=self._command.safe_csv), end="")
            return
        if not self._num_read:
            return
        if "csv" in self._formats:
            from paligemma.extraction.result import csv_text

            text = csv_text(self._rows, safe=self._command.safe_csv)
            _write(out / f"{_TABLE}.csv", text)
        if "parquet" in self._formats:
            from paligemma.extraction.result import write_parquet

            write_parquet(out / f"{_TABLE}.parquet", self._rows)
        if not self._command.quiet:
            print_note(f"written: {', '.join(self._formats)} in {out}")


def _without_notes(found: Extraction[Any]) -> str:
    """The table; notes are printed once for all documents."""
    from dataclasses import replace

    return str(replace(found, notes=()))


def _write(path: Path, text: str) -> None:
    # Names of files may be no UTF-8: "\\udce9" in JSON is such a letter.
    write_whole(path, text.encode("utf-8", errors="backslashreplace"))


def _check_pyarrow() -> None:
    from importlib.util import find_spec

    from paligemma.errors import MissingExtraError

    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "data", "Writing Parquet")
