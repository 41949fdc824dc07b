"""Pictures in requests: strict base64 and data URLs, forms, and the one guarded fetcher."""

from __future__ import annotations

import asyncio
import base64
import resource
import socket
import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.errors import ImageError
from paligemma.processor.fetch import fetch_image_bytes
from paligemma.server import images
from paligemma.server.errors import ApiError
from paligemma.server.images import Fetcher, decode_base64, is_allowed, read_form
from paligemma.server.settings import Limits, Settings

LIMITS = Limits()
SMALL = Limits(max_image_bytes=64)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


# Base64 and data URLs


@given(st.binary(min_size=1, max_size=64))
def test_a9_base64_and_data_urls_give_the_bytes_back(data: bytes) -> None:
    assert decode_base64(encoded(data), SMALL) == data
    assert decode_base64(f"data:image/png;base64,{encoded(data)}", SMALL) == data


@given(st.text(max_size=80))
def test_a9_any_text_gives_bytes_or_a_clear_error(text: str) -> None:
    for value in (text, "data:" + text, "data:image/png;base64," + text):
        with suppress(ApiError):
            assert encoded(decode_base64(value, SMALL)) in value


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png,AAAA",
        "data:image/png;base64;AAAA",
        "data:;base64,AAAA",
        "data:video/jpeg;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/tiff;base64,AAAA",
        "data:image/png;charset=utf-8;base64,AAAA",
        "data:image/png;base64,AAAA,AAAA",
        "data:image/png;base64, AAAA",
        "DATA:image/png;base64,AAAA",
        "data:image/png;base64,",
        "",
        "AAA",
        "AA=",
        "AAAA=",
        "AA==AA==",
        "AAA\n",
        "AA AA",
        "__--",
        "AAAÀ",
        "AAA\u0661",
        "file:///etc/passwd",
        "https://example.com/cat.png",
    ],
)
def test_a9_everything_but_strict_base64_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode_base64(text, LIMITS)
    assert caught.value.status == 400
    assert len(text) < 8 or text[4:] not in caught.value.message


@pytest.mark.parametrize("text", ["https://example.com/cat.png", "FILE:///etc/passwd", "s3://a/b"])
def test_an_address_in_place_of_base64_is_called_one(text: str) -> None:
    with pytest.raises(ApiError, match="is an address, which is not fetched here"):
        decode_base64(text, LIMITS)


def test_a9_the_size_counts_before_anything_is_decoded() -> None:
    assert len(decode_base64(encoded(bytes(64)), SMALL)) == 64
    with pytest.raises(ApiError, match="64 bytes"):
        decode_base64(encoded(bytes(65)), SMALL)
    huge, huge_url = "A" * 100_000_000, "data:image/png;base64," + "*" * 30_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ApiError, match="larger"):
        decode_base64(huge, LIMITS)
    with pytest.raises(ApiError, match="larger"):
        decode_base64(huge_url, LIMITS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


# Addresses


GOOD = Fetcher(Settings(limits=LIMITS, image_domains=("good.example.com",)))


def test_b1_nothing_is_fetched_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = Fetcher(Settings(limits=LIMITS))
    # The loop has sockets of its own; it is those of the fetcher that may not be.
    monkeypatch.setattr(images, "fetch_image_bytes", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(ApiError, match="does not fetch images"):
        asyncio.run(fetcher.fetch("https://example.com/cat.png"))


@pytest.mark.parametrize(
    "url",
    [
        "http://good.example.com/cat.png",
        "https://good.example.com.evil.org/cat.png",
        "https://evilgood.example.com/cat.png",
        "https://example.com/cat.png",
        "https://user@good.example.com/cat.png",
        "https://good.example.com:pw@127.0.0.1/cat.png",
        "https://good.example.com:8443/cat.png",
        "https://127.0.0.1/cat.png",
        "https://[::1]/cat.png",
        "https://good.example.com\\@127.0.0.1/cat.png",
        "https:good.example.com/cat.png",
        "https://good.example.com:99999/cat.png",
        "https://[good.example.com/cat.png",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file://good.example.com/../etc/passwd",
        "/etc/passwd",
        "ftp://good.example.com/cat.png",
        "https://good.example.com/" + "a" * 3000,
    ],
)
def test_b5_b7_addresses_that_are_not_on_the_list_open_no_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "fetch_image_bytes", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(ApiError) as caught:
        asyncio.run(GOOD.fetch(url))
    assert caught.value.status == 400
    assert "example" not in caught.value.message
    assert "passwd" not in caught.value.message


@given(st.from_regex(r"[a-z0-9.\-]{1,20}", fullmatch=True))
def test_b5_only_the_name_itself_and_labels_under_a_star_are_allowed(host: str) -> None:
    assert is_allowed(host, ["good.com"]) == (host == "good.com")
    under_star = host.endswith(".good.com") and host != ".good.com"
    assert is_allowed(host, ["*.good.com"]) == under_star


def test_b5_letter_case_does_not_matter_and_suffixes_are_not_names() -> None:
    assert is_allowed("Good.COM", ["good.com"])
    assert is_allowed("a.b.good.com", ["*.GOOD.com"])
    for host in ("evilgood.com", "good.com.evil", "good.com.", "good.co", "xn--gd-1ia.com"):
        assert not is_allowed(host, ["good.com", "*.good.com"])


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "64:ff9b::7f00:1", "fd00::1"]
)
def test_b2_b3_an_allowed_name_that_leads_inside_is_not_connected_to(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: object, **__: object) -> list[Any]:
        public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", 443))
        return [public, (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(ApiError) as caught:
        asyncio.run(GOOD.fetch("https://good.example.com/a"))
    assert (caught.value.status, caught.value.code) == (400, "image_fetch_failed")


def test_b4_b6_whatever_fails_out_there_gets_the_same_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = set()
    for reason in ("redirects to another", "is larger than", "did not deliver", "Content-Encoding"):

        def fail(url: str, *, reason: str = reason, **_: object) -> bytes:
            raise ImageError(f"{url!r} {reason}")

        monkeypatch.setattr(images, "fetch_image_bytes", fail)
        with pytest.raises(ApiError) as caught:
            asyncio.run(GOOD.fetch("https://good.example.com/a"))
        words.add((caught.value.status, caught.value.code, caught.value.message))
    assert len(words) == 1


def test_b6_the_fetcher_is_given_the_limits_on_size_and_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def fetch(url: str, **options: Any) -> bytes:
        asked.update(options)
        return b"12345"

    monkeypatch.setattr(images, "fetch_image_bytes", fetch)
    limits = Limits(max_image_bytes=5, fetch_seconds=3.0)
    fetcher = Fetcher(Settings(limits=limits, image_domains=("*.example.com",)))
    assert asyncio.run(fetcher.fetch("https://a.example.com/cat?sig=x")) == b"12345"
    assert asked == {"max_bytes": 5, "seconds": 3.0, "allow_private": False}


# Forms


def form(*parts: tuple[str, bytes], boundary: str = "xyz", end: str = "--") -> tuple[bytes, str]:
    body = b"".join(
        b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary.encode(), head.encode(), data)
        for head, data in parts
    )
    body += f"--{boundary}{end}\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


IMAGE = 'Content-Disposition: form-data; name="image"; filename="../../etc/cat.png"'
REQUEST = 'Content-Disposition: form-data; name="request"'


def test_trusted_hosts_of_the_own_network_are_named_with_their_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, bool]] = []

    def fetch(url: str, *, allow_private: bool, **_: Any) -> bytes:
        seen.append((url, allow_private))
        return b"12345"

    monkeypatch.setattr(images, "fetch_image_bytes", fetch)
    hosts = ("minio:9000", "10.0.0.7")
    fetcher = Fetcher(Settings(image_domains=("good.com",), private_image_hosts=hosts))
    taken = ["http://minio:9000/a", "https://MINIO:9000/a", "http://10.0.0.7?a"]
    for url in (*taken, "https://good.com/a"):
        assert asyncio.run(fetcher.fetch(url)) == b"12345"
    assert seen == [*((url, True) for url in taken), ("https://good.com/a", False)]
    for url in (
        "http://minio/a",
        "http://minio:9001/a",
        "http://minio:9000@evil/a",
        "http://good.com/a",
    ):
        with pytest.raises(ApiError):
            asyncio.run(fetcher.fetch(url))


def test_a_private_address_is_connected_to_only_where_that_is_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nGO")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{port}/a"
        with pytest.raises(ImageError):
            fetch_image_bytes(url)
        assert fetch_image_bytes(url, allow_private=True) == b"GO"
        thread.join(5)


def test_a_form_gives_its_image_and_its_request() -> None:
    found = read_form(*form((IMAGE, b"\x00\r\n--xy\x89PNG"), (REQUEST, b'{"lang": "de"}')), LIMITS)
    assert found.file == b"\x00\r\n--xy\x89PNG"
    assert found.request == b'{"lang": "de"}'


def test_c13_the_file_name_is_not_needed_and_not_used() -> None:
    plain = 'Content-Disposition: form-data; name="image"'
    assert read_form(*form((plain, b"1")), LIMITS).file == b"1"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        form(*[(REQUEST, b"1")] * 10_000),
        form((IMAGE, b"1"), (IMAGE, b"2")),
        form((IMAGE, b"1"), (REQUEST, b"1"), (REQUEST, b"2")),
        form(('Content-Disposition: form-data; name="other"', b"1")),
        form(("X-A: " + "a" * 100_000 + "\r\n" + IMAGE, b"1")),
        form(("\r\n".join(f"X-{i}: a" for i in range(100)) + "\r\n" + IMAGE, b"1")),
        form(("X: y", b"1")),
        form((IMAGE, b"")),
        form((IMAGE, b"1"), end=""),
        (b"--xyz", "multipart/form-data; boundary=xyz"),
        (b"", "multipart/form-data; boundary=xyz"),
        (b"nothing of the kind", "multipart/form-data; boundary=xyz"),
        (form((IMAGE, b"1"))[0], "multipart/form-data"),
        (form((IMAGE, b"1"))[0], "multipart/form-data; boundary=" + "x" * 71),
        (form((IMAGE, b"1"))[0], "multipart/form-data; boundary="),
    ],
    ids=range(15),
)
def test_c13_odd_forms_are_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_form(body, content_type, LIMITS)
    assert caught.value.status == 400


@given(st.binary(max_size=200), st.integers(0, 200))
def test_c13_damaged_forms_never_raise_anything_else(noise: bytes, at: int) -> None:
    body, content_type = form((IMAGE, b"12345"), (REQUEST, b"{}"))
    for damaged in (body[:at], body[:at] + noise + body[at:], noise):
        with suppress(ApiError):
            assert read_form(damaged, content_type, LIMITS).file != b""


def test_an_image_in_a_form_is_bounded_like_any_other() -> None:
    assert read_form(*form((IMAGE, bytes(64))), SMALL).file == bytes(64)
    with pytest.raises(ApiError, match="64 bytes"):
        read_form(*form((IMAGE, bytes(65))), SMALL)
