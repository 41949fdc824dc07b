"""The memory and time of training, by arithmetic."""

from __future__ import annotations

import pytest
import torch

from paligemma.config import count_parameters, release_config
from paligemma.finetune.run.memory_estimate import estimate, measure_rate

CONFIG = release_config("paligemma2", "3b", 224)


def test_all_weights_take_sixteen_bytes_each_and_adapters_little() -> None:
    full = estimate(CONFIG, "full", text_length=64, batch_size=1)
    assert full.weights + full.training == 16 * count_parameters(CONFIG)
    lora = estimate(CONFIG, "lora", text_length=64, batch_size=1)
    assert lora.weights < 1.05 * 2 * count_parameters(CONFIG)
    assert lora.training < 0.01 * full.training
    qlora = estimate(CONFIG, "qlora", text_length=64, batch_size=1)
    assert qlora.weights < 0.6 * lora.weights
    assert qlora.total < lora.total < full.total


def test_parts_of_a_batch_take_less_memory_and_the_same_arithmetic() -> None:
    whole = estimate(CONFIG, "lora", text_length=64, batch_size=8)
    parts = estimate(CONFIG, "lora", text_length=64, batch_size=8, accumulation=8)
    assert parts.activations < 0.3 * whole.activations
    assert parts.operations == whole.operations


def test_computing_blocks_twice_takes_less_memory_and_more_arithmetic() -> None:
    kept = estimate(CONFIG, "full", text_length=64, batch_size=8, checkpoint_activations=False)
    twice = estimate(CONFIG, "full", text_length=64, batch_size=8, checkpoint_activations=True)
    assert twice.activations < kept.activations
    assert twice.operations > 1.2 * kept.operations


def test_the_arithmetic_of_a_step_is_six_operations_a_weight_and_token() -> None:
    found = estimate(CONFIG, "full", text_length=64, batch_size=1, checkpoint_activations=False)
    decoder = CONFIG.decoder
    table = decoder.vocab_size * decoder.width
    tokens = 256 + 64
    plain = 6 * (count_parameters(CONFIG) - table) * tokens
    assert found.operations == pytest.approx(plain, rel=0.15)


def test_the_rate_of_this_machine_is_a_sensible_number() -> None:
    assert 1e8 < measure_rate(torch.device("cpu")) < 1e15
