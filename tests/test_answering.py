"""Queries come and go: in what order, about which images, in how much memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma import answering
from paligemma.answering import (
    AnswerPipeline,
    ImageInput,
    ImageQuery,
    Query,
    answer_all,
    check_beams,
    in_order,
    stream_answer,
)
from paligemma.engine.engine import Engine
from paligemma.engine.image_cache import ImageCache
from paligemma.engine.sampling import GREEDY, Sampling
from paligemma.errors import CheckpointError, ImageError, OptionError, PaliGemmaError, PromptError
from paligemma.predictor import Predictor
from paligemma.processor.image import LoadedImage, load_image
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import Detections, Generation
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Generated, TaskContext
from tests.agreement.tiny_predictor import build_predictor, picture
from tests.tiny import FLOAT32_TOLERANCE

IMAGE = picture(0, (200, 100))


@pytest.fixture
def predictor(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


@pytest.fixture
def pipeline(predictor: Predictor) -> AnswerPipeline:
    return AnswerPipeline(processor=predictor.processor)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The sizes of the engines that are made."""
    sizes: list[dict[str, Any]] = []

    def recorded(model: Any, **options: Any) -> Engine:
        sizes.append(options)
        return Engine(model, **options)

    monkeypatch.setattr(answering, "Engine", recorded)
    return sizes


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the processor reads, in order."""
    sources: list[object] = []
    load = Processor.load

    def recorded(self: Processor, source: Any) -> Any:
        sources.append(source)
        return load(self, source)

    monkeypatch.setattr(Processor, "load", recorded)
    return sources


def query(prompt: str, images: list[ImageInput], max_new_tokens: int = 2) -> ImageQuery:
    asked = Query(prompt=prompt, max_new_tokens=max_new_tokens)
    return ImageQuery(images=tuple(images), query=asked)


def run(
    predictor: Predictor, queries: Iterable[ImageQuery], batch_size: int, num_beams: int = 1
) -> Iterator[tuple[int, Any]]:
    pipeline = AnswerPipeline(processor=predictor.processor)
    return answer_all(
        pipeline,
        predictor.model,
        ImageCache(10**6),
        queries,
        batch_size=batch_size,
        num_beams=num_beams,
    )


def test_an_engine_is_no_larger_than_the_queries_need(
    predictor: Predictor, pipeline: AnswerPipeline, engines: list[dict[str, Any]]
) -> None:
    one = query("ab", [IMAGE], 7)
    num_positions = pipeline.tokenize(one.query, 1).num_positions
    assert num_positions == pipeline.processor.num_image_tokens + len("ab") + 2 + 7
    list(run(predictor, [one], 32))
    list(stream_answer(pipeline, predictor.model, ImageCache(10**6), one))
    list(run(predictor, [query("abcd", [], 9), one, one], 2))
    sizes = [(size["max_rows"], size["num_positions"]) for size in engines]
    assert sizes == [(1, num_positions), (1, num_positions), (2, num_positions)]


def test_an_answer_that_ends_makes_room_for_the_next(predictor: Predictor) -> None:
    queries = [query("ocr", [IMAGE], limit) for limit in (6, 1, 2, 1)]
    assert [index for index, _ in run(predictor, queries, 2)] == [1, 2, 3, 0]
    assert [index for index, _ in run(predictor, queries, 4)] == [1, 3, 2, 0]
    lengths = {index: len(result.token_ids) for index, result in run(predictor, queries, 1)}
    assert lengths == {0: 6, 1: 1, 2: 2, 3: 1}


def test_images_are_read_when_their_turn_comes_and_once_by_neighbors(
    predictor: Predictor, reads: list[object], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    queries = [query(text, [path]) for path in paths for text in ("ocr", "caption en")]
    answers = run(predictor, queries, 2)
    next(answers)
    assert reads == paths[:1]
    list(answers)
    assert reads == paths


def test_a_query_that_cannot_start_yields_its_error(predictor: Predictor) -> None:
    fine, missing = query("ocr", [IMAGE]), query("ocr", ["nowhere.png"])
    long = query("ocr", [IMAGE], 10_000)
    for num_beams in (1, 2):
        results = list(run(predictor, [fine, missing, long, fine], 1, num_beams))
        assert [index for index, _ in results] == [0, 1, 2, 3]
        assert [type(result) for _, result in results] == [
            Generation,
            ImageError,
            PromptError,
            Generation,
        ]
    assert list(run(predictor, [], 1)) == []
    with pytest.raises(OptionError, match="num_beams"):  # of the call, not of one query
        list(run(predictor, [fine], 1, num_beams=0))
    assert [type(result) for _, result in run(predictor, [long], 1)] == [PromptError]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_queries_are_taken_shortly_before_their_turn(predictor: Predictor, num_beams: int) -> None:
    taken: list[int] = []

    def queries() -> Iterator[ImageQuery]:
        for number in range(1000):
            taken.append(number)
            yield query("ocr", [IMAGE], 1)

    answers = in_order(run(predictor, queries(), 2, num_beams))
    for number in range(5):
        assert isinstance(next(answers), Generation)
        assert len(taken) <= number + 5


def test_a_slow_answer_holds_up_no_more_than_two_batches(predictor: Predictor) -> None:
    taken: list[int] = []

    def queries() -> Iterator[ImageQuery]:
        for number in range(100):
            taken.append(number)
            yield query("ocr", [IMAGE], 1 if number else 30)

    next(in_order(run(predictor, queries(), 2)))
    assert len(taken) == 4


def test_a_longer_query_gets_a_larger_engine(
    predictor: Predictor, engines: list[dict[str, Any]]
) -> None:
    limits = [1, 2, 9, 1, 2, 20]
    results = dict(run(predictor, [query("ocr", [IMAGE], limit) for limit in limits], 2))
    assert [len(results[index].token_ids) for index in range(6)] == limits
    assert len(engines) == 3


def test_an_image_may_be_a_function_that_reads_it(predictor: Predictor) -> None:
    def read() -> LoadedImage:
        return load_image(IMAGE)

    def fail() -> LoadedImage:
        raise ImageError("no")

    queries = [ImageQuery(images=(r,), query=query("ocr", []).query) for r in (read, fail)]
    results = dict(run(predictor, [*queries, query("ocr", [IMAGE])], 2))
    assert results[0].token_ids == results[2].token_ids
    assert results[0].logprobs == pytest.approx(results[2].logprobs, abs=FLOAT32_TOLERANCE)
    assert isinstance(results[1], ImageError)


@dataclass(frozen=True)
class GrammarTask:
    """A task whose grammar is the tests'."""

    automaton: Any

    def prompt(self) -> str:
        return "ocr"

    def grammar(self, tokenizer: object) -> Any:
        return self.automaton

    def parse(self, generated: Generated, tokenizer: object, context: TaskContext) -> str:
        return "parsed"


def run_with_grammar(predictor: Predictor, automaton: object) -> dict[int, Any]:
    tasks = (GrammarTask(automaton), None)
    queries = [
        ImageQuery(
            images=(IMAGE,),
            query=Query(task=task, prompt=None if task else "ocr", max_new_tokens=3),
        )
        for task in tasks
    ]
    return dict(run(predictor, queries, 2))


def test_a_grammar_of_another_vocabulary_is_its_own_querys_error(predictor: Predictor) -> None:
    class Beyond:
        allowed = range(10**6, 10**6 + 5)

        def advance(self, token_id: int, /) -> Beyond:
            return self

    results = run_with_grammar(predictor, Beyond())
    assert isinstance(results[0], OptionError)
    assert isinstance(results[1], Generation)


def test_a_grammar_that_breaks_harms_no_neighbor(predictor: Predictor) -> None:
    class Broken:
        allowed = None

        def __init__(self, error: Exception) -> None:
            self.error = error

        def advance(self, token_id: int, /) -> Broken:
            raise self.error

    results = run_with_grammar(predictor, Broken(PromptError("no such word")))
    assert str(results[0]) == "no such word"
    assert isinstance(results[1], Generation)
    with pytest.raises(ZeroDivisionError):
        run_with_grammar(predictor, Broken(ZeroDivisionError()))


def test_a_task_reads_its_answer_in_the_first_images_geometry(predictor: Predictor) -> None:
    task = DetectTask.of("cat")
    asked = ImageQuery(
        images=(IMAGE, Image.new("RGB", (30, 70))), query=Query(task=task, max_new_tokens=1)
    )
    [(_, result)] = run(predictor, [asked], 1)
    assert isinstance(result, Detections)
    assert result.size_wh == (200, 100)


def test_a_stream_reads_its_images_before_its_first_piece(
    predictor: Predictor, pipeline: AnswerPipeline
) -> None:
    with pytest.raises(ImageError, match="nowhere"):
        stream_answer(
            pipeline, predictor.model, ImageCache(10**6), query("ocr", ["nowhere.png"], 2)
        )


def test_a_streamed_list_brings_the_objects_of_the_result() -> None:
    import paligemma

    predictor = paligemma.load("mini")
    scene = Path(__file__).parents[1] / "examples" / "scene.png"
    pipeline = AnswerPipeline(processor=predictor.processor)
    task = DetectTask.of("frog ; mushroom")
    updates = stream_answer(
        pipeline,
        predictor.model,
        ImageCache(10**6),
        ImageQuery(images=(scene,), query=Query(task=task)),
    )
    streamed = [update.object for update in updates if update.object is not None]
    assert streamed == list(predictor.detect(scene, "frog ; mushroom").objects)


def test_a_prompt_that_is_too_long_is_refused_with_its_images(pipeline: AnswerPipeline) -> None:
    with pytest.raises(PromptError, match="8192"):
        pipeline.tokenize(Query(prompt="ocr"), 4000)
    with pytest.raises(PromptError, match="8192"):
        pipeline.tokenize(Query(prompt="ocr", max_new_tokens=8192), 1)
    with pytest.raises(PromptError, match="8192"):
        pipeline.scoring_batches("ocr", ["a"], 4000, 1)


def test_a_default_length_takes_the_room_there_is(predictor: Predictor) -> None:
    pipeline = AnswerPipeline(processor=predictor.processor, num_positions=40, max_new_tokens=30)
    plan = pipeline.tokenize(Query(prompt="ocr"), 1)
    assert plan.num_positions == 40
    assert pipeline.tokenize(Query(prompt="a"), 0).max_new_tokens == 30


@pytest.mark.parametrize("has_masks", [False, True])
def test_a_list_has_room_for_all_the_objects_that_may_be_found(has_masks: bool) -> None:
    import paligemma

    predictor = paligemma.load("mini")
    pipeline = AnswerPipeline(processor=predictor.processor, mask_codec=predictor.mask_codec)
    kind = SegmentTask if has_masks else DetectTask
    task = kind.of("frog ; mushroom", max_objects=70)
    plan = pipeline.tokenize(Query(task=task), 1)
    tokenizer = predictor.processor.tokenizer
    codes = "<seg000>" * 16 if has_masks else ""
    one = f"<loc0000><loc0000><loc0100><loc0100>{codes} mushroom"
    assert plan.max_new_tokens > len(tokenizer.tokenize_text(" ; ".join([one] * 70)))
    trained = AnswerPipeline(
        processor=predictor.processor, mask_codec=predictor.mask_codec, text_length=128
    )
    assert trained.tokenize(Query(task=task), 1).max_new_tokens == 128


def test_masks_need_a_codec(pipeline: AnswerPipeline) -> None:
    with pytest.raises(CheckpointError, match="mask codec"):
        pipeline.tokenize(Query(task=SegmentTask.of("cat")), 1)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a", "stop": "."},
        {"prompt": "a", "stop": ("", "a")},
        {"prompt": "a", "stop": (None,)},
        {"prompt": "a", "stop": 5},
        {"prompt": "a", "stop": (text for text in ["."])},  # can be read once only
        {},
        {"prompt": "a", "task": DetectTask.of("cat")},
    ],
)
def test_queries_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Query(**options)


@pytest.mark.parametrize(
    ("sampler", "stop"), [(GREEDY, ["."]), (Sampling(), [])], ids=["stop", "temperature"]
)
def test_beam_search_takes_neither_a_temperature_nor_stop_strings(
    sampler: Sampling, stop: list[str]
) -> None:
    check_beams(1, sampler=sampler, stop=stop)
    with pytest.raises(PaliGemmaError, match="beam search"):
        check_beams(2, sampler=sampler, stop=stop)
