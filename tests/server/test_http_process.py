"""A server of its own process, attacked through real sockets and real signals."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import select
import signal
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.server.conftest import StartServer
from tests.server.server_process import CANARY, Reply, ServerProcess, read_reply, request
from tests.server.serving import long_answer

KEY = f"{CANARY}-0123456789"
JSON = "Content-Type: application/json\r\n"


def generate(**fields: object) -> bytes:
    return request(
        "POST",
        "/v1/generate",
        json.dumps({"prompt": "caption en", **long_answer(**fields)}).encode(),
        JSON,
    )


def is_closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side ends the connection in time."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([connection], [], [], left)[0]:
            return False
        try:
            if not connection.recv(2**16):
                return True
        except ConnectionError:
            return True
    return False


# C: the protocol, on one server that must be as well after each test as before


@pytest.mark.parametrize(
    "headers",
    [
        "X-Large: " + "a" * 2**20 + "\r\n",
        "X-Large: " + "a" * (20 * 2**20) + "\r\n",
        "".join(f"X-{number}: a\r\n" for number in range(10_000)),
        "X-Large: " + "a" * 17_000 + "\r\n",
        "".join(f"X-{number}: a\r\n" for number in range(100)),
    ],
    ids=["1 MB", "20 MB", "10,000 headers", "17 kB", "103 headers"],
)
def test_c4_too_large_headers_are_431_and_the_end(headers: str, server: ServerProcess) -> None:
    reply = server.get("/health/live", headers)
    assert reply.status == 431
    assert reply.json()["error"]["code"] == "headers_too_large"
    assert "connection: close" in reply.head.lower()


def test_c4_headers_within_the_limits_are_read(server: ServerProcess) -> None:
    assert server.get("/health/live", "X-Large: " + "a" * 15_000 + "\r\n").status == 200
    many = "".join(f"X-{number}: a\r\n" for number in range(97))
    assert server.get("/health/live", many).status == 200


def send_body(server: ServerProcess, head: str, pieces: Sequence[bytes]) -> Reply:
    """Sends a head and a body, as far as the server takes it, and reads the answer."""
    start = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\n{JSON}{head}\r\n".encode()
    with server.connected(start) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        return read_reply(connection)


def test_c5_200_megabytes_are_413_and_take_no_memory(server: ServerProcess) -> None:
    before = server.memory("VmHWM")
    piece = b" " * 2**20
    chunk = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    announced = send_body(server, f"Content-Length: {200 * 2**20}\r\n", [piece] * 200)
    chunked = send_body(server, "Transfer-Encoding: chunked\r\n", [chunk] * 200)
    for reply in (announced, chunked):
        assert reply.status == 413
        assert reply.json()["error"]["code"] == "body_too_large"
    assert server.memory("VmHWM") - before < 150 * 2**20  # one body of 32 MiB, and its copies


def test_c5_a_lying_length_harms_nobody(server: ServerProcess) -> None:
    short = send_body(server, "Content-Length: 5\r\n", [b'{"a": 1}GET / HTTP/1.1'])
    assert short.status == 400
    long = send_body(server, "Content-Length: 100\r\n", [b"{}"])
    assert (long.status, long.json()["error"]["code"]) == (408, "body_timeout")
    for head in ("Content-Length: -1\r\n", "Content-Length: 1\r\nContent-Length: 2\r\n",
                 "Content-Length: x\r\n", "Transfer-Encoding: gzip\r\n"):  # fmt: skip
        assert send_body(server, head, [b"{}"]).status in (400, 411, 501)


def test_c6_slow_and_idle_connections_are_closed_while_others_are_served(
    server: ServerProcess, scene: bytes
) -> None:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connected()) for _ in range(500)]
        half = stack.enter_context(server.connected(b"GET /health/live HT"))
        head = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        stalled = stack.enter_context(server.connected(head + b"Content-Length: 9\r\n\r\n{"))
        kept = stack.enter_context(
            server.connected(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        )
        slow = stack.enter_context(server.connected())
        assert server.ask(scene)
        for byte in b"GET /health/live HTTP/1.1\r\n":
            with contextlib.suppress(ConnectionError):
                slow.sendall(bytes([byte]))
            time.sleep(0.1)
        assert server.ask(scene)
        for connection in (half, stalled, kept, slow, *silent[::50]):
            assert is_closed(connection, 8)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\0" * 100,
        b"",
    ],
    ids=range(11),
)
def test_c4_what_is_not_http_is_400(data: bytes, server: ServerProcess) -> None:
    with server.connected(data) as connection:
        connection.shutdown(socket.SHUT_WR)
        reply = read_reply(connection)
    assert reply.status in (400, 421, 0)
    assert CANARY not in reply.body.decode()


def test_c6_requests_sent_ahead_are_answered_in_order(server: ServerProcess) -> None:
    one = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with server.connected(one * 3 + request("GET", "/v1/limits")) as connection:
        reply = read_reply(connection)
    assert (reply.head + reply.body.decode()).count("HTTP/1.1 200") == 4


def test_c6_asking_for_another_protocol_keeps_no_connection_open(server: ServerProcess) -> None:
    head = "GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    for protocol in ("websocket", "h2c", CANARY):
        with server.connected(f"{head}Upgrade: {protocol}\r\n\r\n".encode()) as connection:
            assert read_reply(connection).status == 200  # read to its end
    assert "WebSocket" not in server.log


@pytest.mark.parametrize("path", ["/", "/page/page.css", "/health/ready", "/v1/models"])
def test_head_is_get_without_the_body(path: str, server: ServerProcess) -> None:
    whole, head = (server.exchange(request(method, path)) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    assert "content-length" in head.head.lower()
    assert whole.body


@pytest.mark.parametrize(
    "ranges", ["bytes=0-3", "bytes=9-", "bytes=x", "cats=1-2", "bytes=1-1,2-2"]
)
def test_ranges_of_the_page_are_the_whole(ranges: str, server: ServerProcess) -> None:
    for path in ("/", "/page/page.css"):
        reply = server.get(path, headers=f"Range: {ranges}\r\n")
        assert (reply.status, reply.body) == (200, server.get(path).body)


def test_d3_fifty_streams_broken_off_leave_nothing(server: ServerProcess) -> None:
    for number in range(50):
        with server.connected(generate(stream=True)) as connection:
            connection.recv(200 + 10 * number)
    deadline = time.monotonic() + 10
    while server.metric("paligemma_running") + server.metric("paligemma_queued"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a3_a_pixel_bomb_takes_no_memory(server: ServerProcess) -> None:
    from tests.server.test_http_api import bomb

    pictures = [base64.b64encode(bomb(side)).decode() for side in (20_000, 13_000)]
    before = server.memory("VmHWM")
    for picture in pictures:
        started = time.monotonic()
        assert server.post("/v1/caption", {"image": picture}).status == 400
        assert time.monotonic() - started < 1
    assert server.memory("VmHWM") - before < 50 * 2**20


def test_a9_a_hundred_megabytes_of_base64_are_refused(server: ServerProcess) -> None:
    before = server.memory("VmHWM")
    reply = server.post("/v1/caption", {"image": "data:image/png;base64," + "A" * 100_000_000})
    assert reply.status == 413
    assert server.post("/v1/caption", {"image": "A" * 30_000_000}).status == 400
    assert server.memory("VmHWM") - before < 250 * 2**20


def test_i7_uploads_stay_in_memory(server: ServerProcess, scene: bytes) -> None:
    parts = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        + scene
        + bytes(2 * 2**20)  # behind a picture's end nothing counts; large ones are often spooled
        + b"\r\n--b--\r\n"
    )
    data = request(
        "POST", "/v1/caption", parts, "Content-Type: multipart/form-data; boundary=b\r\n"
    )
    assert server.exchange(data).status == 200
    opened = {file.path for file in psutil.Process(server.pid).open_files()}
    assert opened <= {str(server.log_file)}
    assert server.temporary_files() == []


def test_d3_clients_that_leave_free_their_places(server: ServerProcess) -> None:
    names = ("paligemma_accepted_total", 'paligemma_answers_total{outcome="cancelled"}')
    before = [server.metric(name) for name in names]
    for stream in (False, True):
        for _ in range(5):
            with server.connected(generate(stream=stream)) as connection:
                if stream:
                    assert connection.recv(100).startswith(b"HTTP/1.1 200")
                else:
                    time.sleep(0.05)
    deadline = time.monotonic() + 5
    while server.metric("paligemma_running") + server.metric("paligemma_queued"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [server.metric(name) for name in names] == [number + 10 for number in before]


def test_d1_ten_times_too_much_is_refused_quickly_and_the_rest_is_served(
    start_server: StartServer, scene: bytes
) -> None:
    limits = [f"--limit={text}" for text in ("max_running=4", "max_queued=8",
                                             "streams_per_client=1000")]  # fmt: skip
    server = start_server(*limits)
    server.ask(scene)
    server.take_level(scene)
    data = generate(max_tokens=20)

    def one(_: int) -> tuple[int, float, str]:
        started = time.monotonic()
        reply = server.exchange(data, 60)
        return reply.status, time.monotonic() - started, reply.head

    with ThreadPoolExecutor(60) as pool:
        found = list(pool.map(one, range(120)))
    statuses = [status for status, _, _ in found]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 12
    assert statuses.count(429) >= 40
    waits = [
        re.search(r"(?im)^retry-after: (\d+)\s*$", head)
        for status, _, head in found
        if status == 429
    ]
    slowest = max(seconds for _, seconds, _ in found)
    assert all(wait and 1 <= int(wait[1]) <= math.ceil(slowest) for wait in waits)
    server.check_alive(scene)
    server.kill()


# C1, C2: keys


@pytest.fixture(scope="module")
def keyed(start_server: StartServer) -> ServerProcess:
    return start_server(env={"PALIGEMMA_API_KEYS": f"{KEY},another-key-of-16"}, wait=False)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: a/?x=\r\n",
        b"GET //v1/models HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /v1/../health/live HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /health/live/../../v1/models HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /v1%2fmodels HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /health%2Flive%00 HTTP/1.1\r\nHost: localhost\r\n",
        b"GET http://localhost/health/live HTTP/1.1\r\nHost: localhost\r\n",
        b"GET http://evil/v1/models HTTP/1.1\r\nHost: localhost/health/live\r\n",
        b"GET /v1/models#/health/live HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /v1/models;/health/live HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Path: /health/live\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong-key-of-it\r\n",
        b"GET /metrics HTTP/1.0\r\n",
    ],
    ids=range(13),
)
def test_c2_no_spelling_of_a_request_goes_without_a_key(data: bytes, keyed: ServerProcess) -> None:
    reply = keyed.exchange(data + b"Connection: close\r\n\r\n")
    assert reply.status == 401
    assert reply.json()["error"]["type"] == "authentication_error"


def test_c1_liveness_is_open_and_a_key_opens_the_rest(keyed: ServerProcess) -> None:
    assert keyed.get("/health/live").status == 200
    assert keyed.get("/v1/limits").status == 401
    assert keyed.get("/v1/limits", f"Authorization: Bearer {KEY}\r\n").status == 200
    assert keyed.get("/v1/limits", "Authorization: Bearer another-key-of-16\r\n").status == 200


def test_i1_keys_prompts_images_and_names_are_in_no_log(keyed: ServerProcess) -> None:
    key = f"Authorization: Bearer {KEY}\r\n"
    deadline = time.monotonic() + 60
    while keyed.get("/health/ready", key).status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    picture = base64.b64encode(CANARY.encode()).decode()
    extra = f"{key}X-Request-Id: {CANARY} x\r\nUser-Agent: {CANARY}\r\nCookie: {CANARY}\r\n"
    for document in (
        {"prompt": CANARY, "max_tokens": 3},
        {"prompt": CANARY, "max_tokens": 3, "stream": True},
        {"prompt": f"{CANARY} " * 1200},
        {"prompt": CANARY, "image": picture},
        {"prompt": CANARY, "image": {"url": f"https://{CANARY}/?sig={CANARY}"}},
        {"prompt": "a", CANARY: 1},
        {"prompt": "a", "model": CANARY},
    ):
        reply = keyed.post(f"/v1/generate?{CANARY}", document, extra)
        assert reply.status in (200, 400, 404)
    assert keyed.get(f"/{CANARY}", extra).status == 404
    assert keyed.exchange(f"GET /{CANARY} HTTP/1.1\r\n{CANARY}\r\n\r\n".encode()).status == 400
    assert CANARY not in keyed.log
    assert picture not in keyed.log
    assert len(keyed.log_lines()) == len(keyed.log.splitlines())
    assert CANARY not in keyed.get("/metrics", key).body.decode()


# D4, D5: signals


def wait_for_metric(server: ServerProcess, name: str, value: float) -> None:
    deadline = time.monotonic() + 20
    while server.metric(name) < value:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.02)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


SLOW = "forward*0=sleep:0.1"


def test_d4_sigterm_finishes_what_was_accepted_and_takes_nothing_new(
    start_server: StartServer, no_children_left: None
) -> None:
    server = start_server(
        "--limit", "max_running=2", "--limit", "drain_seconds=3", faults=SLOW, is_copy=False
    )  # fmt: skip
    port = server.port
    with ThreadPoolExecutor(4) as pool:
        whole = pool.submit(server.exchange, generate(max_tokens=10), 30)
        stream = pool.submit(server.exchange, generate(stream=True), 30)
        wait_for_metric(server, "paligemma_running", 2)
        queued = pool.submit(server.exchange, generate(max_tokens=4), 30)
        wait_for_metric(server, "paligemma_queued", 1)
        server.signal(signal.SIGTERM)
        started = time.monotonic()
        time.sleep(0.3)
        ready = server.get("/health/ready")
        assert (ready.status, ready.json()["status"]) == (503, "draining")
        assert server.get("/health/live").status == 200
        new = server.exchange(generate(max_tokens=4))
        assert (new.status, new.json()["error"]["code"]) == (503, "unavailable")
        assert "retry-after" in new.head.lower()
        assert server.wait(15) == 0
        seconds = time.monotonic() - started
        assert whole.result().status == 200
        assert queued.result().status == 200
        frames = stream.result().body
        assert b"event: error" in frames
        assert frames.endswith(b"data: [DONE]\n\n")
    assert 2.5 < seconds < 12  # 3 s of draining, and the rest on a busy machine
    assert is_free(port)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_d4_a_second_signal_ends_it_now(second: signal.Signals, start_server: StartServer) -> None:
    server = start_server(faults=SLOW)
    with server.connected(generate(stream=True)) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        server.signal(signal.SIGTERM)
        time.sleep(0.3)
        started = time.monotonic()
        server.signal(second)
        assert server.wait(20) == 1
        assert time.monotonic() - started < 10  # the drain would take 30 s


def test_d5_sigkill_leaves_nothing_behind(
    start_server: StartServer, no_children_left: None
) -> None:
    server = start_server(faults=SLOW)
    port = server.port
    children = psutil.Process(server.pid).children(recursive=True)
    with server.connected(generate(stream=True)) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        server.signal(signal.SIGKILL)
        assert server.wait(5) == -signal.SIGKILL
        assert is_closed(connection, 2)
    assert not any(child.is_running() for child in children)
    assert is_free(port)
    assert server.temporary_files() == []


def test_d6_a_process_whose_engine_dies_says_so_and_ends(start_server: StartServer) -> None:
    server = start_server(faults="step@3=raise", is_copy=False)
    reply = server.exchange(generate())
    assert (reply.status, reply.json()["error"]["code"]) == (503, "unavailable")
    assert server.get("/health/live").status == 503
    assert server.get("/health/ready").status == 503
    assert server.wait(20) == 1


# D7, I3: the start


def test_d7_d4_a_server_that_loads_says_so_and_idle_ends_at_once(
    start_server: StartServer,
) -> None:
    server = start_server(faults="load=sleep:1.5", wait=False)
    port = server.port
    ready = server.get("/health/ready")
    assert (ready.status, ready.json()["status"]) == (503, "loading")
    assert server.get("/health/live").status == 200
    reply = server.exchange(generate(max_tokens=2))
    assert (reply.status, reply.json()["error"]["type"]) == (503, "server_error")
    server.wait_until_ready()
    with server.connect() as kept:
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait(10) == 0
        assert time.monotonic() - started < 5
        assert is_free(port)
        assert is_closed(kept, 1)
    assert server.log_lines()[-1]["event"] == "ended"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_d4_a_server_that_loads_ends_at_once(
    number: signal.Signals, start_server: StartServer
) -> None:
    server = start_server(faults="load=sleep:20", wait=False)
    assert server.get("/health/ready").status == 503
    started = time.monotonic()
    server.signal(number)
    assert server.wait(10) == 0
    assert time.monotonic() - started < 4
    assert server.log_lines()[-1]["event"] == "ended"


def test_d7_what_goes_wrong_at_the_start_is_one_line_and_an_exit_code(
    start_server: StartServer, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        broken = [
            (start_server(*options, wait=False), words)
            for options, words in (
                (["--model", str(tmp_path / "empty")], "empty"),
                (["--adapter", f"a={tmp_path / 'empty'}"], "empty"),
                (["--host", "203.0.113.9"], "203.0.113.9"),
                (["--port", port], port),
            )
        ]
        for server, words in broken:
            assert server.wait(60) == 2
            errors = [line for line in server.log.splitlines() if line[:1] not in "{W"]
            assert len(errors) == 1
            assert errors[0].startswith("error: ")
            assert words in errors[0]


def test_i3_it_binds_to_loopback_and_connects_to_nobody(server: ServerProcess) -> None:
    connections = psutil.Process(server.pid).net_connections("inet")
    listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server.port)]
    assert {c.raddr.ip for c in connections if c.raddr} <= {"127.0.0.1"}
