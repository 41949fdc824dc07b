"""Load and life over HTTP, in this process: overload, deadlines, hang-ups, faults, batches."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import uvicorn
import uvicorn.server
from starlette.types import ASGIApp

from paligemma.predictor import Predictor
from paligemma.server import images, sse
from paligemma.server.app import create_app
from paligemma.server.process import limited_protocol
from paligemma.server.routes import native
from paligemma.server.service import Service
from paligemma.server.settings import Limits, Settings
from tests.server.asgi import Answer, call
from tests.server.conftest import MakeService, ready_service
from tests.server.faults import Fault, FaultyService, PlantedFaultError
from tests.server.serving import long_answer, until
from tests.server.test_http_api import encoded

JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/jsonl"}
SLOW = Fault(point="forward", action="sleep", seconds=0.03, times=None)


def asked(**fields: Any) -> bytes:
    return json.dumps({"prompt": "caption en", "max_tokens": 4, **fields}).encode()


async def ask(app: ASGIApp, body: bytes | None = None, **options: Any) -> Answer:
    return await call(app, "POST", "/v1/generate", body or asked(), JSON, **options)


async def idle(service: Service, seconds: float = 5.0) -> None:
    """Waits until nothing is under way."""
    await until(lambda: not _under_way(service), seconds, "the end of all work")


async def running(service: Service, number: int = 1) -> None:
    """Waits until so many are answered at a time."""
    await until(lambda: service.stats().running >= number, 10, f"{number} running")


def _under_way(service: Service) -> int:
    return (stats := service.stats()).waiting + stats.running


@pytest.fixture(scope="module")
def busy_service(mini: Predictor) -> Iterator[FaultyService]:
    """Room for two answers at a time and four waiting."""
    limits = Limits(max_running=2, max_queued=4, streams_per_client=100)
    with ready_service(mini, limits) as service:
        yield service


@pytest.fixture
def busy(busy_service: FaultyService) -> Any:
    busy_service.faults.clear()
    yield busy_service
    busy_service.faults.clear()


def test_d1_exactly_the_surplus_is_refused_at_once(busy: FaultyService) -> None:
    busy.faults.plant(SLOW)
    app = create_app(busy, Settings(limits=busy.limits))

    async def run() -> tuple[list[Answer], list[float]]:
        seconds: list[float] = []

        async def one(client: str) -> Answer:
            started = time.monotonic()
            answer = await ask(app, client=client)
            if answer.status == 429:
                seconds.append(time.monotonic() - started)
            return answer

        return await asyncio.gather(*(one(f"10.0.0.{n}") for n in range(60))), seconds

    answers, seconds = asyncio.run(run())
    statuses = [answer.status for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (6, 54)
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.error["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert sorted(seconds)[len(seconds) // 2] < 0.25  # 60 at a time: each takes its part of this
    assert asyncio.run(ask(app)).status == 200


def test_d1_one_request_with_several_questions_counts_as_many(
    busy: FaultyService, scene: bytes
) -> None:
    app = create_app(busy, Settings(limits=busy.limits))

    def questions(number: int) -> Answer:
        document = {"image": encoded(scene), "questions": ["is it red?"] * number, "max_tokens": 1}
        return asyncio.run(call(app, "POST", "/v1/ask", json.dumps(document).encode(), JSON))

    assert questions(6).status == 200
    assert questions(7).status == 429
    assert busy.stats().waiting == 0


def test_d2_an_answer_that_takes_too_long_is_504_and_frees_its_place(
    make_service: MakeService,
) -> None:
    service = make_service(Limits(request_seconds=0.4), "forward*0=sleep:0.1")
    app = create_app(service, Settings(limits=service.limits))
    whole = asyncio.run(ask(app, asked(**long_answer())))
    assert (whole.status, whole.error["code"]) == (504, "timeout")
    stream = asyncio.run(ask(app, asked(**long_answer(stream=True))))
    assert stream.status == 200
    *_, (name, data), done = stream.events
    assert (name, data["error"]["code"], done) == ("error", "timeout", ("done", None))
    asyncio.run(idle(service))


def test_d2_a_wait_that_takes_too_long_is_503(make_service: MakeService) -> None:
    limits = Limits(max_running=1, queue_seconds=0.3)
    service = make_service(limits, "forward*0=sleep:0.1")
    app = create_app(service, Settings(limits=limits))

    async def run() -> list[Answer]:
        first = asyncio.ensure_future(ask(app, asked(**long_answer(max_tokens=12))))
        await asyncio.sleep(0.2)
        second = await ask(app, client="10.0.0.2")
        return [await first, second]

    first, second = asyncio.run(run())
    assert first.status == 200
    assert (second.status, second.error["code"]) == (503, "queue_timeout")
    assert "retry-after" in second.headers
    asyncio.run(idle(service))


@pytest.mark.parametrize("stream", [False, True])
def test_d3_a_client_that_leaves_frees_its_place(stream: bool, busy: FaultyService) -> None:
    busy.faults.plant(SLOW)
    app = create_app(busy, Settings(limits=busy.limits))
    before = busy.stats()

    async def run() -> None:
        gone = asyncio.Event()
        body = asked(**long_answer(stream=stream))
        asking = asyncio.ensure_future(ask(app, body, hang_up=gone))
        await running(busy)
        gone.set()
        await asyncio.wait_for(asking, 2)
        await idle(busy, 2)

    asyncio.run(run())
    assert busy.stats().cancelled == before.cancelled + 1
    assert busy.stats().answered == before.answered


def test_d3_a_client_that_leaves_the_queue_frees_its_place(busy: FaultyService) -> None:
    busy.faults.plant(SLOW)
    app = create_app(busy, Settings(limits=busy.limits))
    before = busy.stats()

    async def run() -> None:
        long = [
            asyncio.ensure_future(ask(app, asked(**long_answer(max_tokens=30)))) for _ in range(2)
        ]
        await running(busy, 2)
        gone = asyncio.Event()
        waiting = asyncio.ensure_future(ask(app, hang_up=gone))
        await until(lambda: busy.stats().waiting > 0, 10, "one in the queue")
        gone.set()
        await asyncio.wait_for(waiting, 2)
        assert busy.stats().running == 2
        assert [answer.status for answer in await asyncio.gather(*long)] == [200, 200]
        await idle(busy)

    asyncio.run(run())
    assert busy.stats().cancelled == before.cancelled + 1


def test_d3_a_client_that_leaves_while_its_image_is_fetched_asks_nothing(
    busy: FaultyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(url: str, **_: object) -> bytes:
        time.sleep(0.5)
        return b"never used"

    monkeypatch.setattr(images, "fetch_image_bytes", fetch)
    app = create_app(busy, Settings(limits=busy.limits, image_domains=("example.com",)))
    before = busy.stats()

    async def run() -> float:
        gone = asyncio.Event()
        body = asked(image={"url": "https://example.com/a.png"})
        asking = asyncio.ensure_future(ask(app, body, hang_up=gone))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        gone.set()
        await asking
        return time.monotonic() - started

    assert asyncio.run(run()) < 0.3
    assert busy.stats().accepted == before.accepted


def test_d3_a_client_that_leaves_while_its_image_is_decoded_frees_its_place(
    busy: FaultyService, scene: bytes
) -> None:
    busy.faults.plant(Fault(point="decode", action="sleep", seconds=0.3))
    app = create_app(busy, Settings(limits=busy.limits))

    async def run() -> None:
        gone = asyncio.Event()
        # Another picture than the service has seen: its pixels are known by their bytes.
        body = asked(image=encoded(scene + b"\0"))
        asking = asyncio.ensure_future(ask(app, body, hang_up=gone))
        await asyncio.sleep(0.1)
        gone.set()
        await asyncio.wait_for(asking, 2)
        await idle(busy)

    before = busy.stats()
    asyncio.run(run())
    assert busy.stats().cancelled == before.cancelled + 1


def test_d3_normal_ends_cancel_nothing(busy: FaultyService) -> None:
    app = create_app(busy, Settings(limits=busy.limits))
    before = busy.stats()
    for stream in (False, True):
        assert asyncio.run(ask(app, asked(stream=stream))).status == 200
    asyncio.run(idle(busy))
    after = busy.stats()
    assert (after.cancelled, after.answered) == (before.cancelled, before.answered + 2)


def test_d4_while_draining_new_work_is_503_and_accepted_work_ends_in_words(
    make_service: MakeService,
) -> None:
    service = make_service(Limits(), "forward*0=sleep:0.05")
    app = create_app(service, Settings())

    async def run() -> tuple[Answer, Answer, Answer, Answer, Answer]:
        short = asyncio.ensure_future(ask(app, asked(max_tokens=4)))
        long = asyncio.ensure_future(ask(app, asked(**long_answer())))
        stream = asyncio.ensure_future(ask(app, asked(**long_answer(stream=True))))
        await running(service, 3)
        draining = asyncio.ensure_future(service.drain(1.0))
        await asyncio.sleep(0.05)
        ready = await call(app, "GET", "/health/ready")
        new = await ask(app)
        live = await call(app, "GET", "/health/live")
        assert live.status == 200
        await draining
        return ready, new, await short, await long, await stream

    ready, new, short, long, stream = asyncio.run(run())
    assert (ready.status, ready.json()) == (503, {"status": "draining"})
    assert (new.status, new.error["code"]) == (503, "unavailable")
    assert "retry-after" in new.headers
    assert short.status == 200
    assert (long.status, long.error["code"]) == (503, "unavailable")
    assert stream.events[-2][0] == "error"
    assert stream.events[-1] == ("done", None)


def test_d6_a_dead_engine_is_seen_and_told(make_service: MakeService) -> None:
    service = make_service(Limits(), "step@2=raise")
    app = create_app(service, Settings())
    answers = [asyncio.run(ask(app, asked(max_tokens=40))) for _ in range(2)]
    assert [answer.status for answer in answers] == [503, 503]
    for path, state in (("/health/live", "dead"), ("/health/ready", "dead")):
        answer = asyncio.run(call(app, "GET", path))
        assert (answer.status, answer.json()["status"]) == (503, state)


def test_d6_a_hung_engine_is_seen_and_told(make_service: MakeService) -> None:
    limits = Limits(stall_seconds=0.4)
    service = make_service(limits, "step@2=sleep:3")
    app = create_app(service, Settings(limits=limits))
    started = time.monotonic()
    answer = asyncio.run(ask(app, asked(max_tokens=40)))
    assert answer.status == 503
    assert time.monotonic() - started < 2.5
    assert asyncio.run(call(app, "GET", "/health/live")).status == 503
    assert asyncio.run(ask(app)).status == 503


def test_d8_no_memory_in_a_step_fails_no_request(make_service: MakeService) -> None:
    service = make_service(Limits(), "forward@2=oom")
    app = create_app(service, Settings())

    async def run() -> list[Answer]:
        return await asyncio.gather(*(ask(app) for _ in range(4)))

    assert [answer.status for answer in asyncio.run(run())] == [200] * 4
    assert asyncio.run(call(app, "GET", "/health/ready")).status == 200


def test_d9_a_request_that_breaks_is_alone_in_it(busy: FaultyService) -> None:
    app = create_app(busy, Settings(limits=busy.limits))
    alone = asyncio.run(ask(app)).json()["result"]
    busy.faults.plant(Fault(point="tokenize", action="raise", times=1, at=1))

    async def run() -> list[Answer]:
        return await asyncio.gather(*(ask(app) for _ in range(3)))

    answers = asyncio.run(run())
    statuses = sorted(answer.status for answer in answers)
    assert statuses == [200, 200, 500]
    for answer in answers:
        if answer.status == 200:
            assert answer.json()["result"]["token_ids"] == alone["token_ids"]
        else:
            assert answer.error["code"] == "internal_error"


@pytest.mark.parametrize("point", ["fetch", "send"])
def test_d9_a_fault_on_the_way_in_or_out_ends_that_request_alone(
    point: Literal["fetch", "send"], busy: FaultyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(busy, Settings(limits=busy.limits, image_domains=("example.com",)))

    def fail(*_: object, **__: object) -> None:
        raise PlantedFaultError

    with monkeypatch.context() as patched:
        if point == "fetch":
            patched.setattr(images.Fetcher, "fetch", fail)
        else:
            patched.setattr(native, "event_frame", fail)
        image = {"image": {"url": "https://example.com/a"}} if point == "fetch" else {}
        answer = asyncio.run(ask(app, asked(stream=point == "send", **image)))
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    asyncio.run(idle(busy))
    assert asyncio.run(ask(app)).status == 200


def test_e5_nan_in_one_row_ends_that_request_alone(busy: FaultyService) -> None:
    app = create_app(busy, Settings(limits=busy.limits))
    busy.faults.plant(Fault(point="row", action="nan", times=1))

    async def run() -> list[Answer]:
        return await asyncio.gather(*(ask(app) for _ in range(2)))

    answers = asyncio.run(run())
    codes = sorted(a.error["code"] if a.status != 200 else "" for a in answers)
    assert codes == ["", "numerical_error"]


def test_d12_a_client_that_takes_nothing_is_dropped() -> None:
    """On a real connection: what is ready fills all buffers, and then nothing is taken."""
    told = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def pour() -> None:
            while True:
                await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})

        pouring = asyncio.ensure_future(pour())
        while (await receive())["type"] != "http.disconnect":
            pass
        pouring.cancel()
        told.set()

    async def run() -> float:
        protocol = limited_protocol(Limits(body_seconds=0.5))
        config = uvicorn.Config(endless, http=protocol, ws="none", lifespan="off", log_config=None)
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        started = time.monotonic()
        await asyncio.wait_for(told.wait(), 20)
        seconds = time.monotonic() - started
        writer.close()
        server.close()
        return seconds

    assert 0.4 < asyncio.run(run()) < 15


def test_d12_silence_is_filled_with_comments(
    busy: FaultyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.05)
    busy.faults.plant(Fault(point="forward", action="sleep", seconds=0.3, at=1, times=1))
    app = create_app(busy, Settings(limits=busy.limits))
    answer = asyncio.run(ask(app, asked(stream=True)))
    assert answer.body.count(b": still here\n\n") >= 3
    assert answer.events[-1] == ("done", None)


def test_d12_many_streams_at_a_time_equal_those_alone(busy: FaultyService) -> None:
    app = create_app(busy, Settings(limits=busy.limits))
    prompts = ["caption en", "caption de", "ocr", "answer en frog?", "detect frog", "what?"]
    bodies = [asked(prompt=prompt, max_tokens=6, stream=True) for prompt in prompts]
    alone = [asyncio.run(ask(app, body)).events[-2][1]["result"] for body in bodies]

    async def run() -> list[Answer]:
        return await asyncio.gather(*(ask(app, body) for body in bodies))

    together = [answer.events[-2][1]["result"] for answer in asyncio.run(run())]
    assert [r["token_ids"] for r in together] == [r["token_ids"] for r in alone]


# Batches


def batch(app: ASGIApp, *lines: dict[str, Any], **options: Any) -> dict[str, dict[str, Any]]:
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    answer = asyncio.run(call(app, "POST", "/v1/batch", body, LINES, **options))
    assert answer.status == 200, answer.body
    found = [json.loads(line) for line in answer.body.splitlines() if line.strip()]
    return {line["id"]: line for line in found}


def line(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "task": "generate", "prompt": "caption en", "max_tokens": 4, **fields}


def test_a_batch_answers_each_line_once_and_errors_harm_no_other(
    busy: FaultyService, scene: bytes
) -> None:
    app = create_app(busy, Settings(limits=busy.limits))
    good = [line(str(number), seed=number) for number in range(20)]
    found = batch(
        app,
        *good,
        {"id": "picture", "task": "detect", "phrases": "frog", "image": encoded(scene)},
        {"id": "no picture", "task": "caption", "image": encoded(b"x")},
        {"id": "no task", "task": "sing"},
        {"id": "no field", "task": "caption", "verse": 1},
        {"id": "no model", "task": "generate", "prompt": "a", "model": "other"},
        line("stream", stream=True),
    )
    assert len(found) == 26
    assert all(found[one["id"]]["status"] == 200 for one in good)
    assert found["picture"]["result"]["phrases"] == ["frog"]
    statuses = {name: one["status"] for name, one in found.items() if one["status"] != 200}
    assert statuses == {
        "no picture": 400, "no task": 400, "no field": 400, "no model": 404, "stream": 400,
    }  # fmt: skip
    assert found["no picture"]["error"]["code"] == "invalid_image"
    one = asyncio.run(ask(app)).json()["result"]
    assert found["0"]["result"]["token_ids"] == one["token_ids"]


def test_a_batch_sent_again_does_nothing_twice(busy: FaultyService) -> None:
    app = create_app(busy, Settings(limits=busy.limits))
    lines = [line(f"again {number}") for number in range(6)]
    first = batch(app, *lines[:4])
    accepted = busy.stats().accepted
    second = batch(app, *lines)
    assert busy.stats().accepted == accepted + 2
    assert {name: second[name] for name in first} == first
    changed = batch(app, {**lines[0], "max_tokens": 2})
    assert len(changed["again 0"]["result"]["token_ids"]) == 2
    # Another client gets nothing of it.
    assert busy.stats().accepted == accepted + 3
    batch(app, lines[0], client="10.1.1.1")
    assert busy.stats().accepted == accepted + 4


def test_a_batch_that_broke_off_goes_on_where_it_was(busy: FaultyService) -> None:
    busy.faults.plant(SLOW)
    app = create_app(busy, Settings(limits=busy.limits))
    lines = [line(f"broken {number}", max_tokens=2) for number in range(12)]
    body = b"\n".join(json.dumps(one).encode() for one in lines)
    got: list[bytes] = []

    async def run() -> None:
        gone = asyncio.Event()

        def seen(data: bytes) -> None:
            got.extend(data.splitlines())
            if len(got) >= 3:
                gone.set()

        await call(app, "POST", "/v1/batch", body, LINES, hang_up=gone, seen=seen)
        await idle(busy)

    asyncio.run(run())
    assert 3 <= len(got) < 12
    accepted = busy.stats().accepted
    found = batch(app, *lines)
    assert len(found) == 12
    assert busy.stats().accepted - accepted <= 12 - len(got)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b'{"id": "a"}\n' * 4097,
        b"\n" * 20_000_000,
    ],
    ids=range(4),
)
def test_a_batch_without_lines_or_with_too_many_is_refused(body: bytes, mini_app: ASGIApp) -> None:
    started = time.process_time()
    answer = asyncio.run(call(mini_app, "POST", "/v1/batch", body, LINES))
    assert answer.status == 400
    assert answer.error["code"] in ("invalid_batch", "invalid_json")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "bad",
    [
        b'{"task": "caption"}',
        b'{"id": "", "task": "caption"}',
        b'{"id": 1, "task": "caption"}',
        b'{"id": "a", "task": "caption"}',  # once more
        b"not json",
        b"[1]",
        b'{"id": "' + b"a" * 129 + b'"}',
    ],
    ids=range(7),
)
def test_a_bad_line_of_a_batch_gets_its_own_error(
    bad: bytes, mini_app: ASGIApp, scene: bytes
) -> None:
    image = encoded(scene)
    good = [
        json.dumps({"id": name, "task": "caption", "image": image, "max_new_tokens": 2}).encode()
        for name in ("a", "b")
    ]
    answer = asyncio.run(
        call(mini_app, "POST", "/v1/batch", b"\n".join([good[0], bad, good[1]]), LINES)
    )
    assert answer.status == 200
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert sorted(line["status"] for line in lines) == [200, 200, 400]
    [error] = [line["error"] for line in lines if line["status"] == 400]
    assert error["code"] in ("invalid_batch", "invalid_json")


def test_a_batch_must_say_what_it_is(mini_app: ASGIApp) -> None:
    answer = asyncio.run(call(mini_app, "POST", "/v1/batch", b'{"id": "a"}', JSON))
    assert answer.status == 415
