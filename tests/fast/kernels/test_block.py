"""All decoder blocks in one call equal the blocks one by one, on every level of processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from paligemma.fast import blocks
from paligemma.fast.accelerate import accelerate
from paligemma.fast.kernels.block import can_run_blocks
from paligemma.fast.kernels.library import Kernels
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma
from tests.tiny import Row, tiny_inputs, tiny_model

Output = tuple[torch.Tensor, list[torch.Tensor]]


def packed_model(form: str) -> PaliGemma:
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    model = tiny_model("paligemma2", depth=2).to(dtype)
    accelerate(model, "int4" if form == "int4" else None)
    assert can_run_blocks(torch.zeros(1, 21, 48, dtype=dtype))
    return model


def run(model: PaliGemma, inputs: ModelInputs, at: torch.Tensor | None) -> Output:
    """Return the states, and the keys and values of the slots that hold a token."""
    cache = KVCache(model.config.decoder, len(inputs.token_ids), 90, dtype=model.dtype)
    states = model.hidden_states(inputs, kv_cache=cache, at=at)
    row, slot = torch.where(cache.valid)
    return states, [memory[row, :, slot] for memory in cache.keys + cache.values]


def assert_equal(found: Output, expected: Output) -> None:
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1], expected[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int4"])
@torch.inference_mode()
def test_a_prefix_in_one_call_is_the_blocks_one_by_one(
    compiled: Kernels, form: str, only_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed_model(form)
    inputs = tiny_inputs(model.config, [Row(images=(), prefix=21), Row(images=(), prefix=18)])
    last = torch.tensor([20, 20]) if only_last else None
    in_one_call = run(model, inputs, last)
    monkeypatch.setattr(blocks, "can_run_blocks", lambda x: False)
    assert_equal(in_one_call, run(model, inputs, last))


TOLERANCE = {"float32": 3e-6, "bfloat16": 0.05, "int4": 0.05}

# Neighbors of the same length, and rows that begin in the middle of a tile.
LENGTHS = (25, 40, 40, 70, 17, 17, 17)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int4"])
@torch.inference_mode()
def test_prefixes_without_their_pads_are_those_with_them(
    compiled: Kernels, form: str, pad: Literal["left", "right"], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed_model(form)
    inputs = tiny_inputs(model.config, [Row(images=(), prefix=n) for n in LENGTHS], pad=pad)
    last = torch.full((len(LENGTHS),), 69) if pad == "left" else torch.tensor(LENGTHS) - 1
    in_one_call = run(model, inputs, last)
    monkeypatch.setattr(blocks, "can_run_blocks", lambda x: False)
    assert_equal(in_one_call, run(model, inputs, last))


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int4"])
@torch.inference_mode()
def test_a_prefix_beside_longer_ones_is_the_prefix_alone(compiled: Kernels, form: str) -> None:
    model = packed_model(form)
    lengths = (5, 41, 1, 16, 17, 70)  # up to 16, queries are processed one by one
    rows = [Row(images=(), prefix=n) for n in lengths]
    inputs = tiny_inputs(model.config, rows, pad="right")
    together, _ = run(model, inputs, torch.tensor(lengths) - 1)
    for number, length in enumerate(lengths):
        alone, _ = run(model, inputs.row(number), torch.tensor([length - 1]))
        torch.testing.assert_close(together[number], alone[0], rtol=0, atol=TOLERANCE[form])


@torch.inference_mode()
def test_the_slots_of_pads_stay_as_they_are(compiled: Kernels) -> None:
    model = packed_model("float32")
    inputs = tiny_inputs(model.config, [Row(images=(), prefix=n) for n in (3, 9)], pad="right")
    cache = KVCache(model.config.decoder, 2, 12, dtype=model.dtype)
    for memory in cache.keys + cache.values:
        memory.fill_(7.0)
    model.hidden_states(inputs, kv_cache=cache, at=torch.tensor([2, 8]))
    for memory in cache.keys + cache.values:
        assert (memory[0, :, 3:] == 7.0).all()
        assert (memory[1, :, 9:] == 7.0).all()
        assert (memory[0, :, :3] != 7.0).all()
        assert (memory[1, :, :9] != 7.0).all()


@torch.inference_mode()
def test_a_sequence_of_pads_alone_leaves_the_others_as_they_are(compiled: Kernels) -> None:
    model = packed_model("float32")
    inputs = tiny_inputs(model.config, [Row(images=(), prefix=n) for n in (9, 9, 4)], pad="right")
    at = torch.tensor([8, 0, 3])
    expected, _ = run(model, inputs, at)
    mask = inputs.input_mask.clone()
    mask[1] = False
    states, _ = run(model, replace(inputs, input_mask=mask), at)
    assert torch.equal(states[[0, 2]], expected[[0, 2]])
    assert states.isfinite().all()
