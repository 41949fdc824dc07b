"""The documents that a command line names: PDF and TIFF files, images, folders, patterns, stdin."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from paligemma.cli.console import print_error
from paligemma.cli.image_arguments import STDIN, read_stdin
from paligemma.errors import DocumentError, InputError, OptionError

File = TypeVar("File")

_SUFFIXES = (".pdf", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class NamedDocument:
    """A document, and what the results call it."""

    name: str
    source: Path | bytes
    error: InputError | None = None
    """Why it cannot be read, as far as that is known already."""

    @property
    def stem(self) -> str:
        """What a file that belongs to this document is called, without its suffix."""
        return self.source.stem if isinstance(self.source, Path) else "stdin"


def find_documents(words: Sequence[str], *, recursive: bool = False) -> list[NamedDocument]:
    """The documents in the order given; those of a folder or pattern by name.

    Of several words, one that names none is a document with an `error`. Whether a file can be read
    shows when its turn comes.

    Raises DocumentError where no word names one, and OptionError for what is not to be read at all.
    """
    if sum(word in STDIN for word in words) > 1:
        raise OptionError("Stdin can be read once. Name it once, and give other files by name.")
    documents: list[NamedDocument] = []
    errors: list[InputError] = []
    for word in words:
        try:
            documents += _find(word, recursive)
        except OptionError:
            raise
        except InputError as error:
            errors.append(error)
            documents.append(NamedDocument(name=word, source=Path(word), error=error))
    if errors and len(errors) == len(documents):
        raise errors[0]
    return documents


def opening_errors(
    files: Sequence[File],
    opened: Callable[[File], AbstractContextManager[Any]],
    message: Callable[[File, InputError], str],
) -> list[InputError | None]:
    """What is wrong with each file, by opening it, before a model is loaded.

    Where none can be opened, raises the error of the first and prints those of the others.
    """
    errors: list[InputError | None] = []
    for file in files:
        try:
            with opened(file):
                pass
        except InputError as error:
            errors.append(error)
        else:
            errors.append(None)
    failed = [(file, why) for file, why in zip(files, errors, strict=True) if why is not None]
    if failed and len(failed) == len(files):
        for file, why in failed[1:]:
            print_error(message(file, why))
        raise failed[0][1]
    return errors


def _find(word: str, recursive: bool) -> list[NamedDocument]:
    if word in STDIN:
        return [NamedDocument(name=word, source=read_stdin())]
    if not word:
        raise OptionError("The name of a file is empty. Give the path of a document.")
    if re.match(r"https?://", word, re.IGNORECASE):
        raise OptionError(f"{word!r} is a web address. Download the document first.")
    path = Path(os.path.expanduser(word))
    if not os.path.lexists(path) and glob.has_magic(word):
        paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        files = [file for file in paths if file.is_file()]
        if not files:
            raise DocumentError(f"No file matches the pattern {word!r}. Check the path.")
        return [NamedDocument(name=str(file), source=file) for file in files]
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DocumentError(f"The file {word!r} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DocumentError(f"The file {word!r} cannot be opened: {reason}.") from error
    if not stat.S_ISDIR(mode):
        return [NamedDocument(name=word, source=path)]
    files = sorted(file for file in _files_below(path, recursive) if _is_document(file))
    if not files:
        advice = "" if recursive else " Add --recursive to use those in its folders."
        raise DocumentError(f"The folder {word!r} contains no documents.{advice}")
    return [NamedDocument(name=str(file), source=file) for file in files]


def _files_below(folder: Path, recursive: bool) -> list[Path]:
    try:
        files = list(folder.rglob("*") if recursive else folder.iterdir())
    except OSError as error:
        raise DocumentError(f"The folder {str(folder)!r} cannot be listed: {error}.") from error
    return [file for file in files if not file.name.startswith(".") and file.is_file()]


def _is_document(path: Path) -> bool:
    from paligemma.data.source import is_image

    return path.suffix.lower() in _SUFFIXES or is_image(path)
