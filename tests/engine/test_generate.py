from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from paligemma.engine.generate import GeneratedRow, generate, generate_steps
from paligemma.engine.sampling import Sampling
from paligemma.errors import OptionError
from paligemma.model.kv_cache import Cache
from paligemma.model.paligemma import PaliGemma
from tests.engine.conftest import MadeRows
from tests.tiny import FLOAT32_TOLERANCE

NEVER = -1
ROWS: MadeRows = [
    ([2, 5, 9, 6], [], True),
    ([2, 11, 30], [], False),
    ([2, 4, 8, 15, 16, 23], [], True),
    ([2, 36], [], True),
]


def greedy_without_cache(
    model: PaliGemma, make_inputs, row, num_tokens: int
) -> tuple[list[int], list[float]]:
    """Each token from a whole new pass over everything before it."""
    prefix, _, has_image = row
    ids: list[int] = []
    logprobs: list[float] = []
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model(make_inputs([(prefix, ids, has_image)]))[0, -1]
        ids.append(int(logits.argmax()))
        logprobs.append(float(torch.log_softmax(logits, dim=0).max()))
    return ids, logprobs


@pytest.mark.parametrize("gemma2", [False, True])
@pytest.mark.parametrize("sliding_window", [None, 5])
@pytest.mark.parametrize("pad_left", [False, True])
def test_the_loop_with_cache_equals_a_full_pass_for_every_token(
    make_model, make_inputs, gemma2: bool, sliding_window: int | None, pad_left: bool
) -> None:
    model = make_model(gemma2=gemma2, sliding_window=sliding_window)
    found = generate(
        model, make_inputs(ROWS[:1], pad_left=pad_left), max_new_tokens=9, eos_id=NEVER
    )[0]
    ids, logprobs = greedy_without_cache(model, make_inputs, ROWS[0], 9)
    assert list(found.token_ids) == ids
    assert found.logprobs == pytest.approx(logprobs, abs=FLOAT32_TOLERANCE)
    assert found.stop_reason == "length"
    assert len(set(ids)) > 2


def alone(model: PaliGemma, make_inputs, number: int, **options: Any) -> GeneratedRow:
    inputs = make_inputs(ROWS)
    index = inputs.image_index[number]
    single = replace(make_inputs([ROWS[number]]), pixel_values=inputs.pixel_values[list(index)])
    return generate(model, single, row_numbers=[number], **options)[0]


@pytest.mark.parametrize("pad_left", [False, True])
@pytest.mark.parametrize(
    "sampler",
    [Sampling(temperature=0), Sampling(seed=4), Sampling(temperature=2, top_k=9, top_p=0.8)],
)
def test_a_row_gets_the_same_in_a_batch_as_alone(
    make_model, make_inputs, sampler: Sampling, pad_left: bool
) -> None:
    model = make_model()
    options: dict[str, Any] = {"max_new_tokens": 8, "eos_id": 1, "sampler": sampler}
    batch = generate(model, make_inputs(ROWS, pad_left=pad_left), **options)
    for number, row in enumerate(batch):
        single = alone(model, make_inputs, number, **options)
        assert row.token_ids == single.token_ids
        assert row.logprobs == pytest.approx(single.logprobs, abs=FLOAT32_TOLERANCE)
        assert row.stop_reason == single.stop_reason


def test_rows_that_end_at_different_steps_do_not_disturb_the_rest(make_model, make_inputs) -> None:
    model = make_model()
    whole = generate(model, make_inputs(ROWS), max_new_tokens=10, eos_id=NEVER)
    lengths = [2, 10, 1, 4]
    cut = generate(
        model,
        make_inputs(ROWS),
        max_new_tokens=10,
        eos_id=NEVER,
        should_stop=lambda row, ids: len(ids) == lengths[row] < 10,
    )
    for row, long, length in zip(cut, whole, lengths, strict=True):
        assert row.token_ids == long.token_ids[:length]
        assert row.logprobs == pytest.approx(long.logprobs[:length], abs=FLOAT32_TOLERANCE)
        assert row.stop_reason == ("length" if length == 10 else "stop")


def test_each_row_may_have_its_own_number_of_new_tokens(make_model, make_inputs) -> None:
    model = make_model()
    whole = generate(model, make_inputs(ROWS), max_new_tokens=10, eos_id=NEVER)
    limits = [3, 1, 10, 2]
    cut = generate(model, make_inputs(ROWS), max_new_tokens=limits, eos_id=NEVER)
    assert [row.token_ids for row in cut] == [
        long.token_ids[:limit] for long, limit in zip(whole, limits, strict=True)
    ]
    assert {row.stop_reason for row in cut} == {"length"}


def test_a_row_ends_with_its_first_eos_and_keeps_it(make_model, make_inputs) -> None:
    model = make_model()
    whole = generate(model, make_inputs(ROWS), max_new_tokens=10, eos_id=NEVER)
    eos_id = whole[0].token_ids[3]
    for row, long in zip(
        generate(model, make_inputs(ROWS), max_new_tokens=10, eos_id=eos_id), whole, strict=True
    ):
        if eos_id in long.token_ids:
            end = long.token_ids.index(eos_id) + 1
            assert (row.token_ids, row.stop_reason) == (long.token_ids[:end], "eos")
        else:
            assert (row.token_ids, row.stop_reason) == (long.token_ids, "length")


def test_an_eos_in_the_last_allowed_place_counts_as_eos(make_model, make_inputs) -> None:
    model = make_model()
    first = generate(model, make_inputs(ROWS[:1]), max_new_tokens=1, eos_id=NEVER)[0]
    assert first.stop_reason == "length"
    again = generate(model, make_inputs(ROWS[:1]), max_new_tokens=1, eos_id=first.token_ids[0])[0]
    assert again == replace(first, stop_reason="eos")


def test_steps_come_one_by_one_and_add_up_to_the_whole(make_model, make_inputs) -> None:
    model = make_model()
    options: dict[str, Any] = {"max_new_tokens": 5, "eos_id": 1, "sampler": Sampling(seed=2)}
    steps = list(generate_steps(model, make_inputs(ROWS), **options))
    for number, row in enumerate(generate(model, make_inputs(ROWS), **options)):
        mine = [step for step in steps if step.row == number]
        assert tuple(step.token_id for step in mine) == row.token_ids
        assert [step.stop_reason for step in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].stop_reason == row.stop_reason


def test_the_callers_own_mode_is_kept_between_steps(make_model, make_inputs) -> None:
    for _ in generate_steps(make_model(), make_inputs(ROWS), max_new_tokens=3, eos_id=1):
        assert not torch.is_inference_mode_enabled()


def test_given_image_tokens_stand_in_for_the_images(make_model, make_inputs) -> None:
    model = make_model()
    inputs = make_inputs(ROWS)
    with torch.inference_mode():
        image_tokens = model.embed_images(inputs.pixel_values)
    blank = replace(inputs, pixel_values=torch.zeros_like(inputs.pixel_values))
    options: dict[str, Any] = {"max_new_tokens": 4, "eos_id": 1}
    given = generate(model, blank, image_tokens=image_tokens, **options)
    assert given == generate(model, inputs, **options)
    assert given != generate(model, blank, **options)


class PoisonedModel(PaliGemma):
    """Breaks one row's logits in the second decode step."""

    value = float("nan")
    row = 1

    def decode_step(
        self, token_ids: Tensor, kv_cache: Cache, vocab_range: range | None = None
    ) -> Tensor:
        logits = super().decode_step(token_ids, kv_cache, vocab_range).clone()
        self.num_steps = getattr(self, "num_steps", 0) + 1
        if self.num_steps == 2:
            logits[self.row, 3] = self.value
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_logits_end_their_own_row_and_no_other(
    make_model, make_inputs, value: float
) -> None:
    model = make_model()
    clean = generate(model, make_inputs(ROWS), max_new_tokens=6, eos_id=NEVER)
    model.__class__ = PoisonedModel
    model.value = value
    found = generate(model, make_inputs(ROWS), max_new_tokens=6, eos_id=NEVER)
    assert found[1] == GeneratedRow(
        token_ids=clean[1].token_ids[:2],
        logprobs=clean[1].logprobs[:2],
        stop_reason="numerical_error",
        allowed_probabilities=(1.0, 1.0),
    )
    assert [found[row] for row in (0, 2, 3)] == [clean[row] for row in (0, 2, 3)]


def test_a_row_broken_from_the_start_has_no_tokens(make_model, make_inputs) -> None:
    model = make_model()
    with torch.no_grad():
        model.decoder.embedding.weight[36] = float("nan")
    # Token 36 is also an output: its logit is NaN in every row.
    rows = generate(model, make_inputs(ROWS), max_new_tokens=6, eos_id=NEVER)
    assert rows == [GeneratedRow(token_ids=(), logprobs=(), stop_reason="numerical_error")] * 4


@pytest.mark.parametrize("max_new_tokens", [0, -3, 1.5, True, None, [1, 0, 2, 3]])
def test_a_number_of_new_tokens_below_one_is_refused(
    make_model, make_inputs, max_new_tokens: Any
) -> None:
    with pytest.raises(OptionError, match="max_new_tokens"):
        generate(make_model(), make_inputs(ROWS), max_new_tokens=max_new_tokens, eos_id=1)
