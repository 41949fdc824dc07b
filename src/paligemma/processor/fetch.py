"""Download an image from a public URL: the only module that opens sockets for users' input.

Rules: http or https, no redirects, no proxies, no credentials. The host name is resolved once, all
of its addresses must be public, and the connection goes to one of the addresses checked, which
prevents DNS rebinding. The size is enforced while the body streams. One deadline covers the lookup,
the connection, the headers and the body.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urlsplit

from paligemma.errors import ImageError

MAX_FETCH_BYTES = 16 * 2**20
FETCH_SECONDS = 10.0

# Networks that Python considers global although they embed an arbitrary IPv4 address: NAT64, 6to4,
# Teredo and IPv4-compatible addresses.
_TRANSLATED_NETWORKS = tuple(
    ipaddress.IPv6Network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")
)
_HOST = re.compile(r"[A-Za-z0-9._\-]+|[0-9A-Fa-f:.]+")


def fetch_image_bytes(
    url: str,
    *,
    max_bytes: int = MAX_FETCH_BYTES,
    seconds: float = FETCH_SECONDS,
    allow_private: bool = False,
) -> bytes:
    """Download the body of a URL: at most `max_bytes`, within `seconds` in all.

    `allow_private` is for hosts that the operator trusts by name: their addresses may be private.

    Raises ImageError for a URL that is not allowed, a status other than 200, a body that is too
    large or truncated, and on timeout.
    """
    deadline = time.monotonic() + seconds
    parts, port = _checked_url(url)
    try:
        host = parts.hostname or ""
        if allow_private:
            address = _look_up(host, port, deadline)[0]
        else:
            address = _public_address(host, port, deadline, url)
        with _connect(address, port, parts, deadline) as connection:
            return _body(connection, parts, max_bytes, deadline, url)
    except TimeoutError as error:
        raise ImageError(
            f"{_quoted(url)} did not deliver the image within {seconds:g} seconds. "
            "Download it yourself and pass the file."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ImageError(
            f"{_quoted(url)} could not be fetched: the connection failed or the response is "
            "invalid. Download it yourself and pass the file."
        ) from error


def is_public_address(address: str) -> bool:
    """True for an address on the public internet; False for private, local and translated ones.

    >>> is_public_address("93.184.215.14"), is_public_address("64:ff9b::7f00:1")
    (True, False)
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip.ipv4_mapped is not None or any(ip in network for network in _TRANSLATED_NETWORKS)
    ):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _checked_url(url: str) -> tuple[SplitResult, int]:
    refused = ImageError(
        f"{_quoted(url)} is not a URL that can be fetched. Expected http:// or https://, a host "
        "name and a path, in ASCII, without user name or password."
    )
    if not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        raise refused
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise refused from error
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or port == 0:
        raise refused
    if not parts.hostname or not _HOST.fullmatch(parts.hostname):
        raise refused
    return parts, port or (443 if parts.scheme == "https" else 80)


def _public_address(host: str, port: int, deadline: float, url: str) -> str:
    addresses = _look_up(host, port, deadline)
    if not addresses or not all(is_public_address(address) for address in addresses):
        raise ImageError(
            f"{_quoted(url)} does not resolve to a public address, so it is not fetched. "
            "For an image on this machine or network, pass the file."
        )
    return addresses[0]


def _look_up(host: str, port: int, deadline: float) -> list[str]:
    """Resolve a name to all of its addresses, in a thread, because lookups have no timeout."""
    addresses: list[str] = []
    failure: list[Exception] = []

    def look_up() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses.extend(str(row[4][0]) for row in rows)
        except (OSError, UnicodeError) as error:
            failure.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_seconds_left(deadline))
    if thread.is_alive():
        raise TimeoutError
    if failure:
        raise OSError("the host name could not be resolved") from failure[0]
    return addresses


def _connect(address: str, port: int, parts: SplitResult, deadline: float) -> socket.socket:
    connection = socket.create_connection((address, port), timeout=_seconds_left(deadline))
    if parts.scheme == "http":
        return connection
    try:
        connection.settimeout(_seconds_left(deadline))
        context = ssl.create_default_context()
        # The certificate is checked against the host name, not against the address.
        return context.wrap_socket(connection, server_hostname=parts.hostname)
    except BaseException:
        connection.close()
        raise


def _body(
    connection: socket.socket, parts: SplitResult, max_bytes: int, deadline: float, url: str
) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = (
        f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: paligemma\r\n"
        "Accept: image/*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    connection.settimeout(_seconds_left(deadline))
    connection.sendall(request.encode("ascii"))
    response = http.client.HTTPResponse(DeadlineSocket(connection, deadline), method="GET")  # type: ignore[arg-type]
    with response:
        response.begin()
        content_length = response.length  # None without a valid Content-Length
        _check_headers(response, content_length, max_bytes, url)
        body = bytearray()
        while chunk := response.read(min(2**16, max_bytes + 1 - len(body))):
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes, url)
        if content_length is not None and len(body) != content_length:
            raise ImageError(
                f"{_quoted(url)} delivered {len(body)} of {content_length} bytes. Try again."
            )
    return bytes(body)


def _check_headers(
    response: http.client.HTTPResponse, content_length: int | None, max_bytes: int, url: str
) -> None:
    if 300 <= response.status < 400:
        raise ImageError(
            f"{_quoted(url)} redirects to another URL, and redirects are not followed. "
            "Pass the final URL."
        )
    if response.status != 200:
        raise ImageError(
            f"{_quoted(url)} returned HTTP status {response.status}; expected 200. Check the URL."
        )
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ImageError(
            f"{_quoted(url)} was sent with a Content-Encoding that was not requested. "
            "Download it yourself and pass the file."
        )
    if content_length is not None and content_length > max_bytes:
        raise _too_large(max_bytes, url)


def _too_large(max_bytes: int, url: str) -> ImageError:
    return ImageError(
        f"{_quoted(url)} is larger than {max_bytes} bytes, the limit for URLs. "
        "Download it yourself and pass the file."
    )


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _quoted(url: str) -> str:
    return repr(url if len(url) <= 200 else url[:200] + "...")


class DeadlineSocket:
    """The part of a socket that HTTPResponse uses, with one deadline for all reads."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._connection, self._deadline))


class _DeadlineReader(io.RawIOBase):
    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        # Keeps the connection open for a reader whose caller has closed it, as urllib does.
        self._raw = connection.makefile("rb", buffering=0)

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        # A socket's timeout restarts at every read, so one byte per second would never time out.
        self._connection.settimeout(_seconds_left(self._deadline))
        return self._raw.readinto(buffer) or 0
