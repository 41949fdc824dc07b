"""The images that a command line names: files, folders, patterns, addresses and stdin.

All of them are checked before a model is loaded, and where none can be read, none is. What is wrong
with some of several is reported when their turn comes.
"""

from __future__ import annotations

import base64
import binascii
import glob
import os
import re
import stat
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from paligemma.errors import ImageError, OptionError, counted

if TYPE_CHECKING:
    from paligemma.processor.image import LoadedImage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|(file|data):", re.IGNORECASE)
_DATA_URI = re.compile(r"data:([^,]*),(.*)", re.IGNORECASE | re.DOTALL)
STDIN = ("-", "/dev/stdin", "/dev/fd/0")
_NUM_FIRST_BYTES = 512


@dataclass(kw_only=True)
class NamedImage:
    """An image, and what the results call it."""

    name: str
    source: Path | bytes | str
    """A file, its contents, or a web address."""
    error: ImageError | None = None
    """Why it cannot be read, as far as that is known already."""
    _fetched: bytes | None = None

    def read(self) -> LoadedImage:
        """Raises ImageError."""
        if self.error is not None:
            raise self.error
        from paligemma.processor.fetch import fetch_image_bytes
        from paligemma.processor.image import load_image

        if isinstance(self.source, Path):
            return load_image(self.source)
        try:
            if isinstance(self.source, bytes):
                return load_image(self.source)
            if self._fetched is None:
                self._fetched = fetch_image_bytes(self.source)
            return load_image(self._fetched, strict=True)
        except ImageError as error:
            raise ImageError(f"{self.name}: {error}") from error

    @property
    def has_pages(self) -> bool:
        """Whether this is a PDF file, or a TIFF file of several pages."""
        from paligemma.documents.image_pages import num_tiff_pages
        from paligemma.documents.open import is_document, is_pdf

        if isinstance(self.source, str) or self.error is not None:
            return False
        first = self.source[:1024] if isinstance(self.source, bytes) else _first_bytes(self.source)
        return is_pdf(first) or (is_document(first) and num_tiff_pages(self.source) > 1)

    def release(self) -> None:
        """Forget what was fetched. Until then, reading the image again fetches nothing."""
        self._fetched = None

    @property
    def stem(self) -> str:
        """What a file that belongs to this image is called, without its suffix."""
        if isinstance(self.source, Path):
            return self.source.stem
        if isinstance(self.source, bytes):
            return "image" if self.name[:5].lower() == "data:" else "stdin"
        return Path(urllib.parse.urlsplit(self.source).path).stem or "image"


def looks_like_image(word: str) -> bool:
    """Whether a word names an image, whether or not it exists; else it may be a prompt.

    >>> looks_like_image("dog.png"), looks_like_image("-"), looks_like_image("a dog")
    (True, True, False)
    """
    from paligemma.data.source import is_image

    if word in STDIN or _SCHEME.match(word):
        return True
    return not re.search(r"\s", word) and is_image(Path(word))


def find_images(
    words: Sequence[str],
    *,
    recursive: bool = False,
    allow_urls: bool = False,
    documents: bool = False,
) -> list[NamedImage]:
    """The images in the order given; those of a folder or pattern by name.

    With `documents`, PDF files too. Of several words, one that names nothing that can be read is
    an image with an `error`.

    Raises ImageError where no image can be read, and OptionError for what is not to be read at all.
    """
    if sum(word in STDIN for word in words) > 1:
        raise OptionError("Stdin can be read once. Name it once, and give other images as files.")
    finder = _Finder(recursive=recursive, allow_urls=allow_urls, documents=documents)
    images: list[NamedImage] = []
    errors: list[ImageError] = []
    for word in words:
        try:
            images += finder.find(word)
        except ImageError as error:
            errors.append(error)
            images.append(NamedImage(name=_shortened(word), source=Path(word), error=error))
    if errors and len(errors) == len(images):
        if len(errors) == 1:
            raise errors[0]
        raise ImageError(f"None of the {len(errors)} files can be read. {errors[0]}")
    return images


@dataclass(frozen=True, kw_only=True)
class _Finder:
    """Finds what a word of the command line names."""

    recursive: bool
    allow_urls: bool
    documents: bool

    def find(self, word: str) -> list[NamedImage]:
        return _find(word, self)

    def is_file_of_kind(self, path: Path) -> bool:
        """Whether a file in a folder is meant, by its name."""
        from paligemma.data.source import is_image

        is_document = self.documents and path.suffix.lower() in (".pdf", ".tif", ".tiff")
        return is_image(path) or (is_document and not path.name.startswith("._"))

    def check_first_bytes(self, data: bytes, subject: str) -> None:
        """Raises ImageError for a file that begins like none that can be read."""
        from paligemma.processor.image import check_first_bytes

        if self.documents:
            from paligemma.documents.open import is_document

            if is_document(data):
                return
        check_first_bytes(data, subject)


def _find(word: str, finder: _Finder) -> list[NamedImage]:
    if word in STDIN:
        return [_checked(NamedImage(name=word, source=read_stdin()), finder)]
    if match := _SCHEME.match(word):
        scheme = (match[1] or match[2]).lower()
        if scheme == "data":
            named = NamedImage(name=_shortened(word), source=_read_data_uri(word))
            return [_checked(named, finder)]
        if scheme != "file":
            return [_web_image(word, scheme, finder.allow_urls)]
        path = _path_of_uri(word)
    else:
        path = Path(word)
        if word.startswith("~") and not os.path.lexists(word):
            path = Path(os.path.expanduser(word))  # Path.expanduser raises for an unknown user
    if not os.path.lexists(path) and glob.has_magic(str(path)):
        return _matches(str(path), finder)
    return _at(path, word, finder)


def _at(path: Path, word: str, finder: _Finder) -> list[NamedImage]:
    if not word:
        raise OptionError("The path is empty. Give the name of an image file.")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise ImageError(f"The file {word!r} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ImageError(f"The file {word!r} cannot be opened: {reason}.") from error
    if stat.S_ISDIR(mode):
        return _in_folder(path, word, finder)
    if stat.S_ISREG(mode):
        return [_checked(NamedImage(name=word, source=path), finder)]
    try:
        with path.open("rb") as file:  # a pipe, such as that of <(...)
            if file.isatty():
                raise ImageError(f"{word!r} is a terminal. Name a file or a pipe.")
            return [_checked(NamedImage(name=word, source=_read_all(file)), finder)]
    except OSError as error:
        raise ImageError(f"{word!r} cannot be read: {error.strerror}.") from error


def _in_folder(folder: Path, word: str, finder: _Finder) -> list[NamedImage]:
    paths = list(_image_files(folder, finder))
    if not paths:
        everything = replace(finder, recursive=True)
        below = not finder.recursive and next(_image_files(folder, everything), None)
        advice = "Add --recursive to use those in its folders." if below else "Check the path."
        kind = "images or documents" if finder.documents else "images"
        raise ImageError(f"The folder {word!r} contains no {kind}. {advice}")
    return _any_readable(paths, word, finder)


def _image_files(folder: Path, finder: _Finder) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise ImageError(
            f"The folder {error.filename!r} cannot be listed: {error.strerror}."
        ) from error

    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(
            name for name in folders if finder.recursive and not name.startswith(".")
        )
        for name in sorted(files):
            if not name.startswith(".") and finder.is_file_of_kind(Path(name)):
                yield Path(root, name)


def _matches(pattern: str, finder: _Finder) -> list[NamedImage]:
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in paths if path.is_file()]
    if not files:
        raise ImageError(f"No file matches the pattern {pattern!r}. Check the path.")
    of_kind = [path for path in files if finder.is_file_of_kind(path)]
    return _any_readable(of_kind or files, pattern, finder)


def _any_readable(paths: Sequence[Path], word: str, finder: _Finder) -> list[NamedImage]:
    """The images at these paths. Raises ImageError when none of them can be one."""
    images = [NamedImage(name=str(path), source=path) for path in paths]
    first_error = None
    for image in images:
        try:
            _checked(image, finder)
            return images
        except ImageError as error:
            first_error = first_error or error
    raise ImageError(
        f"None of the {counted(len(paths), 'file')} of {word!r} can be read. {first_error}"
    )


def _checked(image: NamedImage, finder: _Finder) -> NamedImage:
    """The image itself. Raises ImageError if it is too large, unreadable or of another format."""
    from paligemma.processor.image import OWN_FILE_BYTES

    if isinstance(image.source, Path):
        try:
            size = image.source.stat().st_size
            with image.source.open("rb") as file:
                first = file.read(_NUM_FIRST_BYTES)
        except OSError as error:
            raise ImageError(
                f"The image {image.name!r} cannot be opened: {error.strerror}."
            ) from error
    else:
        assert isinstance(image.source, bytes)
        size, first = len(image.source), image.source[:_NUM_FIRST_BYTES]
    if size > OWN_FILE_BYTES:
        raise ImageError(
            f"The image {image.name!r} is larger than {OWN_FILE_BYTES // 2**20} MiB. Compress it "
            "or scale it down."
        )
    finder.check_first_bytes(first, f"The image {image.name!r}")
    return image


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError:  # reported when its turn comes
        return b""


def read_stdin() -> bytes:
    if sys.stdin is None:
        raise ImageError("Stdin is closed. Pipe an image into the command, or name a file.")
    if sys.stdin.isatty():
        raise ImageError("Stdin is the terminal. Pipe an image into the command, or name a file.")
    return _read_all(sys.stdin.buffer)


def _read_all(file: BinaryIO) -> bytes:
    from paligemma.processor.image import OWN_FILE_BYTES

    return file.read(OWN_FILE_BYTES + 1)


def _read_data_uri(uri: str) -> bytes:
    match = _DATA_URI.match(uri)
    if match is None:
        raise ImageError(f"{_shortened(uri)!r} is not a data URI: it has no comma before the data.")
    data = urllib.parse.unquote_to_bytes(match[2])
    if not match[1].lower().endswith(";base64"):
        return data
    try:
        text = b"".join(data.split()).replace(b"-", b"+").replace(b"_", b"/")
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(f"The data of {_shortened(uri)!r} is not valid base64.") from error


def _shortened(uri: str) -> str:
    return uri if len(uri) <= 60 else f"{uri[:57]}..."


def _path_of_uri(uri: str) -> Path:
    parts = urllib.parse.urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(
            f"{uri!r} names a file of the host {parts.netloc!r}. Only files of this machine can be "
            "read: file:///PATH."
        )
    path = urllib.parse.unquote(parts.path, errors="surrogateescape")
    return Path(path[1:] if re.match(r"/[A-Za-z]:", path) and os.name == "nt" else path)


def _web_image(address: str, scheme: str, allow_urls: bool) -> NamedImage:
    if scheme not in ("http", "https"):
        raise OptionError(
            f"{address!r} cannot be fetched: only http and https addresses can. Download it first."
        )
    if not allow_urls:
        raise OptionError(f"{address!r} is a web address. Add --allow-urls to fetch it.")
    return NamedImage(name=address, source=address)
