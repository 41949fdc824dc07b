"""What the service answers is what the predictor answers: alone, among others, in pieces."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
import torch
from PIL import Image

from paligemma.answering import Update
from paligemma.predictor import Predictor
from paligemma.server.jobs import Job, JobOptions, Ticket
from paligemma.server.service import Service
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.field import FieldTask, JsonTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask, BoxCaptionTask, CaptionTask, OcrTask
from tests.server.faults import FaultyService
from tests.tiny import FLOAT32_TOLERANCE

TASKS: tuple[Task[Any], ...] = (
    CaptionTask(),
    CaptionTask(language="fr"),
    AnswerTask(question="how many frogs are there?", language="en"),
    OcrTask(),
    DetectTask.of("frog ; mushroom"),
    DetectTask.of("mushroom", labels="any"),
    SegmentTask.of("mushroom"),
    FieldTask(question="how many frogs are there?", pattern=r"\d{1,2}", language="en"),
    FieldTask(question="what is the number of this?", pattern=r"[A-Z]{3}-\d{2}", language="en"),
    JsonTask(
        text="answer en write it as JSON",
        schema={"type": "object", "properties": {"frogs": {"type": "integer", "maximum": 99}}},
    ),
)


def assert_same(found: Any, expected: Any) -> None:
    """Equal but for rounding: a batch sums in another order (E4: 1e-5 in float32)."""
    assert type(found) is type(expected)
    _compare(found.to_dict(), expected.to_dict())


def _compare(found: Any, expected: Any) -> None:
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=2e-5)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            _compare(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _compare(one, other)
    else:
        assert found == expected


@pytest.fixture(scope="module")
def pictures(scene: bytes) -> list[bytes]:
    """The scene upright, mirrored and cut."""
    whole = Image.open(io.BytesIO(scene))
    found = [scene]
    for changed in (
        whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        whole.crop((0, 20, 150, 160)),
    ):
        file = io.BytesIO()
        changed.save(file, "PNG")
        found.append(file.getvalue())
    return found


async def read(ticket: Ticket) -> tuple[list[Update], Any]:
    updates = [update async for update in ticket.updates()]
    return updates, ticket.result()


def run(mini_service: FaultyService, jobs: list[Job]) -> list[tuple[list[Update], Any]]:
    async def main() -> list[tuple[list[Update], Any]]:
        return await asyncio.gather(*(read(mini_service.submit(job)) for job in jobs))

    return asyncio.run(main())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.prompt())
def test_alone(task: Task[Any], mini: Predictor, mini_service: FaultyService, scene: bytes) -> None:
    [(updates, found)] = run(mini_service, [Job(task=task, images=(scene,))])
    [expected] = mini.run([(scene, task)])
    assert_same(found, expected)
    assert updates == [], "nobody asked to hear more than the result"


def test_under_mixed_load_streamed_and_whole(
    mini: Predictor, mini_service: FaultyService, pictures: list[bytes]
) -> None:
    pairs = [(picture, task) for picture in pictures for task in TASKS]
    expected = mini.run(pairs)
    jobs = [
        Job(task=task, images=(picture,), stream=number % 2 == 0, client=f"client {number % 4}")
        for number, (picture, task) in enumerate(pairs)
    ]
    for job, (updates, found), one in zip(jobs, run(mini_service, jobs), expected, strict=True):
        assert_same(found, one)
        if not job.stream:
            assert updates == []
            continue
        # E6 of the promises: pieces joined are the whole.
        told = tuple(update.object for update in updates if update.object is not None)
        text = "".join(update.text for update in updates)
        if isinstance(job.task, DetectTask):
            assert told == found.objects
            assert text == found.text
        elif isinstance(job.task, SegmentTask):
            for whole, piece in zip(found.objects, told, strict=True):
                assert_same(piece, whole)
        else:
            assert text.strip() == found.text
            assert sum((update.token_ids for update in updates), ()) == found.token_ids
            assert sum((update.logprobs for update in updates), ()) == found.logprobs


def test_boxes_come_while_the_rest_is_written(mini_service: FaultyService, scene: bytes) -> None:
    job = Job(task=DetectTask.of("frog ; mushroom"), images=(scene,), stream=True)
    [(updates, found)] = run(mini_service, [job])
    assert len(found) > 1
    first = next(place for place, update in enumerate(updates) if update.object is not None)
    assert any(update.token_ids for update in updates[first + 1 :])


def test_e7_the_same_seed_gives_the_same_sample_in_any_company(
    mini: Predictor, mini_service: FaultyService, scene: bytes, pictures: list[bytes]
) -> None:
    def job(seed: int, index: int = 0) -> Job:
        options = JobOptions(
            temperature=1.5, top_p=0.95, seed=seed, sample_index=index, max_new_tokens=12
        )
        return Job(prompt="caption en", images=(scene,), options=options)

    wanted = dict(temperature=1.5, top_p=0.95, seed=3, max_new_tokens=12)
    expected = mini.generate(scene, ["caption en"] * 3, **wanted)  # type: ignore[call-overload]
    [(_, alone)] = run(mini_service, [job(3)])
    assert_same(alone, expected[0])
    others = [Job(task=OcrTask(), images=(picture,)) for picture in pictures * 3]
    jobs = [*others, job(3, 0), job(4), job(3, 1), *others, job(3, 2)]
    found = [result for _, result in run(mini_service, jobs)]
    for place, n_th in ((9, 0), (11, 1), (21, 2)):
        assert_same(found[place], expected[n_th])
    assert len({found[9].text, found[11].text, found[21].text}) > 1


def test_stop_strings_end_the_text_and_are_not_told(
    mini: Predictor, mini_service: FaultyService, scene: bytes
) -> None:
    whole = mini.generate(scene, "caption en").text
    stop = whole.split()[2]
    expected = mini.generate(scene, "caption en", stop=[stop])
    options = JobOptions(stop=(stop,), max_new_tokens=128)
    job = Job(prompt="caption en", images=(scene,), options=options, stream=True)
    [(updates, found)] = run(mini_service, [job])
    assert_same(found, expected)
    assert "".join(update.text for update in updates) == expected.text
    assert found.stop_reason == "stop"


def test_the_likeliest_tokens_are_told(mini_service: FaultyService, scene: bytes) -> None:
    async def main() -> tuple[list[Update], Any, Ticket]:
        options = JobOptions(logprobs=3)
        ticket = mini_service.submit(
            Job(prompt="caption en", images=(scene,), options=options, stream=True)
        )
        updates, found = await read(ticket)
        return updates, found, ticket

    updates, found, ticket = asyncio.run(main())
    assert ticket.top_logprobs == sum((update.top_logprobs for update in updates), ())
    for tops, token_id, logprob in zip(
        ticket.top_logprobs, found.token_ids, found.logprobs, strict=True
    ):
        assert len(tops) == 3
        assert tops[0].token_id == token_id, "greedy takes the likeliest"
        assert tops[0].logprob == pytest.approx(logprob, abs=1e-5)
        assert tops[0].logprob >= tops[1].logprob >= tops[2].logprob


def test_scores_are_the_predictors(
    mini: Predictor, mini_service: FaultyService, scene: bytes
) -> None:
    suffixes = ("two frogs and a mushroom", "a dog", "", "deux grenouilles", "x", "y", "z")
    expected = mini.score(scene, "caption en", suffixes)

    async def main() -> tuple[Any, Ticket]:
        ticket = mini_service.score("caption en", suffixes, [scene])
        busy = [mini_service.submit(Job(task=OcrTask(), images=(scene,))) for _ in range(4)]
        found = await ticket.wait()
        for other in busy:
            await other.wait()
        return found, ticket

    found, ticket = asyncio.run(main())
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert ticket.usage.completion_tokens == sum(len(one.token_ids) for one in expected)


def test_a_box_to_caption_is_laid_into_the_image_when_its_size_is_known(
    mini: Predictor, mini_service: FaultyService, scene: bytes
) -> None:
    box = (10.0, 40.0, 70.0, 130.0)

    def build(transform: Any) -> BoxCaptionTask:
        return BoxCaptionTask(box_normalized_xyxy=transform.box_from_source(box, order="xyxy"))

    [(_, found)] = run(mini_service, [Job(task=build, images=(scene,))])
    assert_same(found, mini.caption_box(scene, box))


def test_usage_counts_every_token(
    mini: Predictor, mini_service: FaultyService, scene: bytes
) -> None:
    async def main() -> tuple[Ticket, Any]:
        ticket = mini_service.submit(Job(task=CaptionTask(), images=(scene,)))
        return ticket, await ticket.wait()

    ticket, found = asyncio.run(main())
    usage = ticket.usage
    assert usage.image_tokens == mini.processor.num_image_tokens
    num_text = len(mini.processor.tokenizer.tokenize_text("caption en"))
    assert usage.prompt_tokens == usage.image_tokens + num_text + 2
    assert usage.completion_tokens == len(found.token_ids)


def test_questions_about_one_image_decode_it_once(
    mini_service: FaultyService, pictures: list[bytes]
) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(pictures[0])).rotate(3).save(file, "PNG")
    new = file.getvalue()

    async def main() -> None:
        jobs = [Job(task=AnswerTask(question=f"how many {n}?"), images=(new,)) for n in "abc"]
        for ticket in mini_service.submit_all(jobs):
            await ticket.wait()
        await mini_service.submit(Job(task=OcrTask(), images=(bytes(bytearray(new)),))).wait()

    decoded = mini_service.faults.hits["decode"]
    misses = mini_service.stats().image_cache_misses
    asyncio.run(main())
    assert mini_service.faults.hits["decode"] == decoded + 1
    assert mini_service.stats().image_cache_misses == misses + 1, "the model saw it once, too"


def test_what_is_asked_again_is_not_read_again_and_answered_alike(
    mini_service: FaultyService, pictures: list[bytes]
) -> None:
    job = Job(task=CaptionTask(language="de"), images=(pictures[0],))

    async def answers() -> list[Any]:
        tickets = mini_service.submit_all([job, job])
        return [await ticket.wait() for ticket in tickets]

    first = asyncio.run(answers())
    before = mini_service.stats()
    again = asyncio.run(answers())
    after = mini_service.stats()
    # A prefix read from the cache is decoded in another batch, which may round differently.
    for caption in first + again:
        assert caption.token_ids == first[0].token_ids
        assert caption.text == first[0].text
        assert caption.logprobs == pytest.approx(first[0].logprobs, abs=FLOAT32_TOLERANCE)
    assert after.prefix_cache_misses == before.prefix_cache_misses
    assert after.prefix_cache_hits > before.prefix_cache_hits
    assert 0 < after.prefix_cache_bytes <= mini_service.limits.prefix_cache_bytes


def test_only_the_engine_computes_with_several_threads(mini: Predictor) -> None:
    found: dict[str, int] = {}

    def load() -> Predictor:
        found["engine"] = torch.get_num_threads()
        return mini

    own = torch.get_num_threads()
    torch.set_num_threads(2)
    service = Service(load, name="mini")
    try:
        service.start()
        asyncio.run(service.wait_until_ready())
        found["masks"] = service._masks.submit(torch.get_num_threads).result()
        assert found == {"engine": 2, "masks": 1}
        assert torch.get_num_threads() == 2
    finally:
        service.close()
        torch.set_num_threads(own)
