"""What breaks inside breaks for as few as possible: rows D6 to D9 and E5, by planted faults."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, get_args

import pytest

from paligemma.errors import CheckpointError, NumericalError, PaliGemmaError, UnavailableError
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.server.jobs import Job, JobOptions
from paligemma.server.service import Service
from paligemma.server.settings import Limits
from paligemma.tasks.detect import DetectTask
from tests.agreement.tiny_predictor import build_predictor
from tests.server.faults import Action, Fault, Faults, FaultyService, PlantedFaultError, Point
from tests.server.serving import Clock, outcome, png, prompt, serving, settle, slow, until


@pytest.fixture
def tiny(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


def planted(point: Point, action: Action, **fields: Any) -> Fault:
    return Fault(point=point, action=action, **fields)


@pytest.mark.parametrize("point", ["tokenize", "detok"])
def test_d9_a_fault_at_one_job_is_that_jobs_alone(tiny: Predictor, point: Point) -> None:
    async def main() -> None:
        async with serving(tiny) as service:
            expected = await service.submit(prompt(max_tokens=8)).wait()
            at = 0 if point == "tokenize" else 3
            service.faults.plant(planted(point, "raise", at=at))
            tickets = [service.submit(prompt(max_tokens=8, stream=True)) for _ in range(5)]
            found = [await outcome(ticket) for ticket in tickets]
            failed = [one for one in found if isinstance(one, Exception)]
            assert len(failed) == 1
            assert type(failed[0]) is PaliGemmaError
            assert isinstance(failed[0].__cause__, PlantedFaultError)
            whole = [one.token_ids for one in found if not isinstance(one, Exception)]
            assert whole == [expected.token_ids] * 4

    asyncio.run(main())


def test_d9_a_decoder_that_fails_is_a_fault_of_ours(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny) as service:
            service.faults.plant(planted("decode", "raise"))
            jobs = [prompt(images=(png(n),)) for n in range(3)]
            found = [await outcome(service.submit(job)) for job in jobs]
            assert [type(one) is PaliGemmaError for one in found] == [True, False, False]

    asyncio.run(main())


def test_d9_a_prompt_that_breaks_the_tokenizer_breaks_nobody_else(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny) as service:
            service.faults.plant(planted("tokenize", "raise", key="bad", times=None))
            tickets = [service.submit(prompt(text)) for text in ("ab", "bad", "ba")]
            found = [isinstance(await outcome(ticket), Exception) for ticket in tickets]
            assert found == [False, True, False]
            found = [await outcome(service.score(text, ["b"])) for text in ("bad", "ab")]
            assert [isinstance(one, Exception) for one in found] == [True, False]

    asyncio.run(main())


def test_a_score_that_fails_is_told(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny) as service:
            service.faults.plant(planted("score", "oom"))
            found = [await outcome(service.score("ab", ["b"])) for _ in range(2)]
            assert [isinstance(one, UnavailableError) for one in found] == [True, False]

    asyncio.run(main())


@pytest.mark.parametrize("pass_", ["prefill", "decode"])
def test_d8_no_memory_in_one_pass_and_all_are_answered(tiny: Predictor, pass_: str) -> None:
    async def main() -> None:
        async with serving(tiny) as service:
            expected = await service.submit(prompt(max_tokens=8)).wait()
            service.faults.plant(planted("forward", "oom", key=pass_))
            tickets = [service.submit(prompt(max_tokens=8)) for _ in range(6)]
            for ticket in tickets:
                assert (await ticket.wait()).token_ids == expected.token_ids

    asyncio.run(main())


def test_d8_no_memory_at_all_fails_loudly_and_the_next_are_answered(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny) as service:
            service.faults.plant(planted("forward", "oom", times=None))
            tickets = [service.submit(prompt()) for _ in range(6)]
            found = [await outcome(ticket) for ticket in tickets]
            assert all(isinstance(one, UnavailableError) for one in found)
            service.faults.clear()
            await service.submit(prompt()).wait()

    asyncio.run(main())


def test_e5_a_row_of_nan_ends_alone(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny, Limits(max_running=8)) as service:
            alone = [
                await service.submit(prompt(text, max_tokens=12)).wait()
                for text in ("ab", "ba", "aab", "bb")
            ]
            service.faults.plant(planted("step", "sleep", seconds=0.2))
            service.faults.plant(planted("row", "nan", key="1", at=4))
            tickets = [
                service.submit(prompt(text, max_tokens=12, stream=True))
                for text in ("ab", "ba", "aab", "bb")
            ]
            found = [await outcome(ticket) for ticket in tickets]
            broken = [one for one in found if isinstance(one, Exception)]
            assert len(broken) == 1
            assert isinstance(broken[0], NumericalError)
            whole = [one for one in found if not isinstance(one, Exception)]
            assert {one.token_ids for one in whole} < {one.token_ids for one in alone}
            assert len(whole) == 3

    asyncio.run(main())


def test_d6_an_engine_that_raises_is_dead_and_says_so(
    tiny: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary"

    async def main() -> None:
        faults = slow()
        limits = Limits(max_running=1)
        async with serving(tiny, limits, faults=faults, must_be_alive=False) as service:
            tickets = [service.submit(prompt(canary, max_tokens=500)) for _ in range(4)]
            await until(lambda: service.stats().running == 1)
            faults.plant(planted("step", "raise"))
            for ticket in tickets:
                assert isinstance(await outcome(ticket), UnavailableError)
            assert service.state() == "dead"
            assert not service.is_alive()
            assert isinstance(service.failure, PlantedFaultError)
            with pytest.raises(UnavailableError, match="dead"):
                service.submit(prompt())
            await until(lambda: service.stats().waiting + service.stats().running == 0)

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert "PlantedFaultError at " in caplog.text
    assert canary not in caplog.text


def test_d6_an_engine_that_hangs_is_dead_until_it_moves_again(tiny: Predictor) -> None:
    clock = Clock()
    faults = slow()

    async def main() -> None:
        limits = Limits(max_running=1, stall_seconds=10, queue_seconds=1000, request_seconds=1000)
        async with serving(tiny, limits, faults=faults, clock=clock) as service:
            tickets = [service.submit(prompt(max_tokens=500)) for _ in range(3)]
            await until(lambda: service.stats().running == 1)
            faults.plant(planted("step", "sleep", seconds=1.0))
            await asyncio.sleep(0.3)  # the turn before it takes a fiftieth of a second
            clock.now += 11
            assert not service.is_alive()
            assert service.stats().heartbeat_age >= 11
            for ticket in tickets:
                assert isinstance(await outcome(ticket), UnavailableError)
            await until(service.is_alive)

    asyncio.run(main())


def test_an_idle_engine_does_not_count_as_hung(tiny: Predictor) -> None:
    clock = Clock()

    async def main() -> None:
        async with serving(tiny, Limits(stall_seconds=10), clock=clock) as service:
            clock.now += 1000
            assert service.state() == "ready"
            await service.submit(prompt()).wait()

    asyncio.run(main())


def test_d7_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    def load() -> Predictor:
        raise CheckpointError(f"{tmp_path} contains no config.json.")

    async def main() -> None:
        service = Service(load, name="missing")
        assert service.state() == "loading"
        service.start()
        with pytest.raises(UnavailableError) as caught:
            await service.wait_until_ready()
        assert isinstance(caught.value.__cause__, CheckpointError)
        assert isinstance(service.failure, CheckpointError)
        assert service.state() == "dead"
        service.close()

    asyncio.run(main())


def test_d7_while_the_model_is_loaded_nothing_is_taken(tiny: Predictor) -> None:
    faults = Faults("load=sleep:0.2")

    async def main() -> None:
        service = FaultyService(lambda: tiny, name="tiny", faults=faults)
        service.start()
        assert service.state() == "loading"
        assert service.is_alive()
        with pytest.raises(UnavailableError, match="loading"):
            service.submit(prompt())
        await service.wait_until_ready()
        await service.submit(prompt()).wait()
        service.close()
        with pytest.raises(UnavailableError):
            service.submit(prompt())

    asyncio.run(main())


def test_every_point_of_the_service_is_passed(tiny: Predictor) -> None:
    async def main() -> set[str]:
        async with serving(tiny) as service:
            detect = Job(
                task=DetectTask.of("cat"), images=(png(1),), options=JobOptions(max_new_tokens=8)
            )
            await outcome(service.submit(detect))
            await service.score("ab", ["b"]).wait()
            await settle(service)
            return set(service.faults.hits)

    assert asyncio.run(main()) == set(get_args(Point))
