"""Work on documents: questions of a thread become jobs that wait, end with the client, and share
their images."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from PIL import Image

from paligemma.answering import ImageQuery, Query
from paligemma.documents.page import Document
from paligemma.documents.tiles import whole
from paligemma.errors import (
    BusyError,
    CancelledError,
    DocumentError,
    OptionError,
    PaliGemmaError,
    TimeLimitError,
)
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.server.document_reader import DocumentFile
from paligemma.server.document_work import AT_ONCE, DocumentRunner, ServiceAsker
from paligemma.server.service import Service
from paligemma.server.settings import Limits
from tests.agreement.tiny_predictor import build_predictor
from tests.documents.pdf_files import pdf_of_pages, text_at
from tests.server.serving import outcome, prompt, serving, slow, until


@pytest.fixture
def tiny(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


FILE = DocumentFile(data=pdf_of_pages([text_at(20, 70, f"page {number}") for number in range(3)]))
Work = Callable[[Document, ServiceAsker], Any]


def queries(document: Document, asker: ServiceAsker, number: int) -> Iterator[ImageQuery]:
    """So many questions about the first page."""
    tile = whole(document.pages[0])
    for index in range(number):
        query = Query(prompt=f"ab {index}", max_new_tokens=3)
        yield ImageQuery(images=(tile.reader(asker.processor.resolution),), query=query)


def asking(number: int) -> Work:
    return lambda document, asker: list(asker.answer(queries(document, asker, number)))


async def run(
    service: Service, work: Work, file: DocumentFile = FILE, client: str = "a", **options: Any
) -> Any:
    asker = ServiceAsker(service, client=client, adapter=None, **options)
    runner = DocumentRunner(service)
    try:
        return await runner.run(file, work, asker, client)
    finally:
        runner.close()


def test_questions_are_answered_in_order_and_their_image_is_encoded_once(tiny: Predictor) -> None:
    async def test() -> None:
        async with serving(tiny) as service:
            before = service.stats()
            counts: list[object] = []
            answers = await run(service, asking(20), on_event=counts.append)
            after = service.stats()
            alone = tiny.generate(
                [Image.new("RGB", (1, 1))], "ab 3", max_new_tokens=3
            )  # another image
            assert [type(answer) for answer in answers] == [type(alone)] * 20
            assert counts == list(range(1, 21))
            assert after.image_cache_misses - before.image_cache_misses <= AT_ONCE
            again = await run(service, asking(20))
            assert [a.token_ids for a in again] == [a.token_ids for a in answers]
            # Of the same pixels, whoever asks.
            assert service.stats().image_cache_misses == after.image_cache_misses

    asyncio.run(test())


def test_few_questions_are_in_the_service_and_others_keep_their_turn(tiny: Predictor) -> None:
    async def test() -> None:
        limits = Limits(max_running=4, max_queued=8, max_wait_seconds=1.5)
        async with serving(tiny, limits, faults=slow()) as service:
            most = 0

            def watch(event: object) -> None:
                nonlocal most
                stats = service.stats()
                most = max(most, stats.waiting + stats.running)

            document = asyncio.ensure_future(run(service, asking(60), on_event=watch))
            await until(lambda: most > 0)
            # A client's own questions and those of others are not refused.
            for client in ("a", "b") * 5:
                assert await service.submit(prompt(client=client)).wait()
            assert not document.done()
            assert len(await document) == 60
            assert 1 < most <= AT_ONCE
            assert service.stats().rejected == 0

    asyncio.run(test())


def test_a_full_queue_is_waited_for(tiny: Predictor) -> None:
    async def test() -> None:
        limits = Limits(max_running=2, max_queued=2)
        async with serving(tiny, limits, faults=slow()) as service:
            tickets = [service.submit(prompt(max_tokens=20)) for _ in range(4)]
            answers = await run(service, asking(5))
            assert len(answers) == 5
            for ticket in tickets:
                assert not isinstance(await outcome(ticket), Exception)

    asyncio.run(test())


def test_one_bad_page_is_the_error_of_its_questions(tiny: Predictor) -> None:
    def work(document: Document, asker: ServiceAsker) -> list[object]:
        def fail() -> Any:
            raise DocumentError("Page 2 is damaged.")

        def mixed() -> Iterator[ImageQuery]:
            yield from queries(document, asker, 1)
            yield ImageQuery(images=(fail,), query=Query(prompt="ab", max_new_tokens=3))
            yield from queries(document, asker, 1)

        return [isinstance(answer, DocumentError) for answer in asker.answer(mixed())]

    async def test() -> None:
        async with serving(tiny) as service:
            assert await run(service, work) == [False, True, False]

    asyncio.run(test())


def test_more_questions_than_the_limit_are_an_error(tiny: Predictor) -> None:
    async def test() -> None:
        async with serving(tiny, Limits(max_document_questions=5)) as service:
            assert len(await run(service, asking(5))) == 5
            with pytest.raises(OptionError, match="more than 5 questions"):
                await run(service, asking(6))

    asyncio.run(test())


def test_a13_a_crash_in_the_middle_ends_the_request_and_no_other(tiny: Predictor) -> None:
    def crash(document: Document, asker: ServiceAsker) -> list[object]:
        first = list(asker.answer(queries(document, asker, 2)))
        psutil.Process(document.source._process.pid).kill()  # type: ignore[attr-defined]
        with pytest.raises(DocumentError):
            document.pages[1].render(size_wh=(10, 10))
        return first  # as if the page were left out

    async def test() -> None:
        async with serving(tiny) as service:
            runner = DocumentRunner(service)

            async def one(work: Work, client: str) -> Any:
                asker = ServiceAsker(service, client=client, adapter=None)
                return await runner.run(FILE, work, asker, client)

            tasks = [
                asyncio.ensure_future(one(work, client))
                for work, client in ((crash, "a"), (asking(10), "b"))
            ]
            await asyncio.wait(tasks)
            assert isinstance(tasks[0].exception(), DocumentError)
            assert len(tasks[1].result()) == 10
            assert len(await one(asking(1), "a")) == 1
            runner.close()

    asyncio.run(test())


@pytest.mark.parametrize("point", ["asking", "reading"])
def test_a13_a_client_that_leaves_ends_the_work(
    point: str, tiny: Predictor, no_children_left: None
) -> None:
    begun = threading.Event()
    ended: list[BaseException] = []

    def work(document: Document, asker: ServiceAsker) -> None:
        begun.set()
        try:
            if point == "asking":
                list(asker.answer(queries(document, asker, 10_000)))
            else:
                process = psutil.Process(document.source._process.pid)  # type: ignore[attr-defined]
                process.suspend()
                document.pages[0].render(size_wh=(10, 10))
        except BaseException as error:
            ended.append(error)
            raise

    async def test() -> None:
        async with serving(tiny, Limits(max_documents=1), faults=slow()) as service:
            runner = DocumentRunner(service)
            asker = ServiceAsker(service, client="a", adapter=None)
            task = asyncio.ensure_future(runner.run(FILE, work, asker, "a"))
            await until(begun.is_set)
            await asyncio.sleep(0.2)
            task.cancel()
            started = time.monotonic()
            await asyncio.wait({task})
            assert time.monotonic() - started < 3
            assert task.cancelled()
            assert isinstance(ended[0], CancelledError)
            await until(lambda: service.stats().waiting + service.stats().running == 0)
            # The place is free again.
            asker = ServiceAsker(service, client="a", adapter=None)
            assert len(await runner.run(FILE, asking(1), asker, "a")) == 1
            runner.close()

    asyncio.run(test())


def test_a_document_has_its_own_time_limit(tiny: Predictor) -> None:
    async def test() -> None:
        limits = Limits(document_seconds=3, request_seconds=60)
        async with serving(tiny, limits, faults=slow()) as service:
            with pytest.raises(TimeLimitError):
                await run(service, asking(10_000))
        limits = Limits(document_seconds=60, request_seconds=0.5, queue_seconds=0.5)
        async with serving(tiny, limits, faults=slow(0.2), must_be_alive=False) as service:
            assert len(await run(service, asking(3))) == 3

    asyncio.run(test())


def test_only_so_many_documents_at_a_time(tiny: Predictor) -> None:
    async def test() -> None:
        limits = Limits(max_documents=3, documents_per_client=2)
        async with serving(tiny, limits) as service:
            runner = DocumentRunner(service)
            go = threading.Event()

            def wait(document: Document, asker: ServiceAsker) -> str:
                go.wait(30)
                return "done"

            async def one(client: str) -> object:
                asker = ServiceAsker(service, client=client, adapter=None)
                try:
                    return await runner.run(FILE, wait, asker, client)
                except PaliGemmaError as error:
                    return error

            tasks = [asyncio.ensure_future(one(client)) for client in "aabbb"]
            await asyncio.sleep(0.2)
            tasks.append(asyncio.ensure_future(one("a")))
            await asyncio.sleep(0.2)
            go.set()
            found = await asyncio.gather(*tasks)
            assert found[:3] == ["done"] * 3
            assert [type(each) for each in found[3:]] == [BusyError] * 3
            assert await one("b") == "done"
            runner.close()

    asyncio.run(test())


def test_draining_waits_for_a_document(tiny: Predictor) -> None:
    async def test() -> None:
        async with serving(tiny, faults=slow(), must_be_alive=False) as service:
            counts: list[object] = []
            task = asyncio.ensure_future(run(service, asking(12), on_event=counts.append))
            await until(lambda: len(counts) > 2)
            await service.drain(30)
            assert len(await task) == 12

    asyncio.run(test())
