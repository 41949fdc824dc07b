"""`paligemma ocr` on documents: text in reading order, printed or written, page by page.

A file or a page that cannot be read is reported, and the others are read: exit code 3. Where
nothing at all can be read, it is 2.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from paligemma.cli.console import (
    print_error,
    print_json,
    print_note,
    print_text,
    track,
    warnings_as_notes,
)
from paligemma.cli.document_arguments import opening_errors
from paligemma.cli.image_arguments import NamedImage
from paligemma.errors import OptionError, PaliGemmaError, counted
from paligemma.escaping import visible
from paligemma.options import Option
from paligemma.writing import write_whole

if TYPE_CHECKING:
    from paligemma.cli.predict import PredictOptions
    from paligemma.documents import Document, DocumentLimits, DocumentText, PageText, ReadOptions

TextFormat = Literal["txt", "json", "hocr", "alto", "searchable-pdf"]

PARTLY_DONE = 3  # exit code
_SUFFIXES: dict[str, str] = {
    "txt": ".txt",
    "json": ".json",
    "hocr": ".hocr",
    "alto": ".xml",
    "searchable-pdf": ".pdf",
}
_BY_SUFFIX = {**{suffix: to for to, suffix in _SUFFIXES.items()}, ".html": "hocr"}


@dataclass(frozen=True, kw_only=True)
class DocumentOptions:
    """How PDF files and other documents are read."""

    to: Annotated[TextFormat | None, Option(shown_default="by the name of --output, else txt")] = (
        None
    )
    """Format of a document's text. hocr and alto have boxes and scores; searchable-pdf is the
    document with invisible text above its pages, and needs --output."""
    pages: Annotated[str | None, Option(metavar="1-3,7,9-", shown_default="all")] = None
    """Pages of a document to read, counted from 1."""
    password: Annotated[str | None, Option(shown_default="none")] = None
    """Password of a PDF file."""
    source: Annotated[str, Option(metavar='model|"text layer"')] = "model"
    """Who reads: the model, or the "text layer" that many PDF files have."""
    max_pages: Annotated[int, Option(least=1)] = 1000
    """Maximum number of pages of a document."""
    turn: bool = True
    """Turn pages without a text layer upright, by trying which way the model reads best."""
    tiles: bool = True
    """Read pages in parts that are large enough for their print."""

    @property
    def is_given(self) -> bool:
        """Whether any of the options differs from its default."""
        return self != DocumentOptions()

    def limits(self) -> DocumentLimits:
        """What a document may take."""
        from paligemma.documents import DocumentLimits

        return DocumentLimits(max_pages=self.max_pages)

    def read_options(self, options: PredictOptions) -> ReadOptions:
        """How to read. Raises OptionError for an unknown source."""
        from paligemma.documents import ReadOptions

        if self.source not in ("model", "text layer"):
            raise OptionError(f'--source is {self.source!r}; it must be model or "text layer".')
        return ReadOptions(
            source=self.source,  # type: ignore[arg-type]
            turn=self.turn,
            tiles=self.tiles,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
        )

    def open(self, file: NamedImage) -> Document:
        """Open a named file with its pages. Raises ImageError and OptionError."""
        if file.error is not None:
            raise file.error
        from paligemma.documents import open_document

        source: Any = file.source if isinstance(file.source, Path | bytes) else file.read()
        document = open_document(
            source, password=self.password, pages=self.pages, limits=self.limits()
        )
        return replace(document, name=file.name)


@dataclass(frozen=True, kw_only=True)
class _File:
    """A document to read, and where its text goes."""

    named: NamedImage
    target: Path | None
    error: PaliGemmaError | None = None


def is_written_as_document(options: PredictOptions) -> bool:
    """Whether the name of the output file is one of a format of documents."""
    output = options.output
    if output is None or options.output_format is not None or output.is_dir():
        return False
    return output.suffix.lower() in _BY_SUFFIX


def read_files(
    named: Sequence[NamedImage], documents: DocumentOptions, options: PredictOptions
) -> None:
    """Read each document, and print or write its text."""
    read_options = documents.read_options(options)
    to = _format(documents, options)
    files = _files(named, to, options)
    if not files:
        return
    errors = opening_errors(files, lambda file: documents.open(file.named), _message)
    files = [replace(file, error=error) for file, error in zip(files, errors, strict=True)]
    outcomes: Counter[bool] = Counter()
    with warnings_as_notes(is_quiet=options.quiet):
        model = options.load() if read_options.source == "model" else None
        if model is not None and model.note and not (options.json or options.quiet):
            print_note(model.note)
        reading = _Reading(model, to, documents, options, read_options, len(files) == 1)
        for file in files:
            outcomes.update(_read(file, reading))
    if outcomes[False]:
        raise typer.Exit(PARTLY_DONE if outcomes[True] else 2)


def _format(documents: DocumentOptions, options: PredictOptions) -> TextFormat:
    if options.output_format is not None:
        raise OptionError(
            f"--output-format {options.output_format} is for images. Use --to for documents: "
            f"{', '.join(get_args(TextFormat))}."
        )
    for name, is_given in (("--show", options.show), ("--allow-urls", options.allow_urls)):
        if is_given:
            raise OptionError(f"{name} is for images. Leave it out for documents.")
    output = options.output
    if options.json:
        if output is not None or documents.to is not None:
            raise OptionError(
                "--json prints a line per page, and excludes --to and --output. For a JSON file: "
                "--to json --output FILE."
            )
        return "json"
    to = documents.to
    if output is not None and to is None and not output.is_dir() and output.suffix:
        to = _BY_SUFFIX.get(output.suffix.lower())  # type: ignore[assignment]
        if to is None:
            raise OptionError(
                f"--output {output}: the text of documents is written to {_names()} files. Choose "
                "such a name, or add --to."
            )
    if to == "searchable-pdf" and output is None:
        raise OptionError("--to searchable-pdf needs --output: a .pdf file, or a folder.")
    return to or "txt"


def _names() -> str:
    return ", ".join(_SUFFIXES.values())


def _files(named: Sequence[NamedImage], to: TextFormat, options: PredictOptions) -> list[_File]:
    """The documents with the files to write. Raises OptionError for what cannot be written."""
    output = options.output
    if output is None:
        if options.skip_existing:
            raise OptionError("--skip-existing needs --output.")
        return [_File(named=each, target=None) for each in named]
    is_folder = output.is_dir() or not output.suffix or len(named) > 1
    parent = output if is_folder and output.is_dir() else output.absolute().parent
    if not parent.is_dir():
        raise OptionError(f"The folder {parent} for {output.name} does not exist.")
    if not os.access(parent, os.W_OK):
        raise OptionError(f"The folder {parent} is not writable.")
    if is_folder and output.suffix and not output.is_dir():
        raise OptionError(
            f"--output {output} is one file, and there are {len(named)} documents. Give a folder, "
            f"or one that exists: mkdir {output}"
        )
    targets = [output / f"{each.stem}{_SUFFIXES[to]}" if is_folder else output for each in named]
    path, count = Counter(targets).most_common(1)[0]
    if count > 1:
        raise OptionError(
            f"{count} documents would be written to {path}. Read one folder at a time."
        )
    sources = {each.source.resolve() for each in named if isinstance(each.source, Path)}
    if overwritten := {target for target in targets if target.resolve() in sources}:
        raise OptionError(
            f"--output would overwrite the document {min(overwritten)}. Choose another folder."
        )
    files = [
        _File(named=each, target=target)
        for each, target in zip(named, targets, strict=True)
        if not (options.skip_existing and target.exists())
    ]
    if (num_skipped := len(named) - len(files)) and not options.quiet:
        print_note(f"skipped: {counted(num_skipped, 'document')} with results")
    return files


def _message(file: _File, error: object) -> str:
    text = str(error)
    name = Path(file.named.name).name
    return text if name in text else f"{file.named.name}: {text}"


@dataclass(frozen=True)
class _Reading:
    """How all the files are read and written."""

    model: Any
    to: TextFormat
    documents: DocumentOptions
    options: PredictOptions
    read_options: ReadOptions
    is_only_file: bool


def _read(file: _File, reading: _Reading) -> Iterator[bool]:
    """Read a document. Yields whether each page, or the file as a whole, could be read."""
    from paligemma.documents import DocumentText, read_pages
    from paligemma.documents.searchable import unsearchable

    to, options = reading.to, reading.options
    if file.error is not None:
        print_error(_message(file, file.error))
        if options.json:
            print_json({"document": file.named.name, "error": str(file.error)})
        yield False
        return
    pages: list[PageText] = []
    try:
        with reading.documents.open(file.named) as document:
            total = len(document.pages)
            unread = document.pages
            if to == "searchable-pdf" and reading.model is not None:
                unread = unsearchable(document.pages)
            if (num_left := total - len(unread)) and not options.quiet:
                kept = counted(num_left, "page has a text layer", "pages have a text layer")
                print_note(f"{visible(file.named.name)}: {kept} already, which stays as it is")
            yield from (True for _ in range(num_left))
            read = read_pages(reading.model, unread, reading.read_options)
            for page in track(read, len(unread), "ocr"):
                _report(file, page, options)
                if file.target is None and (options.json or to == "txt"):
                    _print(file, page, options, is_only=total == 1 and reading.is_only_file)
                if file.target is not None or to != "txt":
                    pages.append(page)
                yield page.error is None
            text = DocumentText(
                name=Path(file.named.name).name,
                source=reading.read_options.source,
                pages=tuple(pages),
            )
            if not options.json and (pages or num_left):
                _write(file, to, text, document, options)
    except PaliGemmaError as error:
        print_error(_message(file, error))
        yield False


def _report(file: _File, page: PageText, options: PredictOptions) -> None:
    if page.error:
        print_error(_message(file, page.error))
    if not options.quiet:
        for problem in page.problems:
            print_note(f"{visible(file.named.name)}, page {page.page}: {problem}")


def _print(file: _File, page: PageText, options: PredictOptions, *, is_only: bool) -> None:
    if options.json:
        line: dict[str, Any] = {
            "document": file.named.name,
            "page": page.page,
            "model": options.model,
            "task": "ocr",
        }
        line |= {"error": page.error} if page.error else {"result": page.to_dict()}
        print_json(line)
    elif page.error is None:
        heading = "" if is_only else f"{visible(file.named.name)}, page {page.page}:\n"
        print_text(f"{heading}{page.text}" + ("" if is_only else "\n"))


def _write(
    file: _File,
    to: TextFormat,
    text: DocumentText,
    document: Document,
    options: PredictOptions,
) -> None:
    """Print the text, or write the file whole or not at all."""
    from paligemma.documents.searchable import to_searchable_pdf
    from paligemma.documents.write import WRITERS

    if to == "searchable-pdf":
        data = to_searchable_pdf(document, text)
    else:
        data = WRITERS[to](text).encode("utf-8", errors="replace")
    if file.target is None:
        print_text(data.decode("utf-8").rstrip("\n"))
        return
    try:
        file.target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise OptionError(f"{file.target} cannot be written: {error.strerror}.") from error
    write_whole(file.target, data)
    if not options.quiet:
        print_note(f"written: {file.target}")
