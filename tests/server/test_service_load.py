"""Too much, too late, given up: what is refused at once, and what a job that ends early leaves."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from paligemma.errors import (
    BusyError,
    CancelledError,
    ImageError,
    InputError,
    OptionError,
    PromptError,
    TimeLimitError,
    UnavailableError,
)
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import Generation
from paligemma.server import preparing
from paligemma.server import service as service_module
from paligemma.server.jobs import Job, JobOptions, ScoreJob, Ticket
from paligemma.server.service import Service
from paligemma.server.settings import Limits
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.text import CaptionTask
from tests.agreement.tiny_predictor import build_predictor
from tests.server.faults import Fault, Faults
from tests.server.serving import Clock, outcome, png, prompt, serving, settle, slow, until


@pytest.fixture
def tiny(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


def submit_many(service: Service, jobs: list[Job]) -> tuple[list[Ticket], list[float]]:
    """What was accepted, and how long each refusal took."""
    tickets: list[Ticket] = []
    refusals: list[float] = []
    for job in jobs:
        start = time.perf_counter()
        try:
            tickets.append(service.submit(job))
        except BusyError:
            refusals.append(time.perf_counter() - start)
    return tickets, refusals


def test_d1_exactly_the_surplus_is_refused_and_at_once(tiny: Predictor) -> None:
    limits = Limits(max_running=2, max_queued=3)

    async def main() -> None:
        async with serving(tiny, limits, faults=slow()) as service:
            for _ in range(2):
                tickets, refusals = submit_many(service, [prompt()] * 50)
                assert (len(tickets), len(refusals)) == (5, 45)
                assert sorted(refusals)[40] < 0.05
                for ticket in tickets:
                    assert len((await ticket.wait()).token_ids) == 4
                await settle(service)
            assert service.stats().rejected == 90

    asyncio.run(main())


def test_questions_that_belong_together_are_taken_together_or_not(tiny: Predictor) -> None:
    async def main() -> None:
        limits = Limits(max_running=2, max_queued=3)
        async with serving(tiny, limits, faults=slow()) as service:
            first = service.submit_all([prompt()] * 3)
            with pytest.raises(BusyError, match="room for 2 more"):
                service.submit_all([prompt()] * 3)
            second = service.submit_all([prompt()] * 2)
            for ticket in [*first, *second]:
                await ticket.wait()

    asyncio.run(main())


def test_a_client_has_a_bound_of_its_own(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny, Limits(streams_per_client=2), faults=slow()) as service:
            greedy, refusals = submit_many(service, [prompt(client="a")] * 5)
            assert (len(greedy), len(refusals)) == (2, 3)
            tickets = [service.submit(prompt(client="b")), *greedy]
            for ticket in tickets:
                await ticket.wait()
            await settle(service)
            await service.submit(prompt(client="a")).wait()

    asyncio.run(main())


def test_waiting_images_take_so_many_bytes_at_most(tiny: Predictor) -> None:
    one = png(1, (60, 60))
    faults = Faults()
    faults.plant(Fault(point="decode", action="sleep", seconds=0.2, times=None))
    limits = Limits(max_waiting_image_bytes=len(one) * 2, image_cache_bytes=0, num_decoders=1)

    async def main() -> None:
        async with serving(tiny, limits, faults=faults) as service:
            jobs = [prompt(images=(png(n, (60, 60)),)) for n in range(6)]
            tickets, refusals = submit_many(service, jobs)
            assert 1 <= len(tickets) <= 2
            assert len(refusals) == len(jobs) - len(tickets)
            for ticket in tickets:
                await ticket.wait()
            await service.submit(jobs[-1]).wait()

    asyncio.run(main())


def test_small_images_do_not_wait_for_large_ones(
    tiny: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "_SLOW_PIXELS", 3000)
    monkeypatch.setattr(service_module, "_SLOW_PER_CLIENT", 4)
    faults = Faults()
    faults.plant(Fault(point="decode", action="sleep", seconds=0.3, times=None))

    async def main() -> None:
        async with serving(tiny, Limits(image_cache_bytes=0), faults=faults) as service:
            large = [service.submit(prompt(images=(png(n, (60, 60)),))) for n in range(6)]
            await service.submit(prompt(images=(png(9, (20, 20)),))).wait()
            assert sum(not ticket.has_ended for ticket in large) >= 2
            ends = [await outcome(ticket) for ticket in large]
            assert 1 <= sum(isinstance(end, BusyError) for end in ends) <= 2
            assert sum(isinstance(end, Generation) for end in ends) >= 4

    asyncio.run(main())


@pytest.mark.parametrize("is_running", [False, True])
def test_d2_what_is_late_is_told_and_its_place_is_free(tiny: Predictor, is_running: bool) -> None:
    clock = Clock()
    # The clock jumps: a step during a jump must not count as hung.
    limits = Limits(
        max_running=1, max_queued=4, queue_seconds=30, request_seconds=120, stall_seconds=1000
    )

    async def main() -> None:
        async with serving(tiny, limits, faults=slow(), clock=clock) as service:
            running = service.submit(prompt(max_tokens=800))
            await until(lambda: service.stats().running == 1)
            waiting = service.submit(prompt())
            clock.now += 31
            error = await outcome(waiting)
            assert isinstance(error, TimeLimitError)
            assert error.was_running is False
            assert not running.has_ended
            if is_running:
                clock.now += 90
                error = await outcome(running)
                assert isinstance(error, TimeLimitError)
                assert error.was_running is True
            else:
                running.cancel()
            await settle(service)
            assert service.stats().expired == 1 + is_running

    asyncio.run(main())


def test_a_job_may_have_an_earlier_deadline(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny, faults=slow()) as service:
            job = prompt(max_tokens=800, deadline=time.monotonic() + 0.3)
            assert isinstance(await outcome(service.submit(job)), TimeLimitError)

    asyncio.run(main())


@pytest.mark.parametrize("stage", ["decode", "queue", "run", "score"])
def test_d3_who_gives_up_frees_the_place_wherever_the_job_is(tiny: Predictor, stage: str) -> None:
    faults = slow()
    if stage == "decode":
        faults.plant(Fault(point="decode", action="sleep", seconds=0.3))
    limits = Limits(max_running=1, max_queued=4, num_decoders=1)

    async def main() -> None:
        async with serving(tiny, limits, faults=faults) as service:
            mate = service.submit(prompt(max_tokens=800)) if stage == "queue" else None
            if mate is not None:
                await until(lambda: service.stats().running == 1)
            if stage == "score":
                ticket = service.score("ab", ["b"] * 30, [png(3)])
            else:
                ticket = service.submit(prompt(max_tokens=800, images=(png(3),)))
            if stage == "run":
                await until(lambda: service.stats().running == 1)
            elif stage == "decode":
                await until(lambda: service.faults.hits["decode"] == 1)
            ticket.cancel()
            ticket.cancel()
            steps = service.stats().steps
            assert isinstance(await outcome(ticket), CancelledError)
            if mate is not None:
                mate.cancel()
            await settle(service)
            assert service.stats().cancelled == 1 + (mate is not None)
            assert service.stats().steps <= steps + 20, "it must not have run to its end"

    asyncio.run(main())


def test_d3_a_reader_that_goes_away_cancels(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny, faults=slow()) as service:
            ticket = service.submit(prompt(max_tokens=800, stream=True))
            reader = asyncio.create_task(ticket.wait())
            await until(lambda: service.stats().running == 1)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await settle(service)
            assert service.stats().cancelled == 1
            done = service.submit(prompt())
            await done.wait()
            done.cancel()
            assert service.stats().cancelled == 1, "a normal end is no cancellation"

    asyncio.run(main())


def test_d10_a_client_with_many_long_jobs_does_not_starve_another(tiny: Predictor) -> None:
    async def main() -> None:
        limits = Limits(max_running=4, max_queued=64, streams_per_client=64)
        async with serving(tiny, limits, faults=slow(0.002)) as service:
            long = [service.submit(prompt(max_tokens=300, client="many")) for _ in range(20)]
            await until(lambda: service.stats().running >= 4)
            before = service.stats().steps
            short = service.submit(prompt(max_tokens=5, client="few"))
            await short.wait()
            # A place to be given back, a prefill, five tokens; a few more while the job was made
            # ready.
            assert service.stats().steps - before < 40
            assert sum(ticket.has_ended for ticket in long) == 0
            for ticket in long:
                ticket.cancel()
            await settle(service)

    asyncio.run(main())


def test_d12_a_slow_reader_keeps_no_more_than_the_answer(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny) as service:
            ticket = service.submit(prompt(max_tokens=200, stream=True))
            await until(lambda: ticket.has_ended)
            updates = [update async for update in ticket.updates()]
            assert len(updates) == 1
            assert updates[0].token_ids == ticket.result().token_ids
            assert updates[0].text == ticket.result().text

    asyncio.run(main())


BAD_JOBS: dict[str, tuple[Any, type[InputError]]] = {
    "no tokens": (prompt(options=JobOptions(max_new_tokens=0)), OptionError),
    "too many tokens": (prompt(options=JobOptions(max_new_tokens=1025)), OptionError),
    "tokens as bool": (prompt(options=JobOptions(max_new_tokens=True)), OptionError),
    "five stops": (prompt(options=JobOptions(stop=("a",) * 5)), OptionError),
    "empty stop": (prompt(options=JobOptions(stop=("",))), OptionError),
    "long stop": (prompt(options=JobOptions(stop=("a" * 65,))), OptionError),
    "many logprobs": (prompt(options=JobOptions(logprobs=21)), OptionError),
    "negative temperature": (prompt(options=JobOptions(temperature=-1.0)), OptionError),
    "endless temperature": (prompt(options=JobOptions(temperature=float("inf"))), OptionError),
    "top_p": (prompt(options=JobOptions(top_p=1.5)), OptionError),
    "top_k": (prompt(options=JobOptions(top_k=0)), OptionError),
    "seed": (prompt(options=JobOptions(temperature=1.0, seed=-1)), OptionError),
    "sample_index": (prompt(options=JobOptions(sample_index=-1)), OptionError),
    "constrained": (prompt(options=JobOptions(constrained="yes")), OptionError),  # type: ignore[arg-type]
    "adapter": (prompt(options=JobOptions(adapter="../x")), OptionError),
    "long prompt": (prompt("a" * 16_385), PromptError),
    "no text": (Job(prompt=3), PromptError),  # type: ignore[arg-type]
    "nothing asked": (Job(), OptionError),
    "asked twice": (Job(task=CaptionTask(), prompt="ab", images=(b"",)), OptionError),
    "task without picture": (Job(task=CaptionTask()), ImageError),
    "two pictures": (prompt(images=(png(1), png(2))), ImageError),
    "picture as path": (prompt(images=("/etc/passwd",)), ImageError),
    "large file": (prompt(images=(b"\0" * (16 * 2**20 + 1),)), ImageError),
    "nothing to score": (ScoreJob(prompt="ab", suffixes=()), OptionError),
    "much to score": (ScoreJob(prompt="ab", suffixes=("b",) * 33), OptionError),
    "adapter to score": (ScoreJob(prompt="ab", suffixes=("b",), adapter="x"), OptionError),
}


def test_c10_c12_what_is_out_of_bounds_is_refused_before_it_is_accepted(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny) as service:
            accepted = service.stats().accepted
            for name, (job, expected) in BAD_JOBS.items():
                with pytest.raises(expected) as caught:
                    service.submit(job)
                assert "passwd" not in str(caught.value), name
                assert "../x" not in str(caught.value), name
            assert service.stats().accepted == accepted

    asyncio.run(main())


def test_what_only_a_closer_look_shows_ends_that_job_alone(tiny: Predictor) -> None:
    wide = png(5, (120, 50))
    bad: list[tuple[Job, type[Exception]]] = [
        (prompt(images=(b"",)), ImageError),
        (prompt(images=(b"<svg/>",)), ImageError),
        (prompt(images=(png(1)[:100],)), ImageError),
        (prompt(images=(wide,)), ImageError),
        (prompt("a\0b"), PromptError),
        (prompt("a\ud800b"), PromptError),
        (prompt("ab" * 400), PromptError),
    ]
    limits = Limits(max_pixels=5000, max_prompt_tokens=100)

    async def main() -> None:
        async with serving(tiny, limits) as service:
            good = prompt(images=(png(1),))
            expected = await service.submit(good).wait()
            pairs = [(service.submit(job), error, service.submit(good)) for job, error in bad]
            for ticket, error, mate in pairs:
                found = await outcome(ticket)
                assert type(found) is error
                assert "0x" not in str(found)
                assert (await mate.wait()).token_ids == expected.token_ids
            await settle(service)
            assert service.stats().failed == len(bad)

    asyncio.run(main())


def test_masks_that_would_fill_the_memory_are_refused(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny, Limits(max_mask_pixels=1500)) as service:
            large = Job(task=SegmentTask.of("ab"), images=(png(1, (40, 40)),))
            found = await outcome(service.submit(large))
            assert isinstance(found, ImageError)
            assert "masks" in str(found)
            small = Job(task=SegmentTask.of("ab"), images=(png(1, (10, 10)),))
            await service.submit(small).wait()

    asyncio.run(main())


def test_d4_draining_finishes_what_was_accepted_and_takes_nothing_more(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(
            tiny, Limits(max_running=2), faults=slow(), must_be_alive=False
        ) as service:
            tickets = [service.submit(prompt(stream=True)) for _ in range(6)]
            draining = asyncio.create_task(service.drain(20))
            await asyncio.sleep(0)
            assert service.state() == "draining"
            assert service.is_alive()
            with pytest.raises(UnavailableError, match="draining"):
                service.submit(prompt())
            for ticket in tickets:
                assert len((await ticket.wait()).token_ids) == 4
            await draining

    asyncio.run(main())


def test_d4_what_is_not_finished_in_time_ends_with_an_error(tiny: Predictor) -> None:
    async def main() -> None:
        async with serving(tiny, faults=slow(), must_be_alive=False) as service:
            tickets = [service.submit(prompt(max_tokens=900, stream=True)) for _ in range(3)]
            await until(lambda: service.stats().running == 3)
            await service.drain(0.1)
            for ticket in tickets:
                assert isinstance(await outcome(ticket), UnavailableError)
            await settle(service)

    asyncio.run(main())


def test_counts_agree_with_what_was_sent(tiny: Predictor) -> None:
    seen: list[tuple[str, str, int]] = []

    def note(ended: Any) -> None:
        seen.append((ended.kind, ended.outcome, ended.usage.completion_tokens))
        raise ValueError("whoever counts has a fault")

    async def main() -> None:
        async with serving(tiny, must_be_alive=False, on_end=note) as service:
            jobs = [prompt(), prompt(max_tokens=3), prompt("a\0")]
            for job in jobs:
                await outcome(service.submit(job))
            await outcome(service.score("ab", ["b"]))
            caption = Job(
                task=CaptionTask(), images=(png(1),), options=JobOptions(max_new_tokens=2)
            )
            await outcome(service.submit(caption))
            await settle(service)
            stats = service.stats()
            assert (stats.accepted, stats.answered, stats.failed) == (5, 4, 1)
            assert stats.completion_tokens == 4 + 3 + 2 + 2

    asyncio.run(main())
    assert sorted(seen) == [
        ("caption", "answered", 2),
        ("prompt", "answered", 3),
        ("prompt", "answered", 4),
        ("prompt", "failed", 0),
        ("score", "answered", 2),
    ]
