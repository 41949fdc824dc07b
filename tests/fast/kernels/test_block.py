"""All decoder blocks in one call equal the blocks one by one, on every level of processor."""

from __future__ import annotations

import pytest
import torch

from paligemma.fast import blocks
from paligemma.fast.accelerate import accelerate
from paligemma.fast.kernels.block import can_run_blocks
from paligemma.fast.kernels.library import Kernels
from paligemma.model.kv_cache import KVCache
from tests.tiny import Row, tiny_inputs, tiny_model


@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int4"])
@torch.inference_mode()
def test_a_prefix_in_one_call_is_the_blocks_one_by_one(
    compiled: Kernels, form: str, only_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    model = tiny_model("paligemma2", depth=2).to(dtype)
    accelerate(model, "int4" if form == "int4" else None)
    inputs = tiny_inputs(model.config, [Row(images=(), prefix=21), Row(images=(), prefix=18)])
    last = torch.tensor([20, 20]) if only_last else None

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        cache = KVCache(model.config.decoder, 2, 30, dtype=model.dtype)
        return model.hidden_states(inputs, kv_cache=cache, at=last), cache.keys + cache.values

    assert can_run_blocks(torch.zeros(1, 21, 48, dtype=dtype))
    states, kept = run()
    monkeypatch.setattr(blocks, "can_run_blocks", lambda x: False)
    expected, expected_kept = run()
    assert torch.equal(states, expected)
    for found, wanted in zip(kept, expected_kept, strict=True):
        assert torch.equal(found, wanted)
