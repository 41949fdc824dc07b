"""Rows in slots of one preallocated cache get what they get in a cache of their own."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from paligemma.config import Family
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache, SlotCache
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FLOAT32_TOLERANCE, Row, tiny_inputs, tiny_model

WINDOW: dict[str, Any] = {"sliding_window": 6, "sliding_layers": (True, False) * 3 + (True,)}
MODELS: list[tuple[Family, dict[str, Any]]] = [
    ("paligemma", {}),
    ("paligemma2", {}),
    ("paligemma2", WINDOW),
]


def slots_for(model: PaliGemma, num_slots: int = 4, num_positions: int = 60) -> SlotCache:
    return SlotCache(model.config.decoder, num_slots, num_positions, dtype=model.dtype)


def join(model: PaliGemma, slots: SlotCache, inputs: ModelInputs) -> torch.Tensor:
    logits = model.prefill(inputs, slots.fresh(len(inputs.token_ids)))
    slots.admit(inputs.input_mask.sum(dim=1).tolist())
    return logits


class Twin:
    """One row in a plain cache of its own."""

    def __init__(self, model: PaliGemma, prefix: int) -> None:
        self.model = model
        self.inputs = tiny_inputs(model.config, [Row(images=(), prefix=prefix)], seed=prefix)
        self.cache = KVCache(model.config.decoder, 1, 60, dtype=model.dtype)
        self.first_logits = model.prefill(self.inputs, self.cache)[0]

    def step(self, token_id: int) -> torch.Tensor:
        return self.model.decode_step(torch.tensor([token_id]), self.cache)[0]


def together(twins: list[Twin]) -> ModelInputs:
    """The rows of several twins in one batch, pads on the right."""
    longest = max(twin.inputs.token_ids.shape[1] for twin in twins)
    token_ids = torch.zeros(len(twins), longest, dtype=torch.long)
    input_mask = torch.zeros_like(token_ids, dtype=torch.bool)
    for row, twin in enumerate(twins):
        token_ids[row, : twin.inputs.token_ids.shape[1]] = twin.inputs.token_ids[0]
        input_mask[row, : twin.inputs.token_ids.shape[1]] = True
    nothing = torch.zeros_like(input_mask)
    return ModelInputs(
        token_ids=token_ids,
        input_mask=input_mask,
        mask_ar=nothing,
        image_mask=nothing,
        pixel_values=torch.zeros(0, 3, 30, 30),
        image_index=((),) * len(twins),
    )


@pytest.mark.parametrize(("family", "fields"), MODELS)
@torch.inference_mode()
def test_rows_that_come_and_go_equal_rows_in_caches_of_their_own(family, fields) -> None:
    model = tiny_model(family, **fields)
    slots = slots_for(model)
    chance = random.Random(5)
    rows: list[Twin] = []
    for step in range(40):
        if chance.random() < 0.5 and slots.num_rows < 4:
            joining = [
                Twin(model, chance.randint(1, 12))
                for _ in range(chance.randint(1, 4 - slots.num_rows))
            ]
            logits = join(model, slots, together(joining))
            expected = torch.stack([twin.first_logits for twin in joining])
            assert (logits - expected).abs().max() < FLOAT32_TOLERANCE
            rows += joining
        if rows and chance.random() < 0.4:
            leaver = chance.randrange(len(rows))
            slots.remove(leaver)
            last = rows.pop()
            if leaver < len(rows):
                rows[leaver] = last
        if rows:
            ids = [chance.randrange(4, 151) for _ in rows]
            logits = model.decode_step(torch.tensor(ids), slots)
            expected = torch.stack([t.step(i) for t, i in zip(rows, ids, strict=True)])
            assert (logits - expected).abs().max() < FLOAT32_TOLERANCE, step
        assert slots.row_lengths == [twin.cache.length for twin in rows]
        assert slots.lengths.tolist() == slots.row_lengths + [0] * (4 - len(rows))


@pytest.mark.parametrize(("family", "fields"), MODELS)
@torch.inference_mode()
def test_several_tokens_in_one_pass_equal_one_at_a_time(family, fields) -> None:
    model = tiny_model(family, **fields)
    inputs = tiny_inputs(model.config, [Row(prefix=3), Row(images=(), prefix=7)], pad="right")
    tokens = torch.tensor([[9, 50, 8, 77], [5, 120, 31, 4]])
    slots = [slots_for(model) for _ in range(2)]
    plain = [KVCache(model.config.decoder, 2, 60, dtype=model.dtype) for _ in range(2)]
    for cache in slots:
        join(model, cache, inputs)
    for batch_cache in plain:
        model.prefill(inputs, batch_cache)
    expected = torch.stack([model.decode_step(ids, plain[0]) for ids in tokens.T], dim=1)
    for either in (plain[1], slots[0]):
        assert (model.extend(tokens, either) - expected).abs().max() < FLOAT32_TOLERANCE
    steps = torch.stack([model.decode_step(ids, slots[1]) for ids in tokens.T], dim=1)
    assert (steps - expected).abs().max() < FLOAT32_TOLERANCE


@torch.inference_mode()
def test_tokens_taken_back_leave_no_trace() -> None:
    model = tiny_model()
    slots, untouched = slots_for(model), slots_for(model)
    inputs = tiny_inputs(model.config, [Row(prefix=3), Row(prefix=8)], pad="right")
    for cache in (slots, untouched):
        join(model, cache, inputs)
    before = list(slots.row_lengths)
    model.extend(torch.tensor([[9, 50, 8], [5, 120, 31]]), slots)
    slots.truncate(0, before[0] + 1)
    slots.truncate(1, before[1])
    # Row 0 keeps its 9, and the other row joins it there only now.
    expected = model.extend(torch.tensor([[9, 60], [77, 13]]), untouched)
    found = model.decode_step(torch.tensor([60, 77]), slots)
    assert (found[0] - expected[0, 1]).abs().max() < FLOAT32_TOLERANCE
    assert (found[1] - expected[1, 0]).abs().max() < FLOAT32_TOLERANCE
    assert slots.row_lengths == slots.lengths[:2].tolist() == [before[0] + 2, before[1] + 1]


@torch.inference_mode()
def test_a_wiped_slot_is_safe_for_the_next_row() -> None:
    model = tiny_model()
    slots = slots_for(model, num_slots=2)
    broken = tiny_inputs(model.config, [Row(prefix=3), Row(images=(1,), prefix=12)], pad="right")
    assert broken.pixel_values is not None
    broken.pixel_values[1] = float("nan")
    healthy = join(model, slots, broken).isfinite().all(dim=1)
    assert healthy.tolist() == [True, False]
    slots.wipe(1)
    slots.remove(1)
    twin = Twin(model, 4)
    join(model, slots, together([twin]))
    logits = model.decode_step(torch.tensor([7, 8]), slots)
    assert (logits[1] - twin.step(8)).abs().max() < FLOAT32_TOLERANCE


@torch.inference_mode()
def test_memory_is_allocated_once_and_a_step_sees_views_of_it() -> None:
    model = tiny_model()
    slots = slots_for(model)
    places = [memory.data_ptr() for memory in (*slots.keys, *slots.values)]
    join(model, slots, together([Twin(model, 4), Twin(model, 9)]))
    for _ in range(3):
        model.decode_step(torch.tensor([7, 8]), slots)
    slots.remove(0)
    assert [memory.data_ptr() for memory in (*slots.keys, *slots.values)] == places
    slots.claim(torch.ones(1, 1, dtype=torch.bool), slots.next_position[:, None])
    keys, values = slots.write(0, torch.ones(1, 4, 1, 14), torch.ones(1, 4, 1, 14))
    assert keys.data_ptr() == slots.keys[0].data_ptr()
    assert values.shape == (1, 4, slots.length, 14) == (1, 4, 13, 14)


@torch.inference_mode()
def test_a_prefill_that_was_not_admitted_takes_no_slot() -> None:
    model = tiny_model()
    slots = slots_for(model, num_slots=1)
    model.prefill(Twin(model, 9).inputs, slots.fresh(1))
    assert slots.num_rows == 0
    twin = Twin(model, 4)
    join(model, slots, twin.inputs)
    assert (
        model.decode_step(torch.tensor([7]), slots)[0] - twin.step(7)
    ).abs().max() < FLOAT32_TOLERANCE


@torch.inference_mode()
def test_full_slots_say_so_and_take_nothing() -> None:
    model = tiny_model()
    slots = slots_for(model, num_slots=2, num_positions=5)
    with pytest.raises(IndexError, match="2 slots, 0 of them taken; 3 more"):
        slots.fresh(3)
    join(model, slots, together([Twin(model, 5), Twin(model, 2)]))
    with pytest.raises(IndexError, match="5 positions; 6 are needed"):
        model.decode_step(torch.tensor([7, 8]), slots)
    assert slots.row_lengths == slots.lengths.tolist() == [5, 2]


def test_bytes_of_a_position_are_those_of_the_tensors() -> None:
    for family, fields in MODELS:
        model = tiny_model(family, **fields)
        slots = slots_for(model, num_slots=3, num_positions=7)
        total = sum(memory.nbytes for memory in (*slots.keys, *slots.values))
        each = SlotCache.bytes_per_position(model.config.decoder, model.dtype)
        assert each * 3 * 7 == total
        half = SlotCache.bytes_per_position(model.config.decoder, torch.bfloat16)
        assert half * 2 == each
