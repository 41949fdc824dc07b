"""Files in requests: base64, data URLs, web addresses or multipart forms -> bytes of a file.

Sizes are checked before anything is decoded. Web addresses must be in the list of domains. Whether
the bytes are an image or a document shows when they are read.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from paligemma.errors import ImageError
from paligemma.processor.fetch import fetch_image_bytes
from paligemma.server.errors import ApiError
from paligemma.server.settings import Limits, Settings

_ANY_DATA_URL = re.compile(r"data:[^,]{0,200}?;base64,", re.IGNORECASE)
# Stricter than the standard, so that all parsers agree about the host.
_ADDRESS = re.compile(r"https://([A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]+)+)(?::443)?(?=[/?]|\Z)")
_PRIVATE_ADDRESS = re.compile(r"https?://([A-Za-z0-9_.\-]+(?::[0-9]{1,5})?)(?=[/?]|\Z)")
_WITH_SCHEME = re.compile(r"(https?|file|ftp|s3|gs)://", re.IGNORECASE)
_MAX_URL_CHARACTERS = 2048
_MAX_FETCHES = 4
_MAX_PARTS = 2
_MAX_PART_HEADERS = 8
_MAX_PART_HEADER_BYTES = 2048


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of file that requests have, in a field of this name."""

    name: str
    media_types: tuple[str, ...]
    limit: str
    """The name of the limit on its bytes."""

    def match_data_url(self, text: str) -> re.Match[str] | None:
        """The beginning of a data URL, up to its base64."""
        types = "|".join(map(re.escape, self.media_types))
        return re.compile(rf"data:(?:{types});base64,").match(text)

    def invalid(self, message: str) -> ApiError:
        """The error for a file of this kind."""
        return ApiError(400, f"invalid_{self.name}", message, param=self.name)

    def checked(self, data: bytes, limits: Limits) -> bytes:
        """The same bytes. Raises ApiError for an empty or too large file."""
        if not data:
            raise self.invalid(f"The {self.name} is empty: it has 0 bytes.")
        if len(data) > self.max_bytes(limits):
            raise self.too_large(limits)
        return data

    def max_bytes(self, limits: Limits) -> int:
        """The largest file."""
        most: int = getattr(limits, self.limit)
        return most

    def too_large(self, limits: Limits) -> ApiError:
        """The error for a larger file."""
        return self.invalid(f"The {self.name} is larger than {self.max_bytes(limits)} bytes.")


_IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp")
IMAGE = FileKind(name="image", media_types=_IMAGE_TYPES, limit="max_image_bytes")
DOCUMENT = FileKind(
    name="document",
    media_types=("application/pdf", "image/tiff", *_IMAGE_TYPES),
    limit="max_document_bytes",
)
VIDEO = FileKind(
    name="video",
    media_types=(
        "video/mp4",
        "video/quicktime",
        "video/webm",
        "video/x-matroska",
        "video/x-msvideo",
    ),
    limit="max_video_bytes",
)


def decode_base64(text: str, limits: Limits, kind: FileKind = IMAGE) -> bytes:
    """The bytes of base64 or of a data URL.

    Strict: the standard alphabet, correct padding, no white space. The size is checked by the
    text's length, before decoding. Raises ApiError.
    """
    if text[:5].lower() == "data:":
        head = kind.match_data_url(text)
        if head is None:
            *types, last = kind.media_types
            raise kind.invalid(
                f"A data URL must begin with data:TYPE;base64, where TYPE is {', '.join(types)} or "
                f"{last}."
            )
        start = head.end()
    else:
        start = 0
        if _WITH_SCHEME.match(text):
            raise kind.invalid(
                f"The {kind.name} is an address, which is not fetched here. Send the base64 of its "
                "bytes, a data URL, or the file itself as the body."
            )
    if (len(text) - start) * 3 // 4 > kind.max_bytes(limits) + 2:
        raise kind.too_large(limits)
    try:
        if (len(text) - start) % 4:  # strict mode accepts an extra "="
            raise ValueError
        data = binascii.a2b_base64(text[start:], strict_mode=True)
    except ValueError:  # includes binascii.Error and the error for text that is not ASCII
        raise kind.invalid(
            f"The {kind.name} is not valid base64. Use the standard alphabet with padding and "
            "without white space."
        ) from None
    return kind.checked(data, limits)


def decode_any_base64(text: str, limits: Limits) -> bytes:
    """Like `decode_base64`, but of any media type, and with white space. Raises ApiError.

    The bytes decide what the file is, as everywhere.
    """
    head = _ANY_DATA_URL.match(text)
    data = "".join(text[head.end() if head else 0 :].split()).rstrip("=")
    data = data.replace("-", "+").replace("_", "/")
    return decode_base64(data + "=" * (-len(data) % 4), limits)


def is_allowed(host: str, domains: Sequence[str]) -> bool:
    """True when a host name is listed, or is a subdomain of a name listed as "*.name".

    >>> is_allowed("a.example.com", ["*.example.com"]), is_allowed("example.com.evil", ["*.com"])
    (True, False)
    """
    host = host.lower()
    for domain in domains:
        if domain.startswith("*."):
            if host.endswith(domain[1:].lower()) and len(host) > len(domain) - 1:
                return True
        elif host == domain.lower():
            return True
    return False


class Fetcher:
    """Fetches images from the domains that the operator allows; by default from none."""

    def __init__(self, settings: Settings) -> None:
        self._domains = settings.image_domains
        self._private_hosts = settings.private_image_hosts
        self._limits = settings.limits
        self._slots = anyio.CapacityLimiter(_MAX_FETCHES)

    async def fetch(self, url: str) -> bytes:
        """The file at an address.

        Raises ApiError, which does not say why fetching failed: that would reveal this machine's
        network to the client.
        """
        if not self._domains and not self._private_hosts:
            raise IMAGE.invalid("This server does not fetch images. Send the image itself.")
        is_short = len(url) <= _MAX_URL_CHARACTERS
        private = _PRIVATE_ADDRESS.match(url) if is_short else None
        is_private = private is not None and private[1].lower() in self._private_hosts
        if not is_private:
            address = _ADDRESS.match(url) if is_short else None
            if address is None:
                raise IMAGE.invalid("An image's address must have the form https://NAME/PATH.")
            if not is_allowed(address[1], self._domains):
                raise IMAGE.invalid("This server does not fetch images from this domain.")

        def fetch() -> bytes:
            return fetch_image_bytes(
                url,
                max_bytes=self._limits.max_image_bytes,
                seconds=self._limits.fetch_seconds,
                allow_private=is_private,
            )

        try:
            data = await anyio.to_thread.run_sync(
                fetch, limiter=self._slots, abandon_on_cancel=True
            )
        except ImageError:
            raise ApiError(
                400,
                "image_fetch_failed",
                "The image could not be fetched from its address. Send the image itself.",
                param="image",
            ) from None
        return IMAGE.checked(data, self._limits)


@dataclass(kw_only=True)
class Form:
    """The two fields of a multipart request."""

    file: bytes | None = None
    request: bytes | None = None


def read_form(body: bytes, content_type: str, limits: Limits, kind: FileKind = IMAGE) -> Form:
    """Read the file field of this kind, and the text field `request`. Raises ApiError.

    Not starlette's `request.form()`: that writes files above 1 MB to disk, accepts forms that are
    cut short, and limits neither the number nor the size of a part's headers.
    """
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if media_type != b"multipart/form-data" or not 1 <= len(boundary) <= 70:
        raise _bad_form("The content type of a form needs a boundary of 1 to 70 characters.")
    parts = _Parts()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_part_data": parts.data,
                "on_end": parts.end,
            },
        )
        parser.write(body)
        parser.finalize()
    except MultipartParseError:
        raise _bad_form("The form is not valid multipart/form-data.") from None
    if not parts.is_complete:
        raise _bad_form("The form is incomplete: its closing boundary is missing.")
    form = Form()
    for part in parts.parts:
        if part.name == kind.name and form.file is None:
            form.file = kind.checked(bytes(part.data), limits)
        elif part.name == "request" and form.request is None:
            form.request = bytes(part.data)
        else:
            raise _bad_form(f"A form has one file field, {kind.name}, and one text field, request.")
    return form


@dataclass(kw_only=True)
class _Part:
    name: str = ""
    data: bytearray = field(default_factory=bytearray)
    num_headers: int = 0
    num_header_bytes: int = 0


class _Parts:
    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.is_complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()

    def begin(self) -> None:
        if len(self.parts) == _MAX_PARTS:
            raise _bad_form(f"A form has at most {_MAX_PARTS} parts.")
        self.parts.append(_Part())

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._header_value += data[start:end]

    def header_end(self) -> None:
        part = self.parts[-1]
        part.num_headers += 1
        if part.num_headers > _MAX_PART_HEADERS:
            raise _bad_form("A part of the form has too many headers.")
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._header_value))
            part.name = options.get(b"name", b"").decode("latin-1")
        self._header_name.clear()
        self._header_value.clear()

    def data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def end(self) -> None:
        self.is_complete = True

    def _count(self, num_bytes: int) -> None:
        part = self.parts[-1]
        part.num_header_bytes += num_bytes
        if part.num_header_bytes > _MAX_PART_HEADER_BYTES:
            raise _bad_form("A part of the form has headers that are too large.")


def _bad_form(message: str) -> ApiError:
    return ApiError(400, "invalid_form", message)
