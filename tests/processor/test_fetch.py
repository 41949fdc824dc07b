"""The fetcher: which addresses it refuses, and how it ends with servers that misbehave."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from paligemma.errors import ImageError
from paligemma.processor import fetch
from paligemma.processor.fetch import fetch_image_bytes, is_public_address

Handler = Callable[[socket.socket], None]


class Server:
    """Answers every connection on a loopback port with `handler`, and counts them."""

    def __init__(self, handler: Handler) -> None:
        self.hits = 0
        self.request = b""
        self._handler = handler
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._stopped = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopped:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.hits += 1
            with connection:
                connection.settimeout(5)
                self.request = connection.recv(2**16)
                with suppress(OSError):  # the client hung up
                    self._handler(connection)

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()
        self._listener.close()


@contextmanager
def serving(handler: Handler | bytes) -> Iterator[Server]:
    if isinstance(handler, bytes):
        answer = handler
        server = Server(lambda connection: connection.sendall(answer))
    else:
        server = Server(handler)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def loopback_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "is_public_address", lambda address: True)


def resolver(*addresses: str) -> Callable[..., list[Any]]:
    def look_up(host: str, port: int, *_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    return look_up


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07::1"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fd00::1",
        "fe80::1",
        "fe80::1%eth0",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2002:808:808::",
        "2001:0:1::1",
    ],
)
def test_private_and_translated_addresses_are_not_public(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "[fd00::8]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "127.0.0.1.",
    ],
)
def test_no_spelling_of_a_private_address_is_connected_to(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connected(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", connected)
    with pytest.raises(ImageError):
        fetch_image_bytes(f"http://{host}/cat.png")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.png",
        "file:///etc/passwd",
        "http:///a.png",
        "http://user@example.org/a.png",
        "http://example.org@127.0.0.1/a.png",
        "http://127.0.0.1\\@example.org/a.png",
        "http://①②⑦.⓪.⓪.①/a.png",
        "http://example.org/a b.png",
        "http://example.org/a\r\nHost: other",
        "http://example.org:99999/a.png",
        "http://example.org:0/a.png",
        "http://[::1/a.png",
        "http://[fe80::1%25eth0]/a.png",
        "http://exa_mple!.org/a.png",
    ],
)
def test_odd_addresses_are_refused_before_any_lookup(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_up(*_: object, **__: object) -> None:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    with pytest.raises(ImageError, match="not a URL that can be fetched"):
        fetch_image_bytes(url)


def test_one_private_address_among_several_is_enough_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(b"") as server:
        monkeypatch.setattr(socket, "getaddrinfo", resolver("93.184.215.14", "127.0.0.1"))
        with pytest.raises(ImageError, match="public address"):
            fetch_image_bytes(f"http://example.org:{server.port}/cat.png")
        assert server.hits == 0


def test_the_name_is_looked_up_once_and_the_checked_address_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])
    connected: list[Any] = []

    def connect(address: Any, **_: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        return resolver(*next(answers))(host, port)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ImageError, match="could not be fetched"):
        fetch_image_bytes("https://example.org/cat.png")
    assert connected == [("93.184.215.14", 443)]
    assert next(answers) == ["127.0.0.1"]


@pytest.mark.usefixtures("loopback_allowed")
def test_a_body_arrives_whole() -> None:
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    )
    until_close = b"HTTP/1.0 200 OK\r\nContent-Length: many\r\n\r\nhello"
    for answer in (plain, chunked, until_close):
        with serving(answer) as server:
            assert fetch_image_bytes(f"http://127.0.0.1:{server.port}/a/b.png?c=d") == b"hello"
            lines = server.request.split(b"\r\n")
            assert lines[0] == b"GET /a/b.png?c=d HTTP/1.1"
            assert f"Host: 127.0.0.1:{server.port}".encode() in lines


@pytest.mark.usefixtures("loopback_allowed")
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", "redirect"),
        (b"HTTP/1.1 301 Moved\r\nLocation: file:///etc/passwd\r\n\r\n", "redirect"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "status 204"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx", "larger than 1000"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001, "larger than 1000"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "5 of 9 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx", "Content-Encoding"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", "could not be fetched"),
        (b"SSH-2.0-OpenSSH\r\n", "could not be fetched"),
        (b"", "could not be fetched"),
    ],
)
def test_answers_that_are_no_image_are_refused(answer: bytes, message: str) -> None:
    with serving(answer) as server, pytest.raises(ImageError, match=message):
        fetch_image_bytes(f"http://127.0.0.1:{server.port}/cat.png", max_bytes=1000)


@pytest.mark.usefixtures("loopback_allowed")
def test_an_endless_body_ends_at_the_limit() -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 2**16)

    with serving(endless) as server, pytest.raises(ImageError, match="larger than"):
        fetch_image_bytes(f"http://127.0.0.1:{server.port}/cat.png", max_bytes=2**20)


@pytest.mark.usefixtures("loopback_allowed")
@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"])
def test_a_byte_now_and_then_does_not_stretch_the_deadline(start: bytes) -> None:
    def slow(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.02)

    with serving(slow) as server:
        begun = time.monotonic()
        with pytest.raises(ImageError, match=r"within 0\.3 seconds"):
            fetch_image_bytes(f"http://127.0.0.1:{server.port}/cat.png", seconds=0.3)
        assert time.monotonic() - begun < 1


def test_a_slow_lookup_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def slow(*_: object, **__: object) -> list[Any]:
        released.wait(5)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    begun = time.monotonic()
    with pytest.raises(ImageError, match=r"within 0\.1 seconds"):
        fetch_image_bytes("http://example.org/cat.png", seconds=0.1)
    assert time.monotonic() - begun < 1
    released.set()


@pytest.mark.usefixtures("loopback_allowed")
def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    with serving(b"") as proxy, serving(answer) as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert fetch_image_bytes(f"http://127.0.0.1:{server.port}/cat.png") == b"hello"
        assert proxy.hits == 0


@pytest.mark.usefixtures("loopback_allowed")
def test_the_certificate_is_asked_of_the_name_not_of_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[Any] = []

    def wrap(self: ssl.SSLContext, connection: socket.socket, **options: Any) -> ssl.SSLSocket:
        assert self.verify_mode == ssl.CERT_REQUIRED
        assert self.check_hostname
        names.append(options["server_hostname"])
        raise ssl.SSLError("no")

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap)
    monkeypatch.setattr(socket, "getaddrinfo", resolver("127.0.0.1"))
    real_connect = socket.create_connection
    with serving(b"") as server:
        monkeypatch.setattr(
            socket,
            "create_connection",
            lambda address, timeout: real_connect(("127.0.0.1", server.port), timeout),
        )
        with pytest.raises(ImageError, match="could not be fetched"):
            fetch_image_bytes("https://example.org/cat.png")
    assert names == ["example.org"]
