"""Continuous batching: what is shared and bounded, and that nobody pays for another's fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paligemma.engine import runner as runner_module
from paligemma.engine.engine import Engine, Event, FinishedRequest
from paligemma.engine.image_cache import ImageCache, KeyedImage
from paligemma.engine.request import Request, RequestState
from paligemma.engine.sampling import Sampling, choose_allowed, finite_rows
from paligemma.errors import BusyError, InputError, OptionError, PromptError
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import Cache
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FLOAT32_TOLERANCE, Row, tiny_inputs, varied_model

NEVER = -1


class WatchedModel(PaliGemma):
    """Notes what it is asked for, and breaks where a test wants it to."""

    def watch(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.before_prefill: Callable[[ModelInputs], None] = lambda inputs: None
        self.before_decode: Callable[[Tensor], None] = lambda token_ids: None
        self.after_decode: Callable[[Tensor, Tensor], None] = lambda token_ids, logits: None

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        self.calls.append(("vision", len(pixel_values)))
        return super().embed_images(pixel_values)

    def prefix_state(
        self, inputs: ModelInputs, kv_cache: Cache, image_tokens: Tensor | None = None
    ) -> Tensor:
        self.calls.append(("prefill", len(inputs.token_ids)))
        hidden = super().prefix_state(inputs, kv_cache, image_tokens)
        self.before_prefill(inputs)
        return hidden

    def decode_step(
        self, token_ids: Tensor, kv_cache: Cache, vocab_range: range | None = None
    ) -> Tensor:
        self.calls.append(("decode", len(token_ids), vocab_range))
        logits = super().decode_step(token_ids, kv_cache, vocab_range).clone()
        self.before_decode(token_ids)
        self.after_decode(token_ids, logits)
        return logits

    def kinds(self) -> Counter[str]:
        return Counter(call[0] for call in self.calls)


@pytest.fixture
def model() -> WatchedModel:
    made = varied_model("paligemma2")
    made.__class__ = WatchedModel
    assert isinstance(made, WatchedModel)
    made.watch()
    return made


def build(model: PaliGemma, rows: list[Row], **options: Any) -> list[Request]:
    inputs = tiny_inputs(model.config, rows)
    images = [KeyedImage(pixel_values=pixels) for pixels in inputs.required_pixel_values]
    given = {"max_new_tokens": 5, "eos_id": NEVER} | options
    return [Request.from_row(inputs, row, images, **given) for row in range(len(rows))]


def texts(model: PaliGemma, number: int, **options: Any) -> list[Request]:
    """Requests without pictures, of different prefixes."""
    return build(model, [Row(images=(), prefix=3 + n % 4) for n in range(number)], **options)


def engine_of(model: PaliGemma, **options: Any) -> Engine:
    return Engine(model, **({"num_positions": 90, "max_rows": 4} | options))


def finish(engine: Engine, limit: int = 500) -> list[list[Event]]:
    steps = []
    while engine.has_work:
        steps.append(engine.step())
        assert len(steps) < limit
    return steps


def by_request(steps: list[list[Event]]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    for event in (event for step in steps for event in step):
        found.setdefault(event.request_id, []).append(event)
    return found


def close(found: FinishedRequest, expected: FinishedRequest) -> bool:
    return (found.token_ids, found.stop_reason) == (
        expected.token_ids,
        expected.stop_reason,
    ) and found.logprobs == pytest.approx(expected.logprobs, abs=FLOAT32_TOLERANCE)


# What is shared


def test_many_questions_on_one_image_take_one_vision_pass_and_one_prefill(
    model: WatchedModel,
) -> None:
    requests = build(model, [Row(images=(0,), prefix=2 + n % 5) for n in range(16)])
    rows = engine_of(model, max_rows=16).run(requests)
    assert model.calls[:2] == [("vision", 1), ("prefill", 16)]
    assert model.kinds() == {"vision": 1, "prefill": 1, "decode": 4}
    assert all(len(row.token_ids) == 5 for row in rows)


def test_an_image_seen_before_is_not_encoded_again_and_changes_nothing(
    model: WatchedModel,
) -> None:
    requests = build(model, [Row(images=(0,)), Row(images=(1, 0)), Row(images=(2,))])
    engine = engine_of(model, max_rows=1)
    first = engine.run(requests)
    assert [call for call in model.calls if call[0] == "vision"] == [("vision", 1)] * 3
    assert all(map(close, engine.run(requests), first))
    assert model.kinds()["vision"] == 3
    forgetful = engine_of(model, max_rows=1, image_cache_bytes=0)
    assert all(map(close, forgetful.run(requests), first))
    assert model.kinds()["vision"] == 6


def test_engines_of_one_model_may_share_what_was_encoded(model: WatchedModel) -> None:
    cache = ImageCache(10**6)
    requests = build(model, [Row()])
    first = engine_of(model, image_cache=cache).run(requests)
    assert all(map(close, engine_of(model, image_cache=cache).run(requests), first))
    assert model.kinds()["vision"] == 1


def test_equal_images_from_different_callers_are_one(model: WatchedModel) -> None:
    requests = [build(model, [Row()])[0] for _ in range(3)]
    assert len({id(request.images[0]) for request in requests}) == 3
    engine_of(model).run(requests)
    assert [call for call in model.calls if call[0] == "vision"] == [("vision", 1)]


@dataclass(frozen=True)
class Held:
    """Only ids of one range, for ever."""

    allowed: range

    def advance(self, token_id: int, /) -> Held:
        return self


def test_only_logits_that_every_row_can_use_are_computed(model: WatchedModel) -> None:
    places = [replace(r, constraint=Held(range(100, 130))) for r in texts(model, 2)]
    codes = [replace(r, constraint=Held(range(125, 140))) for r in texts(model, 1)]
    engine_of(model).run([*places, *codes])
    assert {call[2] for call in model.calls if call[0] == "decode"} == {range(100, 140)}
    model.calls.clear()
    engine_of(model).run([*places, *texts(model, 1)])
    assert {call[2] for call in model.calls if call[0] == "decode"} == {None}


# Coming and going


def test_events_of_steps_streams_and_runs_say_the_same(model: WatchedModel) -> None:
    requests = texts(model, 7, max_new_tokens=4)
    rows = engine_of(model).run(requests)
    streamed: dict[int, list[int | None]] = {}
    for number, event in engine_of(model).stream(requests):
        streamed.setdefault(number, []).append(event.token_id)
    assert [tuple(streamed[n]) for n in range(7)] == [row.token_ids for row in rows]
    engine = engine_of(model)
    ids = [engine.add(request) for request in requests]
    stepped = by_request(finish(engine))
    for request_id, row in zip(ids, rows, strict=True):
        events = stepped[request_id]
        assert tuple(event.token_id for event in events) == row.token_ids
        assert [event.stop_reason for event in events] == [None] * 3 + ["length"]


def test_an_ended_row_leaves_at_once_and_the_next_takes_its_place(model: WatchedModel) -> None:
    requests = [replace(r, max_new_tokens=2 + n) for n, r in enumerate(texts(model, 6))]
    engine = engine_of(model, max_rows=2)
    for request in requests:
        engine.add(request)
    finish(engine)
    rows = [call[1] for call in model.calls if call[0] == "decode"]
    # New tokens after the first: 1 2 3 4 5 6, two rows at a time.
    assert sum(rows) == 21
    assert rows == [2] * 9 + [1] * 3


def test_a_request_can_be_cancelled_while_it_waits_and_while_it_runs(model: WatchedModel) -> None:
    requests = texts(model, 4, max_new_tokens=20)
    expected = engine_of(model).run(requests)
    engine = engine_of(model, max_rows=2)
    ids = [engine.add(request) for request in requests]
    steps = [engine.step(), engine.step()]
    assert engine.cancel(ids[0])
    assert engine.cancel(ids[3])
    assert not engine.cancel(999)
    steps.append(engine.step())
    assert (engine.num_running, engine.num_queued) == (2, 0)
    ends = {e.request_id: e for e in steps[-1] if e.stop_reason == "cancelled"}
    assert ends.keys() == {ids[0], ids[3]}
    found = by_request(steps + finish(engine))
    assert [e.token_id for e in found[ids[0]]] == [*expected[0].token_ids[:2], None]
    assert [e.token_id for e in found[ids[3]]] == [None]
    for place in (1, 2):
        assert tuple(e.token_id for e in found[ids[place]]) == expected[place].token_ids
    assert not engine.cancel(ids[0])


def test_a_first_token_is_told_before_a_second_is_made(model: WatchedModel) -> None:
    engine = engine_of(model)
    engine.add(texts(model, 1)[0])
    assert [event.token_id is None for event in engine.step()] == [False]
    assert model.kinds() == {"prefill": 1}
    engine.add(texts(model, 1)[0])
    # Who is running already does not wait for the other's prefill.
    assert [event.request_id for event in engine.step()] == [1, 0, 1]


def test_a_callback_may_cancel_another_request(model: WatchedModel) -> None:
    engine = engine_of(model)
    first, second = texts(model, 2, max_new_tokens=6)

    def stop_the_other(ids: list[int]) -> bool:
        if len(ids) == 3:
            engine.cancel(1)
        return False

    engine.add(replace(first, should_stop=stop_the_other))
    engine.add(second)
    found = by_request(finish(engine))
    assert found[0][-1].stop_reason == "length"
    assert found[1][-1].stop_reason == "cancelled"


def test_a_deadline_ends_a_waiting_and_a_running_request(model: WatchedModel) -> None:
    now = 100.0
    engine = engine_of(model, max_rows=1, clock=lambda: now)
    running, waiting = texts(model, 2, max_new_tokens=40)
    engine.add(replace(running, deadline=103.0))
    engine.add(replace(waiting, deadline=102.0))
    engine.add(replace(waiting, max_new_tokens=2))
    steps = []
    for _ in range(6):
        steps.append(engine.step())
        now += 1.0
    found = by_request(steps)
    assert [e.stop_reason for e in found[1]] == ["expired"]
    assert found[0][-1].stop_reason == "expired"
    assert len(found[0]) == 4  # a token in each of three steps, the end
    assert found[2][-1].stop_reason == "length"
    assert not engine.has_work


@pytest.mark.parametrize(("share", "num_decodes"), [(1.0, 1), (0.5, 2), (0.2, 8)])
def test_prefill_takes_at_most_its_share_of_the_time_while_answers_run(
    model: WatchedModel, share: float, num_decodes: int
) -> None:
    """A prefill takes 2 s and a decode step 1 s."""
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    model.before_prefill = lambda inputs: wait(2.0)
    model.before_decode = lambda token_ids: wait(1.0)
    engine = engine_of(
        model, max_rows=9, max_prefill_positions=1, max_prefill_share=share, clock=lambda: now
    )
    for request in texts(model, 4, max_new_tokens=40):
        engine.add(request)
    finish(engine)
    kinds = "".join(call[0][0] for call in model.calls)
    assert kinds.startswith("p" + ("d" * num_decodes + "p") * 3 if share < 1 else "ppdpdp")


def test_the_share_of_prefill_is_a_share(model: WatchedModel) -> None:
    for share in (0, -1.0, 1.1):
        with pytest.raises(OptionError, match="max_prefill_share"):
            engine_of(model, max_prefill_share=share)


def test_streams_may_be_read_in_turns(model: WatchedModel) -> None:
    requests = texts(model, 4, max_new_tokens=5)
    expected = [row.token_ids for row in engine_of(model).run(requests)]
    engine = engine_of(model, max_rows=3)
    streams = [engine.stream(requests[:2]), engine.stream(requests[2:])]
    seen: list[dict[int, list[int | None]]] = [{}, {}]
    open_streams = [0, 1]
    while open_streams:
        for which in list(open_streams):
            item = next(streams[which], None)
            if item is None:
                open_streams.remove(which)
            else:
                seen[which].setdefault(item[0], []).append(item[1].token_id)
    found = [tuple(seen[which][number]) for which in (0, 1) for number in (0, 1)]
    assert found == expected
    assert not engine.has_work


def test_a_stream_that_is_closed_early_frees_its_rows(model: WatchedModel) -> None:
    engine = engine_of(model)
    stream = engine.stream(texts(model, 6, max_new_tokens=50))
    next(stream)
    assert engine.num_running == 4
    assert isinstance(stream, Generator)
    stream.close()
    assert {event.stop_reason for event in engine.step()} == {"cancelled"}
    assert (engine.num_running, engine.num_queued, engine.has_work) == (0, 0, False)


def test_more_requests_than_may_wait_are_fed_as_there_is_room(model: WatchedModel) -> None:
    requests = texts(model, 12, max_new_tokens=3)
    engine = engine_of(model, max_rows=2, max_queued=3)
    assert [row.stop_reason for row in engine.run(requests)] == ["length"] * 12
    for request in requests[:3]:
        engine.add(request)
    with pytest.raises(BusyError):
        engine.add(requests[3])


def test_the_callers_own_mode_is_kept_between_steps(model: WatchedModel) -> None:
    for _ in engine_of(model).stream(texts(model, 2)):
        assert not torch.is_inference_mode_enabled()


# Fairness


def test_short_requests_are_not_starved_by_one_clients_long_ones(model: WatchedModel) -> None:
    engine = engine_of(model)
    long = texts(model, 12, max_new_tokens=40, client="long")
    for request in long:
        engine.add(request)
    for _ in range(3):
        engine.step()
    short = [
        engine.add(replace(request, client=f"short {n}"))
        for n, request in enumerate(texts(model, 6, max_new_tokens=3))
    ]
    steps: list[list[Event]] = []
    while not all(any(e.stop_reason for e in by_request(steps).get(i, [])) for i in short):
        steps.append(engine.step())
        assert len(steps) <= 8
    assert engine.num_running >= 3
    assert by_request(finish(engine, limit=400)).keys() == set(range(12))


def test_running_rows_get_a_token_in_every_step_while_others_are_prefilled(
    model: WatchedModel,
) -> None:
    engine = engine_of(model, max_rows=9, max_prefill_positions=60)
    streaming = engine.add(texts(model, 1, max_new_tokens=30)[0])
    engine.step()
    for request in build(model, [Row(images=(n,)) for n in range(8)]):
        engine.add(request)
    model.calls.clear()
    for _ in range(4):
        assert streaming in {event.request_id for event in engine.step()}
    # 30 positions each: two pictures at a time, and a decode step after each group.
    assert [call[:2] for call in model.calls] == [
        step
        for group in range(4)
        for step in (("vision", 2), ("prefill", 2), ("decode", 1 + 2 * group + 2))
    ]


# Nobody pays for another's fault


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampler", [Sampling(temperature=0), Sampling(seed=1)])
def test_broken_logits_end_their_own_row_and_no_other(
    model: WatchedModel, value: float, sampler: Sampling
) -> None:
    requests = texts(model, 4, sampler=sampler, max_new_tokens=7)
    clean = engine_of(model).run(requests)
    victim = clean[1].token_ids[2]

    def poison(token_ids: Tensor, logits: Tensor) -> None:
        if token_ids[1] == victim and len(token_ids) == 4:
            logits[1, 3] = value

    model.after_decode = poison
    found = engine_of(model).run(requests)
    assert found[1] == replace(
        clean[1],
        token_ids=clean[1].token_ids[:3],
        logprobs=clean[1].logprobs[:3],
        allowed_probabilities=(1.0,) * 3,
        stop_reason="numerical_error",
    )
    for row in (0, 2, 3):
        assert found[row].token_ids == clean[row].token_ids
        assert found[row].logprobs[:3] == clean[row].logprobs[:3]  # bit for bit while it was there
        assert close(found[row], clean[row])


def test_a_broken_image_harms_neither_its_batch_nor_who_comes_after(
    model: WatchedModel,
) -> None:
    # The broken one is the longest: who takes its slot does not write over all it leaves.
    requests = build(model, [Row(images=(n,), prefix=20 if n == 1 else 3) for n in range(5)])
    expected = engine_of(model, max_rows=2).run(requests)
    pixels = requests[1].images[0].pixel_values.clone()
    pixels[0, 0, 0] = float("nan")
    broken = replace(requests[1], images=(KeyedImage(pixel_values=pixels),))
    engine = engine_of(model, max_rows=2)
    found = engine.run([requests[0], broken, *requests[2:], broken])
    nothing = FinishedRequest(token_ids=(), logprobs=(), stop_reason="numerical_error")
    assert found[1] == found[5] == nothing
    for row in (0, 2, 3, 4):
        assert close(found[row], expected[row])


def test_a_row_held_to_a_range_is_judged_by_it_whoever_is_beside(model: WatchedModel) -> None:
    held, free = texts(model, 2)
    held = replace(held, constraint=Held(range(100, 130)))
    expected = engine_of(model).run([held])[0]
    with torch.no_grad():
        model.decoder.embedding.weight[50] = float("nan")
    # Id 50 is in no prefix and outside of the range; the free row's logits hold it.
    assert 50 not in {*held.token_ids.tolist(), *free.token_ids.tolist()}
    rows = engine_of(model).run([held, free])
    assert close(rows[0], expected)
    assert rows[1].stop_reason == "numerical_error"


def test_an_exception_in_a_callback_or_grammar_ends_its_own_request(model: WatchedModel) -> None:
    requests = texts(model, 4, max_new_tokens=6)
    expected = engine_of(model).run(requests)

    def raising(ids: list[int]) -> bool:
        if len(ids) == 2:
            raise ZeroDivisionError("mine")
        return False

    class Ungrammatical:
        allowed = range(151)

        def advance(self, token_id: int, /) -> Ungrammatical:
            raise LookupError("no such state")

    engine = engine_of(model)
    found = engine.run(
        [
            replace(requests[0], should_stop=raising),
            requests[1],
            replace(requests[2], constraint=Ungrammatical()),
            requests[3],
        ]
    )
    assert [row.stop_reason for row in found] == ["failed", "length", "failed", "length"]
    assert isinstance(found[0].error, ZeroDivisionError)
    assert found[0].token_ids == expected[0].token_ids[:2]
    assert isinstance(found[2].error, LookupError)
    assert close(found[1], expected[1])
    assert close(found[3], expected[3])


class OnCall:
    """Raises on the calls whose numbers are given."""

    def __init__(self, error: BaseException, *numbers: int) -> None:
        self.error, self.numbers, self.num_calls = error, numbers, 0

    def __call__(self, _: object) -> None:
        self.num_calls += 1
        if self.num_calls in self.numbers:
            raise self.error


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("full"),
    MemoryError("full"),
    RuntimeError("can't allocate"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("hook", ["before_prefill", "before_decode"])
@pytest.mark.parametrize("numbers", [(1,), (3,), (1, 2), (2, 3)])
def test_running_out_of_memory_now_and_then_costs_nobody_the_answer(
    model: WatchedModel, hook: str, error: Exception, numbers: tuple[int, ...]
) -> None:
    requests = texts(model, 9, max_new_tokens=7, sampler=Sampling(seed=2))
    expected = engine_of(model).run(requests)
    setattr(model, hook, OnCall(error, *numbers))
    found = engine_of(model).run(requests)
    for mine, plain in zip(found, expected, strict=True):
        assert close(mine, plain)


def test_a_request_that_never_fits_into_memory_fails_alone(model: WatchedModel) -> None:
    requests = texts(model, 7)
    expected = engine_of(model).run(requests)
    bad = requests[2].token_ids[:3]

    def out_of_memory(inputs: ModelInputs) -> None:
        if any(torch.equal(row[:3], bad) for row in inputs.token_ids):
            raise torch.OutOfMemoryError("full")

    model.before_prefill = out_of_memory
    found = engine_of(model).run(requests)
    assert isinstance(found[2].error, torch.OutOfMemoryError)
    assert (found[2].stop_reason, found[2].token_ids) == ("failed", ())
    for row in (0, 1, 3, 4, 5, 6):
        assert close(found[row], expected[row])


def test_no_memory_for_choosing_tokens_is_no_other_case(
    model: WatchedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        replace(request, sampler=Sampling(seed=n % 3))
        for n, request in enumerate(texts(model, 6, max_new_tokens=6))
    ]
    expected = engine_of(model).run(requests)
    now_and_then = OnCall(torch.OutOfMemoryError("full"), 1, 4, 12)

    def after_all_was_drawn(*args: Any) -> list[bool]:
        now_and_then(None)
        return finite_rows(*args)

    monkeypatch.setattr(runner_module, "finite_rows", after_all_was_drawn)
    assert all(map(close, engine_of(model).run(requests), expected))
    assert now_and_then.num_calls > 12


def test_a_row_is_put_back_once_and_then_fails_with_what_it_had(model: WatchedModel) -> None:
    requests = texts(model, 2, max_new_tokens=6)
    expected = engine_of(model).run(requests)
    # Both rows decode, the second is put back, returns, and the two fail together again.
    model.before_decode = OnCall(MemoryError("full"), 2, 4)
    found = engine_of(model).run(requests)
    assert close(found[0], expected[0])
    assert found[1].stop_reason == "failed"
    assert isinstance(found[1].error, MemoryError)
    assert 0 < len(found[1].token_ids) < 6
    assert found[1].token_ids == expected[1].token_ids[: len(found[1].token_ids)]


def test_when_no_step_fits_into_memory_all_fail_and_the_engine_lives(model: WatchedModel) -> None:
    requests = texts(model, 6)
    expected = engine_of(model).run(requests)
    engine = engine_of(model)
    for hook in ("before_prefill", "before_decode"):
        setattr(model, hook, OnCall(MemoryError("full"), *range(1, 1000)))
        found = engine.run(requests)
        assert {row.stop_reason for row in found} == {"failed"}
        assert all(isinstance(row.error, MemoryError) for row in found)
        model.watch()
    assert all(map(close, engine.run(requests), expected))


@pytest.mark.parametrize("hook", ["before_prefill", "before_decode"])
def test_an_interrupted_engine_can_go_on(model: WatchedModel, hook: str) -> None:
    requests = texts(model, 6)
    expected = engine_of(model).run(requests)
    engine = engine_of(model)
    ids = [engine.add(request) for request in requests]
    setattr(model, hook, OnCall(KeyboardInterrupt(), 2))
    steps = []
    interruptions = 0
    while engine.has_work:
        try:
            steps.append(engine.step())
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == 1
    found = by_request(steps)
    for request_id, row in zip(ids, expected, strict=True):
        assert tuple(event.token_id for event in found[request_id]) == row.token_ids


# What is refused


def test_a_request_that_cannot_fit_is_refused_when_it_is_added(model: WatchedModel) -> None:
    engine = engine_of(model, num_positions=30)
    (fits,) = build(model, [Row(prefix=2)], max_new_tokens=3)
    assert engine.run([fits])[0].stop_reason == "length"
    with pytest.raises(PromptError, match=r"31 positions, 4 of them .* 30 per request"):
        engine.add(replace(fits, max_new_tokens=4))
    with pytest.raises(PromptError, match="31 positions"):
        engine.run([fits, replace(fits, max_new_tokens=4)])
    assert not engine.has_work


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": torch.full((27,), 151)}, "range from 151 to 151; the model has 0 to 150"),
        ({"token_ids": torch.full((27,), -1)}, "from -1 to -1"),
        ({"images": ()}, "25 image token positions, but 0 image"),
        ({"image_mask": torch.ones(27, dtype=torch.bool)}, "27 image token positions"),
        ({"images": (KeyedImage(pixel_values=torch.zeros(3, 24, 24)),)}, r"takes \[3, 30, 30\]"),
        ({"constraint": Held(range(140, 152))}, "ids 0 to 150"),
    ],
)
def test_a_request_to_another_model_is_refused_when_it_is_added(
    model: WatchedModel, change: dict[str, Any], message: str
) -> None:
    engine = engine_of(model)
    (request,) = build(model, [Row(prefix=2)])
    with pytest.raises(InputError, match=message):
        engine.add(replace(request, **change))
    assert not engine.has_work


# Prefixes that come again


def test_a_prefix_that_comes_again_is_not_read_again(model: WatchedModel) -> None:
    [request] = build(model, [Row(images=(0,), prefix=4)])
    plain = engine_of(model).run([request])
    engine = engine_of(model, prefix_cache_bytes=10**8)
    model.calls.clear()
    assert all(close(found, plain[0]) for _ in range(3) for found in engine.run([request]))
    assert model.kinds()["prefill"] == 1
    assert (engine.prefixes.num_misses, engine.prefixes.num_hits) == (1, 2)


def test_equal_prefixes_of_one_group_are_read_once(model: WatchedModel) -> None:
    one, other = build(model, [Row(images=(0,), prefix=4), Row(images=(0,), prefix=5)])
    requests = [one, other, one, one]
    plain = engine_of(model).run(requests)
    model.calls.clear()
    found = engine_of(model, prefix_cache_bytes=10**8).run(requests)
    assert all(map(close, found, plain))
    assert [call for call in model.calls if call[0] == "prefill"] == [("prefill", 2)]


def test_seeds_and_grammars_share_a_prefix_and_nothing_else(model: WatchedModel) -> None:
    requests = [
        build(model, [Row(images=(0,), prefix=4)], **options)[0]
        for options in (
            {"sampler": Sampling(temperature=1.0, seed=3)},
            {"sampler": Sampling(temperature=1.0, seed=4)},
            {"row_number": 2, "sampler": Sampling(temperature=1.0, seed=4)},
            {"max_new_tokens": 2},
            {"num_top_logprobs": 2},
        )
    ]
    plain = engine_of(model, max_rows=5).run(requests)
    engine = engine_of(model, max_rows=5, prefix_cache_bytes=10**8)
    assert all(map(close, engine.run(requests), plain))
    assert (engine.prefixes.num_misses, len(engine.prefixes)) == (1, 1)


def test_other_words_images_and_adapters_are_other_prefixes(model: WatchedModel) -> None:
    requests = build(
        model,
        [
            Row(images=(0,), prefix=4),
            Row(images=(1,), prefix=4),
            Row(images=(0,), prefix=5),
            Row(images=(), prefix=4),
            Row(images=(0, 1), prefix=4),
            Row(images=(1, 0), prefix=4),
        ],
    )
    engine = engine_of(model, max_rows=6, prefix_cache_bytes=10**8)
    plain = engine_of(model, max_rows=6).run(requests)
    assert all(map(close, engine.run(requests), plain))
    assert all(map(close, engine.run(requests), plain))
    assert len(engine.prefixes) == 6
    keys = {
        RequestState(
            request_id=0, request=replace(requests[0], adapter=name), vocab_size=99
        ).prefix_key()
        for name in ("", "a", "b")
    }
    assert len(keys) == 3


def test_the_longest_unused_prefixes_make_room(model: WatchedModel) -> None:
    requests = texts(model, 4)
    unlimited = engine_of(model, prefix_cache_bytes=10**8)
    unlimited.run(requests)
    sizes = unlimited.prefixes.num_bytes
    engine = engine_of(model, max_rows=1, prefix_cache_bytes=sizes // 2)
    plain = engine_of(model).run(requests)
    for _ in range(2):
        assert all(map(close, engine.run(requests), plain))
    assert 0 < engine.prefixes.num_bytes <= sizes // 2


def test_a_broken_prefix_is_not_kept(model: WatchedModel) -> None:
    [request] = texts(model, 1)
    engine = engine_of(model, prefix_cache_bytes=10**8)
    weight = model.decoder.final_norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    assert engine.run([request])[0].stop_reason == "numerical_error"
    with torch.no_grad():
        weight.copy_(kept)
    assert close(engine.run([request])[0], engine_of(model).run([request])[0])
    assert len(engine.prefixes) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"num_positions": 0},
        {"max_rows": 0},
        {"max_rows": 2.0},
        {"max_queued": 0},
        {"max_prefill_positions": True},
        {"image_cache_bytes": -1},
        {"prefix_cache_bytes": 1.5},
        {"kv_cache_bytes": 5},
    ],
)
def test_options_that_make_no_engine_are_refused(
    model: WatchedModel, options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match=next(iter(options)).split("_bytes")[0].split("_")[0]):
        engine_of(model, **options)


# Memory


def test_as_many_rows_run_as_fit_into_the_bytes_given(model: WatchedModel) -> None:
    row_bytes = 90 * 2 * 7 * 4 * 14 * 4
    engine = engine_of(model, max_rows=16, kv_cache_bytes=3 * row_bytes + 5)
    for request in texts(model, 5):
        engine.add(request)
    engine.step()
    assert engine.num_running == 3


class Allocations(TorchDispatchMode):
    """Elements of all results of operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
            self.total += out.numel()
        return out


def test_a_decode_step_allocates_the_same_however_large_the_cache_is(model: WatchedModel) -> None:
    totals = []
    for size in ({"num_positions": 60, "max_rows": 3}, {"num_positions": 600, "max_rows": 20}):
        engine = engine_of(model, **size)
        for request in texts(model, 3, max_new_tokens=20):
            engine.add(request)
        engine.step()
        with Allocations() as allocations:
            for _ in range(3):
                engine.step()
        totals.append(allocations.total)
    assert totals[0] == totals[1] > 0


# What else a token brings


def test_the_likeliest_tokens_are_told_where_they_were_asked_for(model: WatchedModel) -> None:
    asked, other = texts(model, 2)
    engine = engine_of(model)
    numbers = [engine.add(replace(asked, num_top_logprobs=3)), engine.add(other)]
    found = by_request(finish(engine))
    for event in found[numbers[0]]:
        assert len(event.top_logprobs) == 3
        assert event.top_logprobs[0].token_id == event.token_id
        assert event.top_logprobs[0].logprob == pytest.approx(event.logprob, abs=1e-6)
        values = [top.logprob for top in event.top_logprobs]
        assert values == sorted(values, reverse=True)
    assert all(event.top_logprobs == () for event in found[numbers[1]])


def test_rows_of_different_seeds_are_chosen_in_one_go(
    model: WatchedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers: list[Sampling] = []
    choose = choose_allowed

    def recorded(logits: Any, held: Any, sampler: Sampling, *rest: Any) -> Any:
        samplers.append(sampler)
        return choose(logits, held, sampler, *rest)

    request = texts(model, 1, max_new_tokens=4)[0]
    seeds = [replace(request, sampler=Sampling(temperature=2.0, seed=seed)) for seed in range(4)]
    alone = [engine_of(model).run([one])[0] for one in seeds]
    monkeypatch.setattr(runner_module, "choose_allowed", recorded)
    together = engine_of(model).run(seeds)
    assert len(samplers) == 4, "one choice a step"
    assert all(close(one, other) for one, other in zip(together, alone, strict=True))
    assert len({row.token_ids for row in together}) > 1


def test_a_token_of_the_range_comes_with_its_distribution(model: WatchedModel) -> None:
    """Quantiles and the range's probability, against the whole distribution of the same step."""
    (request,) = build(model, [Row(images=(0,))], max_new_tokens=12)
    token_id = engine_of(model).run([request])[0].token_ids[3]
    ids = range(max(0, token_id - 10), token_id + 10)
    seen: list[Tensor] = []
    model.after_decode = lambda token_ids, logits: seen.append(logits[0])
    engine = engine_of(model)
    engine.add(replace(request, summarized_ids=ids))
    events = [event for step in finish(engine) for event in step][1:]
    summaries = [event.summary for event in events]
    assert any(summaries)
    for event, logits in zip(events, seen, strict=True):
        if event.token_id not in ids:
            assert event.summary is None
            continue
        probabilities = torch.softmax(logits.double(), dim=0)[ids.start : ids.stop]
        total = float(probabilities.sum())
        assert event.summary is not None
        assert event.summary.probability == pytest.approx(total, abs=1e-5)
        before = (probabilities.cumsum(0) / total - probabilities / total).tolist()
        up_to = (probabilities.cumsum(0) / total).tolist()
        for index, quantile in enumerate(event.summary.quantiles):
            level = (index + 0.5) / len(event.summary.quantiles)
            place = quantile - ids.start
            assert before[place] - 1e-5 <= level <= up_to[place] + 1e-5
