"""A page, the alternative texts proposed for it, and what they become: a new file or a patch."""

from __future__ import annotations

import difflib
import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paligemma.alt.addresses import Place
from paligemma.alt.charset import decode, encode, writable
from paligemma.alt.html import Tag
from paligemma.alt.images import FoundImages, find_images_of
from paligemma.errors import InputError, OptionError
from paligemma.escaping import visible
from paligemma.results import Result, one_line
from paligemma.writing import write_whole

LARGEST_PAGE = 64 * 2**20
PAGE_SUFFIXES = (".html", ".htm", ".xhtml")


@dataclass(frozen=True, kw_only=True)
class Alternative(Result):
    """The alternative text that is proposed for an image."""

    image: str
    """Its address in the page, or its file."""
    alt: str | None
    """The proposal; None where there is none."""
    score: float | None = None
    """The lowest mean probability of a token among the caption and the text that it uses; None for
    the goal of a link, which the model does not say."""
    caption: str | None = None
    """The model's caption."""
    text: str | None = None
    """What the model reads in the image; None where there is no text."""
    problem: str | None = None
    """Why it is not to be used as it is: a low score, an image that cannot be read."""
    note: str | None = None
    """What else to know about it."""
    line: int | None = None
    """The line of the image's tag in the page, counted from 1."""
    was: str | None = None
    """The alternative text in the page so far."""
    reason: str | None = None
    """What is wrong with that."""
    goal: str | None = None
    """Where the link leads that holds the image and no text."""

    @property
    def is_sure(self) -> bool:
        """Whether it is good enough to be written."""
        return self.alt is not None and self.problem is None


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """An HTML file as it was read."""

    path: Path
    data: bytes = field(repr=False)
    source: str = field(repr=False)
    """As text."""
    encoding: str
    found: FoundImages = field(repr=False)
    place: Place = field(repr=False)


def read_page(path: Path, root: Path) -> Page:
    """Read a page of the site in the folder `root`.

    Raises InputError for a file that cannot be read or that is not inside the folder.
    """
    try:
        if path.is_fifo():  # which could be waited for forever
            raise InputError(f"The page {str(path)!r} is a pipe. Give the path of a file.")
        with path.open("rb") as file:
            data = file.read(LARGEST_PAGE + 1)
    except OSError as error:
        raise InputError(f"The page {str(path)!r} cannot be opened: {error.strerror}.") from error
    if len(data) > LARGEST_PAGE:
        raise InputError(f"The page {str(path)!r} is larger than {LARGEST_PAGE // 2**20} MiB.")
    root = root.resolve()
    if not path.resolve().is_relative_to(root):
        raise InputError(f"The page {str(path)!r} is a link to a file outside of {root}.")
    try:
        source, encoding = decode(data)
        found = find_images_of(source)
        place = Place.of(path, root, found)
    except InputError as error:
        raise InputError(f"The page {str(path)!r} cannot be used: {error}") from error
    return Page(path=path, data=data, source=source, encoding=encoding, found=found, place=place)


@dataclass(frozen=True, kw_only=True, eq=False)
class PageAlternatives:
    """What is proposed for a page. Nothing is written until `write` is called."""

    page: Page
    language: str
    """Of the proposals."""
    alternatives: tuple[Alternative, ...]
    """One per image whose alternative text is missing or bad."""

    @property
    def num_sure(self) -> int:
        """Proposals that would be written."""
        return sum(each.is_sure for each in self.alternatives)

    def changed(self) -> bytes:
        """The page with the proposals that are sure. Nothing but their attributes is different."""
        pieces: list[str] = []
        position = 0
        for start, end, new in self._edits():
            pieces += [self.page.source[position:start], new]
            position = end
        pieces.append(self.page.source[position:])
        return encode("".join(pieces), self.page.encoding)

    def write(self) -> bool:
        """Replace the file; return whether there was something to write.

        Raises OptionError where it cannot be written, or was changed since it was read.
        """
        if not self.num_sure:
            return False
        path = self.page.path
        try:
            is_same = path.read_bytes() == self.page.data
        except OSError:
            is_same = False
        if not is_same:
            raise OptionError(f"{path} was changed while it was read; it is left as it is.")
        write_whole(path, self.changed())
        return True

    def patch(self, name: str | None = None) -> bytes:
        """The change as a unified diff, which `git apply` and `patch -p1` take; b"" for none.

        `name` is the path of the page in it, by default as the page was given. Raises OptionError
        for a page in UTF-16.
        """
        if not self.num_sure:
            return b""
        if self.page.encoding.startswith("utf-16"):
            raise OptionError(
                f"{self.page.path} is in UTF-16, of which patches cannot be made. Let the file "
                "itself be written."
            )
        name = name or _patch_name(self.page.path, self.page.place.root)
        before, after = (
            re.findall(r"[^\n]*\n|[^\n]+\Z", data.decode("latin-1"))
            for data in (self.page.data, self.changed())
        )
        lines = difflib.unified_diff(before, after, _quoted(f"a/{name}"), _quoted(f"b/{name}"))
        return "".join(
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
            for line in lines
        ).encode("latin-1")

    def _edits(self) -> Iterator[tuple[int, int, str]]:
        for image, alternative in zip(self.page.found.images, self.alternatives, strict=True):
            if alternative.is_sure and alternative.alt is not None:
                yield _edit(image.tag, _as_attribute(alternative.alt, self.page.encoding))


def _edit(tag: Tag, value: str) -> tuple[int, int, str]:
    """What to replace by what, so that the tag has the alternative text."""
    old = tag.attribute("alt")
    if old is None:
        return tag.name_end, tag.name_end, f" alt={value}"
    if old.value_start is None:
        return old.end, old.end, f"={value}"
    return old.value_start, old.end, value


def _as_attribute(text: str, encoding: str) -> str:
    """A quoted value. Braces are written as references, as templates would run what is in them."""
    plain = html.escape(visible(one_line(text)), quote=False).replace('"', "&quot;")
    for brace in "{}":
        plain = plain.replace(brace, f"&#{ord(brace)};")
    return f'"{writable(plain, encoding)}"'


def _patch_name(path: Path, root: Path) -> str:
    """The path from here, or else from the folder of the site."""
    full = path.absolute()
    for folder in (Path.cwd(), root):
        if full.is_relative_to(folder):
            return full.relative_to(folder).as_posix()
    return full.resolve().relative_to(root).as_posix()


def _quoted(name: str) -> str:
    """A name as git writes it in a patch: unusual bytes in C's way, a tab after one with blanks."""
    octets = os.fsencode(name)
    if any(octet < 32 or octet in b'\x7f"\\' for octet in octets):
        inside = "".join(
            f"\\{octet:03o}" if octet < 32 or octet in b'\x7f"\\' else chr(octet)
            for octet in octets
        )
        return f'"{inside}"'
    return octets.decode("latin-1") + ("\t" if b" " in octets else "")
