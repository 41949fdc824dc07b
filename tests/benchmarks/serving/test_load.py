"""The load generator, against servers whose answers and delays are known."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h11
import pytest

from benchmarks.serving.load import (
    MIX,
    Arrival,
    Kind,
    Outcome,
    Target,
    choose_mix,
    draw_images,
    poisson_arrivals,
    request_body,
    run_load,
    wait_until_ready,
)
from benchmarks.serving.report import draw, percentile, run_report, summarize, table_rows
from paligemma.errors import OptionError

SHORT = Kind(name="ask", fields={"question": "how many?"}, weight=1)
Answering = Callable[[int], tuple[float, int | None]]


async def with_server(
    answering: Answering, speak: Callable[[str], Any], *, at_once: int = 100
) -> tuple[Any, list[bytes]]:
    """Runs a server that answers its n-th request after (seconds, status), or hangs up.

    At most `at_once` requests are worked on at a time. Returns the result of `speak`, and bodies.
    """
    bodies: list[bytes] = []
    room = asyncio.Semaphore(at_once)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the test is over
                await talk(reader, writer)
        finally:
            writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = h11.Connection(h11.SERVER)
        body = b""
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                protocol.receive_data(await reader.read(2**16))
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                bodies.append(body)
                body = b""
                async with room:
                    seconds, status = answering(len(bodies) - 1)
                    await asyncio.sleep(seconds)
                if status is None:
                    break
                answer = b'{"usage": {"completion_tokens": 3}}'
                headers = [("content-length", str(len(answer)))]
                for part in (
                    h11.Response(status_code=status, headers=headers),
                    h11.Data(data=answer),
                    h11.EndOfMessage(),
                ):
                    writer.write(protocol.send(part) or b"")
                await writer.drain()
                protocol.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                break

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        result = await speak(f"http://127.0.0.1:{port}")
    finally:
        server.close()
        await server.wait_closed()
    return result, bodies


def test_arrivals_are_a_poisson_process_of_the_rate_asked_for() -> None:
    arrivals = poisson_arrivals(rate=50, seconds=200, mix=MIX, num_images=4, seed=1)
    dues = [arrival.due for arrival in arrivals]
    gaps = [b - a for a, b in zip([0.0, *dues], dues, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    # Of an exponential the deviation is the mean, and 1/e of the gaps are longer than it.
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance**0.5 == pytest.approx(mean, rel=0.05)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)
    total = sum(kind.weight for kind in MIX)
    for kind in MIX:
        share = sum(arrival.kind is kind for arrival in arrivals) / len(arrivals)
        assert share == pytest.approx(kind.weight / total, abs=0.02)
    assert {arrival.image for arrival in arrivals} == {0, 1, 2, 3}
    assert dues == sorted(dues)
    assert dues[-1] < 200


def test_equal_seeds_give_equal_arrivals() -> None:
    def make(seed: int) -> list[Arrival]:
        return poisson_arrivals(rate=5, seconds=10, mix=MIX, num_images=3, seed=seed)

    assert make(1) == make(1) != make(2)


def test_requests_are_sent_when_due_however_many_are_unanswered() -> None:
    """Ten requests in half a second to a server that takes one at a time, 0.1 s each."""
    arrivals = [Arrival(due=i * 0.05, kind=SHORT, image=0) for i in range(10)]

    async def speak(url: str) -> list[Outcome]:
        return await run_load(Target(base_url=url), arrivals, [b"image"])

    outcomes, bodies = asyncio.run(with_server(lambda n: (0.1, 200), speak, at_once=1))
    assert [one.status for one in outcomes] == [200] * 10
    # The n-th waits for those before it: it is due at 0.05 n and answered at 0.1 (n + 1).
    for number, one in enumerate(outcomes):
        assert one.latency >= 0.1 * (number + 1) - 0.05 * number - 0.01
    assert {one.num_tokens for one in outcomes} == {3}
    assert all(body == request_body(SHORT, b"image", None) for body in bodies)


def test_what_is_refused_and_what_is_lost_is_told_apart() -> None:
    answers: list[tuple[float, int | None]] = [(0, 200), (0, 429), (0, 503), (0, 500), (0, None)]
    answers += [(0, None)] * 4 + [(5.0, 200)]

    async def speak(url: str) -> list[Outcome]:
        target = Target(base_url=url, timeout=0.5)
        outcomes = []
        for _ in range(4):
            outcomes += await run_load(target, [Arrival(due=0, kind=SHORT, image=0)], [b"p"])
        return [*outcomes, *await run_load(target, [Arrival(due=0, kind=SHORT, image=0)], [b"p"])]

    outcomes, _ = asyncio.run(with_server(lambda n: answers[n], speak))
    assert [one.status for one in outcomes] == [200, 429, 503, 500, 0]
    assert [one.is_refused for one in outcomes] == [False, True, True, False, False]
    numbers = summarize(outcomes, seconds=1.0, bound=1.0)
    assert (numbers["ok"], numbers["refused"], numbers["lost"]) == (1, 2, 2)


def test_an_answer_that_does_not_come_in_time_is_lost() -> None:
    async def speak(url: str) -> list[Outcome]:
        target = Target(base_url=url, timeout=0.1)
        return await run_load(target, [Arrival(due=0, kind=SHORT, image=0)], [b"p"])

    [outcome], _ = asyncio.run(with_server(lambda n: (0.3, 200), speak))
    assert outcome.status == 0


def test_it_waits_for_a_server_to_be_ready() -> None:
    async def speak(url: str) -> tuple[bool, bool]:
        ready = await wait_until_ready(Target(base_url=url), seconds=5)
        return ready, await wait_until_ready(Target(base_url="http://127.0.0.1:9"), seconds=0.2)

    answers = [(0.0, 503), (0.0, 503), (0.0, 200)]
    ready, bodies = asyncio.run(with_server(lambda n: answers[n], speak))
    assert ready == (True, False)
    assert len(bodies) == 3


def test_goodput_counts_answers_within_the_bound() -> None:
    outcomes = [
        Outcome(kind="ask", due=float(i), ended=i + latency, status=status, num_tokens=2)
        for i, (latency, status) in enumerate(
            [(0.1, 200), (0.2, 200), (0.9, 200), (3.0, 200), (0.01, 429)]
        )
    ]
    report = run_report(outcomes, rate=1.0, seconds=5.0, bound=1.0)
    numbers = report["all"]
    assert numbers["sent"] == 5
    assert numbers["goodput"] == pytest.approx(3 / 5)
    assert numbers["throughput"] == pytest.approx(4 / 6)
    assert numbers["tokens_per_second"] == pytest.approx(8 / 6)
    # Nothing that was refused shortens a percentile.
    latency = numbers["latency"]
    assert [latency[name] for name in ("p50", "p90", "p99")] == pytest.approx([0.2, 3.0, 3.0])
    assert report["kinds"]["ask"] == numbers


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100)])
def test_percentiles_of_a_hundred_values_are_their_places(share: float, expected: int) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_percentiles_of_nothing_are_none_and_a_dash() -> None:
    report = {
        "runs": [run_report([Outcome(kind="ask", due=0, ended=1, status=429)], rate=1, seconds=1,
                            bound=1)],
        "bound_seconds": 1.0,
    }  # fmt: skip
    assert table_rows(report)[0][-3:] == ["-", "-", "-"]
    json.dumps(report, allow_nan=False)


def test_a_report_is_drawn_whatever_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    outcomes = [Outcome(kind="ask", due=0, ended=0.5, status=200)]
    runs = [run_report(outcomes, rate=rate, seconds=1, bound=1) for rate in (1.0, 2.0)]
    runs.append(run_report([], rate=4.0, seconds=1, bound=1))
    draw({"runs": runs, "bound_seconds": 1.0}, tmp_path / "load.svg")
    assert "<svg" in (tmp_path / "load.svg").read_text()
    with pytest.raises(OptionError, match="Cannot write the plot"):
        draw({"runs": runs, "bound_seconds": 1.0}, tmp_path / "load.txt")


def test_images_are_of_minis_world_and_differ() -> None:
    images = draw_images(3, seed=0)
    assert len(set(images)) == 3
    assert all(image.startswith(b"\x89PNG") for image in images)
    assert images == draw_images(3, seed=0)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://a b", "http://x:y"]
)
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(OptionError, match="not a server address"):
        Target(base_url=url)


def test_kinds_are_chosen_by_name() -> None:
    assert [kind.name for kind in choose_mix(["ocr", "ask"])] == ["ocr", "ask"]
    assert choose_mix([]) == MIX
    with pytest.raises(OptionError, match="Unknown kind of request: 'chat'"):
        choose_mix(["chat"])
