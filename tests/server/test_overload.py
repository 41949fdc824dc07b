"""Overload: refusals at the headers, by expected wait; few files; odd connections."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch
from starlette.types import ASGIApp

from paligemma.errors import BusyError
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.server.app import create_app
from paligemma.server.errors import AbortedResponseError
from paligemma.server.jobs import ServedRate, Ticket
from paligemma.server.logs import RepeatFilter
from paligemma.server.settings import KeyRing, Limits, Settings
from tests.agreement.tiny_predictor import build_predictor
from tests.server.asgi import call
from tests.server.conftest import StartServer
from tests.server.server_process import ServerProcess, read_reply
from tests.server.serving import endless, prompt, serving, slow, until

JSON = {"content-type": "application/json"}
SLOW_STEPS = "step@1=sleep:3"


def test_the_expected_wait_follows_the_served_rate() -> None:
    rate = ServedRate()
    assert rate.seconds(5, 0.0) is None
    rate.add("a", 10, 0.0)
    for number in range(1, 9):
        rate.remove("a", number * 0.5, is_served=True)
    assert rate.seconds(4, 4.0) == pytest.approx(2.0)
    assert rate.seconds(4, 12.0) == pytest.approx(4.0)  # nobody was served for 8 s
    rate.remove("a", 4.0, is_served=False)
    rate.remove("a", 4.0, is_served=True)
    assert rate.seconds(4, 1000.0) == pytest.approx(4 * 4.0 / 9)  # idle time does not count
    rate.add("a", 5, 1000.0)
    assert (rate.num_ahead("a"), rate.num_ahead("b")) == (5, 1)  # clients take turns


def test_a_slow_minute_is_forgotten() -> None:
    rate = ServedRate()
    rate.add("a", 3, 0.0)
    for number in range(1, 4):
        rate.remove("a", number * 10.0, is_served=True)
    assert rate.seconds(1, 30.0) == pytest.approx(10.0)
    rate.add("a", 1, 500.0)
    rate.remove("a", 500.1, is_served=True)
    assert rate.seconds(1, 500.1) == pytest.approx(0.1)


def test_a_second_look_is_not_counted_again_and_goes_first(
    tiny_tokenizer: Tokenizer,
) -> None:
    order: list[str] = []

    async def main() -> None:
        limits = Limits(max_running=1, max_queued=50, max_wait_seconds=60)
        async with serving(build_predictor(tiny_tokenizer), limits, faults=slow()) as service:

            async def ask(name: str, ticket: Ticket) -> None:
                await ticket.wait()
                order.append(name)

            tickets = [("first", service.submit(prompt(max_tokens=2)))]
            tickets += [("later", service.submit(prompt(max_tokens=2))) for _ in range(9)]
            again = service.submit_all([prompt(max_tokens=2)], is_continuation=True)
            tickets.append(("again", again[0]))
            await asyncio.gather(*(ask(*each) for each in tickets))

    asyncio.run(main())
    assert "again" in order[:5]  # some had been prepared already


def test_at_ten_times_capacity_goodput_stays_and_waits_are_bounded(
    tiny_tokenizer: Tokenizer,
) -> None:
    """A step takes 20 ms and an answer two steps of two rows: about 50 answers per second."""
    limits = Limits(max_running=2, max_queued=1000, max_wait_seconds=0.5, queue_seconds=60)
    waits: list[float] = []
    retries: list[float] = []

    async def main() -> None:
        async with serving(build_predictor(tiny_tokenizer), limits, faults=slow()) as service:

            async def ask() -> None:
                start = time.monotonic()
                try:
                    await service.submit(prompt(max_tokens=2)).wait()
                except BusyError as error:
                    retries.append(error.retry_after or 0.0)
                    return
                waits.append(time.monotonic() - start)

            async def load(number: int, gap: float) -> float:
                before, start = len(waits), time.monotonic()
                tasks = []
                for _ in range(number):
                    tasks.append(asyncio.create_task(ask()))
                    await asyncio.sleep(gap)
                await asyncio.gather(*tasks)
                return (len(waits) - before) / (time.monotonic() - start)

            capacity = await load(40, 0.0)
            waits.clear()
            goodput = await load(800, 0.002)
            assert goodput >= 0.8 * capacity
            assert sorted(waits)[int(0.99 * len(waits))] < 0.5 * 2 + 0.3
            assert len(waits) < 400
            assert all(0 <= seconds < 60 for seconds in retries)

    asyncio.run(main())


def test_a_request_is_refused_before_its_body_is_read(mini: Predictor, make_service: Any) -> None:
    service = make_service(Limits(max_running=1, max_queued=1))
    app = create_app(service, Settings(limits=service.limits))
    num_read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal num_read
        num_read += 1
        yield b"{}"

    async def main() -> None:
        tickets = service.submit_all([endless()] * 2)
        answer = await call(app, "POST", "/v1/generate", body(), JSON)
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["connection"] == "close"
        assert num_read == 0
        for ticket in tickets:
            ticket.cancel()
        await until(lambda: service.stats().waiting + service.stats().running == 0)
        answer = await call(app, "POST", "/v1/generate", body(), JSON)
        assert (answer.status, num_read) == (400, 1)

    asyncio.run(main())


def early(
    path: str = "/v1/generate", *lines: str, method: str = "POST", end: str = "\r\n"
) -> bytes:
    """The first bytes of a request as they arrive at a connection."""
    head = [f"{method} {path} HTTP/1.1", "Host: localhost:8000", *lines]
    return "\r\n".join(
        [*head, "Content-Type: application/json", "Content-Length: 9000", end]
    ).encode()


def test_an_early_refusal_says_what_the_application_would(make_service: Any) -> None:
    service = make_service(Limits(max_running=1, max_queued=1))
    app = create_app(service, Settings(limits=service.limits))

    async def main() -> None:
        assert app.early_refusal(early(), "10.0.0.1") is None
        tickets = service.submit_all([endless()] * 2)
        refused = service.stats().rejected
        given = app.early_refusal(early("/v1/generate", "X-Request-ID: mine"), "10.0.0.1")
        expected = await call(
            app, "POST", "/v1/generate", b"{}", {**JSON, "x-request-id": "mine"}, client="10.0.0.1"
        )
        assert given is not None
        head, _, body = given.partition(b"\r\n\r\n")
        status_line, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        del headers["date"]
        assert status_line == "HTTP/1.1 429 Too Many Requests"
        assert headers == expected.headers
        assert body == expected.body
        assert service.stats().rejected == refused + 2
        metrics = (await call(app, "GET", "/metrics")).body.decode()
        line = 'paligemma_http_requests_total{method="POST",route="/v1/generate",status="429"} 1.0'
        assert line in metrics
        for data in (
            early(method="GET"),
            early("/v1/unknown"),
            early("/health/live"),
            early("/v1/generate", "Origin: http://localhost:8000"),
            early(end=""),  # its headers are not complete
            early().replace(b"1.1", b"1.0"),
            b"\x16\x03\x01",
        ):
            assert app.early_refusal(data, "10.0.0.1") is None
        for path in ("/v1/generate/", "/v1/detect?phrases=frog", "/v1/chat/completions"):
            assert app.early_refusal(early(path), "10.0.0.1") is not None
        for ticket in tickets:
            ticket.cancel()
        await until(lambda: service.stats().waiting + service.stats().running == 0)
        assert app.early_refusal(early(), "10.0.0.1") is None

    asyncio.run(main())


def test_an_early_refusal_counts_the_requests_of_a_key(make_service: Any) -> None:
    keys = KeyRing(["first-key-1234567", "second-key-1234567"])
    service = make_service(Limits(streams_per_client=1))
    app = create_app(service, Settings(limits=service.limits, keys=keys))

    def ask(key: str) -> bytes | None:
        data = early("/v1/generate", f"Authorization: Bearer {key}")
        return app.early_refusal(data, "10.0.0.1")

    async def main() -> None:
        client = keys.name_of(b"first-key-1234567")
        assert client is not None
        ticket = service.submit(endless(client=client))
        assert ask("first-key-1234567") is not None
        assert ask("second-key-1234567") is None
        assert ask("unknown-key-1234567") is None
        assert app.early_refusal(early(), client) is None  # 401 is for the application to say
        ticket.cancel()

    asyncio.run(main())


def test_under_overload_the_engine_leaves_a_cpu_to_the_refusals(make_service: Any) -> None:
    service = make_service(Limits(max_running=1, max_queued=1))
    service._num_threads, service._num_threads_under_overload = 2, 1
    numbers: list[int] = []
    take = service._loop.engine.step

    def step() -> Any:
        numbers.append(torch.get_num_threads())
        return take()

    service._loop.engine.step = step

    async def main() -> None:
        tickets = service.submit_all([endless()] * 2)
        for _ in range(40):
            with pytest.raises(BusyError):
                service.check_admission("10.0.0.1")
        await until(lambda: 1 in numbers)
        for ticket in tickets:
            ticket.cancel()
        await asyncio.sleep(1.1)
        await service.submit(prompt()).wait()
        assert numbers[-1] == 2

    asyncio.run(main())


def test_a_large_body_holds_its_memory_from_the_start(mini_service: Any) -> None:
    limits = Limits(max_body_bytes=1000)
    app = create_app(mini_service, Settings(limits=limits))
    go = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        await go.wait()
        yield b" " * 900 + b"{}" + b" " * 98

    async def main() -> None:
        headers = {**JSON, "content-length": "1000"}
        calls = [
            asyncio.create_task(call(app, "POST", "/v1/caption", body(), headers))
            for _ in range(12)
        ]
        await asyncio.sleep(0.1)
        go.set()
        statuses = sorted([(await one).status for one in calls])
        assert statuses == [400] * 8 + [429] * 4

    asyncio.run(main())


def test_pages_of_allowed_origins_may_call(mini_service: Any) -> None:
    app = create_app(mini_service, Settings(origins=("http://localhost:3000",)))

    async def main() -> None:
        origin = {"origin": "http://localhost:3000"}
        asked = {**origin, "access-control-request-method": "POST"}
        answer = await call(app, "OPTIONS", "/v1/caption", headers=asked)
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == origin["origin"]
        for path, status in (("/v1/limits/", 200), ("/v1/none", 404)):
            answer = await call(app, "GET", path, headers=origin)
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == origin["origin"]
        answer = await call(app, "GET", "/v1/limits", headers={"origin": "http://localhost:3001"})
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers

    asyncio.run(main())


def test_an_image_file_is_a_request(mini_app: ASGIApp, mini: Predictor, scene: bytes) -> None:
    async def main() -> None:
        headers = {"content-type": "image/png"}
        path = "/v1/detect?phrases=frog&phrases=mushroom&max_objects=5"
        answer = await call(mini_app, "POST", path, scene, headers)
        expected = mini.detect(scene, ["frog", "mushroom"], max_objects=5)
        assert answer.json()["result"]["text"] == expected.text
        answer = await call(mini_app, "POST", "/v1/detect?phrase=frog", scene, headers)
        assert "'phrase'. The nearest known one is phrases" in answer.error["message"]

    asyncio.run(main())


@pytest.mark.parametrize("separate", [None, True, False])
@pytest.mark.parametrize("phrases", ["frog, mushroom, unicorn", "Frogs; the mushroom"])
def test_detection_is_the_same_over_http_and_in_python(
    mini_app: ASGIApp, mini: Predictor, scene: bytes, phrases: str, separate: bool | None
) -> None:
    async def main() -> None:
        document = {
            "image": base64.b64encode(scene).decode(),
            "phrases": phrases,
            "separate": separate,
        }
        answer = await call(mini_app, "POST", "/v1/detect", json.dumps(document).encode(), JSON)
        result = answer.json()["result"]
        expected = mini.detect(scene, phrases, separate=separate).to_dict()
        for name in ("text", "phrases", "missing", "notes", "prompt"):
            assert result[name] == expected[name]
        assert [o["label"] for o in result["objects"]] == [o["label"] for o in expected["objects"]]

    asyncio.run(main())


def test_bad_lines_of_a_batch_have_a_status_of_their_own(mini_app: ASGIApp, scene: bytes) -> None:
    good = {"id": "a", "task": "caption", "image": base64.b64encode(scene).decode()}
    lines = ["{", json.dumps(good), json.dumps({"task": "ocr"}), json.dumps(good), "5"]

    async def main() -> None:
        headers = {"content-type": "application/jsonl"}
        answer = await call(mini_app, "POST", "/v1/batch", "\n".join(lines).encode(), headers)
        assert answer.status == 200
        got = [json.loads(line) for line in answer.body.splitlines() if line.strip()]
        assert sorted((o["status"], o["id"] or "", o.get("line", 0)) for o in got) == [
            (200, "a", 0),
            (400, "", 1),
            (400, "", 3),
            (400, "", 5),
            (400, "a", 4),
        ]

    asyncio.run(main())


def test_lines_that_strangers_cause_are_limited() -> None:
    now = [0.0]
    repeat = RepeatFilter(most=3, clock=lambda: now[0])

    def record(status: int, method: str = "POST", level: int = 20) -> logging.LogRecord:
        made = logging.LogRecord("paligemma.server", level, "", 1, "request", None, None)
        made.fields = {"status": status, "method": method}
        return made

    assert [repeat.filter(record(401)) for _ in range(5)] == [True] * 3 + [False] * 2
    assert all(repeat.filter(record(200)) for _ in range(9))
    now[0] = 61
    after = record(401)
    assert repeat.filter(after)
    assert after.suppressed == 2  # type: ignore[attr-defined]
    # Anyone may read the page or ask for the health, and ask a server that is loading.
    assert [repeat.filter(record(200, "GET")) for _ in range(5)] == [True] * 3 + [False] * 2
    assert [repeat.filter(record(503)) for _ in range(5)] == [True] * 3 + [False] * 2
    assert all(repeat.filter(record(500, level=logging.ERROR)) for _ in range(9))


def test_a_request_that_was_cut_short_is_logged_once() -> None:
    error = AbortedResponseError()
    line = logging.LogRecord(
        "uvicorn.error", 40, "", 1, "Exception in ASGI", None, (type(error), error, None)
    )
    assert not RepeatFilter().filter(line)


# Processes


def test_two_lengths_of_a_body_are_refused_and_the_connection_closed(server: ServerProcess) -> None:
    smuggled = b"GET /v1/limits HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = (
        b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    with server.connected(head + smuggled) as connection:
        reply = read_reply(connection)
    assert reply.status == 400
    assert b"max_queued" not in reply.body


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_closes_its_half_is_answered(
    version: str, server: ServerProcess, scene: bytes
) -> None:
    body = json.dumps({"image": base64.b64encode(scene).decode()}).encode()
    head = (
        f"POST /v1/caption HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with server.connected(head.encode() + body) as connection:
        connection.shutdown(socket.SHUT_WR)
        data = b""
        while piece := connection.recv(2**16):
            data += piece
    assert version == "1.1" or b"100 Continue" not in data
    answer = data.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"text"' in answer


def test_clients_that_are_gone_are_forgotten(server: ServerProcess, scene: bytes) -> None:
    document = {"image": base64.b64encode(scene).decode(), "phrases": ["frog", "boat"]}
    body = json.dumps(document).encode()
    head = (
        "POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    before = len(server.log_lines())
    for _ in range(3):
        with server.connected(head.encode() + body):
            time.sleep(0.03)
    time.sleep(5)  # asyncio warns of the fifth write to a connection that is lost
    lines = server.log_lines()[before:]
    assert 499 in {line.get("status") for line in lines}
    assert {line["event"] for line in lines} == {"request"}


@pytest.mark.parametrize(
    "rest", [b"Content-Length: 50\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"]
)
def test_half_a_body_is_the_clients_end(server: ServerProcess, rest: bytes) -> None:
    head = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    before = len(server.log_lines())
    with server.connected(head + rest):
        pass
    deadline = time.monotonic() + 10
    while not (lines := [x for x in server.log_lines()[before:] if x["event"] == "request"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [(line["status"], line["level"]) for line in lines] == [(499, "info")]


def test_a_second_signal_answers_503_as_json(start_server: StartServer, scene: bytes) -> None:
    server = start_server(faults="step@1=sleep:1.5")
    body = json.dumps({"image": base64.b64encode(scene).decode()}).encode()
    head = (
        "POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    connections = [server.connect() for _ in range(10)]
    for connection in connections:
        connection.sendall(head.encode() + body)
    time.sleep(0.5)
    server.signal(signal.SIGTERM)
    time.sleep(0.1)
    server.signal(signal.SIGTERM)
    start = time.monotonic()
    replies = [read_reply(connection) for connection in connections]
    for connection in connections:
        connection.close()
    assert server.wait(5) == 1
    assert time.monotonic() - start < 3
    for reply in replies:
        assert reply.status in (200, 503)
        assert reply.status == 200 or reply.json()["error"]["code"] == "unavailable"
    assert any(reply.status == 503 for reply in replies)
    assert not any(line["level"] == "error" for line in server.log_lines())


@pytest.mark.parametrize("num_signals", [1, 2])
@pytest.mark.parametrize("path", ["/v1/caption", "/v1/batch"])
def test_an_upload_when_the_server_ends_is_answered_503(
    path: str, num_signals: int, start_server: StartServer
) -> None:
    server = start_server()
    media_type = "application/jsonl" if path == "/v1/batch" else "application/json"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
        "Content-Length: 999\r\nConnection: close\r\n\r\n{"
    )
    with server.connected(head.encode()) as connection:
        time.sleep(0.3)
        for _ in range(num_signals):
            server.signal(signal.SIGTERM)
            time.sleep(0.1)
        reply = read_reply(connection)
    assert server.wait(10) == num_signals - 1
    assert (reply.status, reply.json()["error"]["code"]) == (503, "unavailable")
    lines = server.log_lines()
    assert [x["status"] for x in lines if x.get("method") == "POST"] == [503]
    assert not any(line["level"] == "error" for line in lines)


def test_a_refused_connection_is_closed_after_its_body(start_server: StartServer) -> None:
    server = start_server("--limit", "max_running=1", "--limit", "max_queued=1", faults=SLOW_STEPS)
    asked = json.dumps({"prompt": "caption en", "max_tokens": 100, "temperature": 2.0}).encode()
    head = f"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(asked)}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\n\r\n" + asked
    with server.connected(request), server.connected(request):
        while server.get("/metrics").body.count(b"paligemma_accepted_total 2.0") == 0:
            time.sleep(0.02)
        large = b"x" * 5_000_000
        head = (
            f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(large)}\r\n\r\n"
        )
        with server.connected(b"") as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"live"}'):
                answer += connection.recv(2**16)
            connection.sendall(head.encode() + large)  # on the connection that was kept
            reply = read_reply(connection)
            assert (reply.status, reply.json()["error"]["code"]) == (429, "overloaded")
            assert connection.recv(1) == b""
    lines = [line for line in server.log_lines() if line.get("status") == 429]
    assert [(line["route"], line["code"]) for line in lines] == [("/v1/caption", "overloaded")]


def test_few_file_descriptors_leave_room_for_honest_clients(tmp_path: Any) -> None:
    log = tmp_path / "log"
    command = f"ulimit -n 256; exec {sys.executable} -m paligemma serve --port 0"
    with log.open("wb") as file:
        process = subprocess.Popen(["bash", "-c", command], stdout=file, stderr=file)
    idle: list[socket.socket] = []
    try:
        server = ServerProcess.__new__(ServerProcess)
        server.process, server.log_file, server._port = process, log, None
        server.wait_until_ready()
        before = len(log.read_bytes())
        for _ in range(400):
            idle.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        assert server.get("/v1/limits").status == 200
        assert len(log.read_bytes()) - before < 10_000
        assert not any(line["event"] == "out_of_file_descriptors" for line in server.log_lines())
    finally:
        for connection in idle:
            connection.close()
        process.kill()
        process.wait(10)
