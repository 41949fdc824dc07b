"""What an address in a page stands for: a file of the site, a data URL, or a web address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from paligemma.alt.charset import decode
from paligemma.alt.html import scan
from paligemma.alt.images import FoundImages, plain_text
from paligemma.errors import ImageError, InputError
from paligemma.escaping import visible
from paligemma.processor.fetch import fetch_image_bytes
from paligemma.processor.image import LoadedImage, load_image
from paligemma.results import one_line

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_IGNORED = re.compile(r"[\t\n\r]")
_CODE = re.compile(r"<[?%]|\{\{|\{%|\$\{|\[\[")
_PAGE_SUFFIXES = (".html", ".htm", ".xhtml")
_LARGEST_TARGET = 2**20
_LONGEST_SHOWN = 50

Source = Path | str
"""A file, or a web address or data URL."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A page in a site: what its addresses count from."""

    root: Path
    """The folder of the site, resolved. Nothing outside of it is read."""
    folder: tuple[str, ...]
    """The page's folder below the root."""
    base: str | None = None
    """A web address from which others count, as <base> says."""

    @classmethod
    def of(cls, path: Path, root: Path, found: FoundImages) -> Place:
        """The place of a page. Raises ImageError for a <base> that leads out of the folder."""
        folder = path.resolve().parent.relative_to(root).parts
        place = cls(root=root, folder=folder)
        if not found.base:
            return place
        base = _cleaned(found.base)
        if _is_web(base):
            return cls(root=root, folder=folder, base=_with_scheme(base))
        if _SCHEME.match(base):
            raise ImageError(f"the page's <base> is {shown(base)}, not an address of files")
        parts = place.parts_of(base)
        return cls(root=root, folder=parts if base.endswith("/") else parts[:-1])

    def source_of(self, address: str, *, allow_urls: bool) -> Source:
        """What an address stands for.

        Raises ImageError for one that cannot be used: outside of the folder, a missing file, a web
        address without `allow_urls`, another scheme.
        """
        address = _cleaned(address)
        if _CODE.search(address):
            raise ImageError(f"its address, {shown(address)}, is made by code")
        if address[:5].lower() == "data:":
            return address
        if self.base is not None and not _SCHEME.match(address):
            address = self._from_base(address)
        if _is_web(address):
            if not allow_urls:
                raise ImageError(f"{shown(address)} is a web address; add --allow-urls to fetch it")
            return _with_scheme(address)
        if _SCHEME.match(address):
            raise ImageError(f"{shown(address)} is not a file of the site")
        return self.file_of(address)

    def _from_base(self, address: str) -> str:
        try:
            return urljoin(self.base or "", address)
        except ValueError as error:
            raise ImageError(f"the page's <base>, {shown(self.base or '')}, is invalid") from error

    def file_of(self, address: str) -> Path:
        """The file of a relative address. Raises ImageError where there is none in the folder."""
        parts = self.parts_of(address)
        path = self.root.joinpath(*parts)
        try:
            is_inside = path.resolve().is_relative_to(self.root)
            is_file = path.is_file()
        except (OSError, ValueError, RuntimeError):
            is_inside, is_file = True, False
        if not is_inside:
            raise ImageError(_outside(address))
        if not is_file:
            raise ImageError(f"the file {shown('/'.join(parts))} does not exist")
        return path

    def parts_of(self, address: str) -> tuple[str, ...]:
        """The path of a relative address below the root. Raises ImageError if it leaves it."""
        path = re.split(r"[?#]", address, maxsplit=1)[0].replace("\\", "/")
        parts = [] if path.startswith("/") else list(self.folder)
        for part in path.split("/"):
            name = unquote(part)
            if name == "..":
                if not parts:
                    raise ImageError(_outside(address))
                parts.pop()
            elif "/" in name or "\0" in name or "\\" in name:
                raise ImageError(f"{shown(address)} is not the name of a file")
            elif name not in ("", "."):
                parts.append(name)
        return tuple(parts)


def load(source: Source) -> LoadedImage:
    """Raises ImageError."""
    if isinstance(source, Path):
        return load_image(source)
    if source[:5].lower() == "data:":
        return load_image(source, strict=True)
    return load_image(fetch_image_bytes(source), strict=True)


def goal_of(address: str | None, place: Place) -> str | None:
    """Where a link leads, in words: the title of a page of the site, a name, a host.

    None where the address does not tell.
    """
    address = _cleaned(address or "")
    if not address or address.startswith("#") or _CODE.search(address):
        return None
    scheme = _SCHEME.match(address)
    if scheme and scheme[0].lower() in ("mailto:", "tel:"):
        return _words(re.split(r"[?]", address[scheme.end() :], maxsplit=1)[0]) or None
    if _is_web(address) or (place.base is not None and not scheme):
        try:
            host = urlsplit(_with_scheme(urljoin(place.base or "", address))).hostname or ""
        except ValueError:
            return None
        return _words(host.removeprefix("www.")) or None
    return None if scheme else _title_or_name(address, place)


def shown(text: str) -> str:
    """An address in a message: short, without control characters."""
    text = visible(one_line(text[:1000]))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _title_or_name(address: str, place: Place) -> str | None:
    try:
        parts = place.parts_of(address)
    except ImageError:
        return None
    for name in ((), ("index.html",), ("index.htm",)):
        path = place.root.joinpath(*parts, *name)
        if path.suffix.lower() in _PAGE_SUFFIXES and (title := _title_in(path, place.root)):
            return title
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", parts[-1]) if parts else ""
    is_image = parts and re.search(r"\.(?:png|jpe?g|gif|webp|svg|avif)$", parts[-1], re.IGNORECASE)
    words = _words(re.sub(r"[-_+.]+", " ", stem))
    return words if re.search(r"[^\W\d]{2}", words) and not is_image else None


def _title_in(path: Path, root: Path) -> str | None:
    try:
        if not path.is_file() or not path.resolve().is_relative_to(root):
            return None
        with path.open("rb") as file:
            page, _ = decode(file.read(_LARGEST_TARGET))
    except (OSError, ValueError, InputError):
        return None
    titles = (tag for tag in scan(page) if tag.kind == "text" and tag.name == "title")
    title = next(titles, None)
    return None if title is None else _words(plain_text(page[title.start : title.end])) or None


def _words(text: str) -> str:
    return visible(one_line(unquote(text)))[:200]


def _cleaned(address: str) -> str:
    return _IGNORED.sub("", address).strip("\f ")


def _is_web(address: str) -> bool:
    is_relative_to_scheme = re.match(r"[/\\]{2}", address) is not None
    return is_relative_to_scheme or address.lower().startswith(("http:", "https:"))


def _with_scheme(address: str) -> str:
    return address if _SCHEME.match(address) else f"https:{address}"


def _outside(address: str) -> str:
    return (
        f"{shown(address)} leads out of the folder, and nothing outside of it is read; give the "
        "folder of the whole site"
    )


def first_usable(place: Place, addresses: Sequence[str], *, allow_urls: bool) -> tuple[str, Source]:
    """The first of the addresses that can be used. Raises the ImageError of the first if none."""
    error = ImageError("it has no address")
    for number, address in enumerate(addresses):
        try:
            return address, place.source_of(address, allow_urls=allow_urls)
        except ImageError as caught:
            error = caught if number == 0 else error
    raise error
