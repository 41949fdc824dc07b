"""Attention over long prefixes, a chunk of queries at a time: the same results in less memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from paligemma.config import Family
from paligemma.model import attention
from paligemma.model.kv_cache import KVCache
from tests.tiny import FAMILIES, FLOAT32_TOLERANCE, Row, tiny_inputs, tiny_model

ROOT = Path(__file__).parents[2]
MEBIBYTE = 2**20


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_chunks_of_queries_are_all_queries_at_once(
    family: Family, pad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    inputs = tiny_inputs(model.config, [Row(prefix=4), Row(prefix=9, suffix=5)], pad=pad)

    def states() -> torch.Tensor:
        cache = KVCache(model.config.decoder, 2, 60, dtype=model.dtype)
        return model.hidden_states(inputs, kv_cache=cache)

    at_once = states()
    monkeypatch.setattr(attention, "_CHUNK_LOGITS", 1)
    monkeypatch.setattr(attention, "_SMALLEST_CHUNK", 7)
    assert (states() - at_once)[inputs.input_mask].abs().max() < FLOAT32_TOLERANCE


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
@pytest.mark.parametrize("form", ["model", "accelerate(model.bfloat16())"])
def test_the_prefix_of_896_pixels_takes_little_memory(form: str) -> None:
    """4,112 positions: the logits of one layer would take 541 MB, and a copy of them as much."""
    program = f"""
        import resource
        import torch
        from dataclasses import replace
        from paligemma.fast.accelerate import accelerate
        from paligemma.model.kv_cache import KVCache
        from paligemma.model.paligemma import PaliGemma
        from tests.tiny import Row, tiny_config, tiny_inputs

        torch.set_num_threads(1)
        config = tiny_config("paligemma", depth=1)
        config = replace(config, vision=replace(config.vision, resolution=384, depth=1))
        model = PaliGemma(config).eval()
        model = {form}
        inputs = tiny_inputs(config, [Row(prefix=16)])
        length = inputs.token_ids.shape[1]
        assert length == 4112
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with torch.inference_mode():
            cache = KVCache(config.decoder, 1, length, dtype=model.dtype)
            model.hidden_states(inputs, kv_cache=cache)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 250 * MEBIBYTE
