"""Bytes and operations, against sums written out by hand."""

from __future__ import annotations

import pytest

from paligemma.bench.limits import (
    decode_work,
    prefill_work,
    vision_work,
    weight_bytes,
)
from paligemma.config import count_parameters, release_config
from tests.tiny import tiny_config

CONFIG = release_config("paligemma2", "3b", 224)

# A layer of the 3B: queries and output 2304 x 2048, keys and values 2304 x 1024, three of 9216.
LAYER = 2 * 2304 * 2048 + 2 * 2304 * 1024 + 3 * 2304 * 9216
TABLE = 257152 * 2304


def test_a_decode_step_reads_every_weight_of_the_decoder_and_the_cache():
    work = decode_work(CONFIG.decoder, "bfloat16", 2, 272)
    cached = 2 * 26 * 4 * 256 * 272
    assert work.num_bytes == 2 * (26 * LAYER + TABLE) + 2 * 2 * cached
    attended = 4 * 26 * 8 * 256 * 272
    assert work.num_operations == 2 * (2 * (26 * LAYER + TABLE) + attended)


def test_quantized_weights_are_read_with_their_scales():
    bf16, int8, int4 = (
        decode_work(CONFIG.decoder, weights, 1, 0).num_bytes
        for weights in ("bfloat16", "int8", "int4")
    )
    assert 1.9 < bf16 / int8 < 2
    assert 1.3 < int8 / int4 < 1.8  # attention and the table stay int8


def test_a_prefill_computes_the_output_layer_and_most_of_the_last_block_for_one_position():
    work = prefill_work(CONFIG.decoder, "bfloat16", 1, 272)
    keys_and_values = 2 * 2304 * 1024
    multiplied = (25 * LAYER + keys_and_values) * 272 + LAYER - keys_and_values + TABLE
    attended = 4 * 8 * 256 * (25 * 272 + 1) * 272
    assert work.num_operations == 2 * multiplied + attended
    assert work.num_bytes == 2 * (26 * LAYER + TABLE)


def test_the_vision_encoder_works_on_every_patch():
    layer = 4 * 1152**2 + 2 * 1152 * 4304
    weights = 27 * layer + 3 * 14 * 14 * 1152 + 1152 * 2304
    attended = 4 * 27 * 1152 * 256**2
    assert vision_work(CONFIG).num_operations == 2 * 256 * weights + attended


@pytest.mark.parametrize("family", ["paligemma", "paligemma2"])
def test_all_weights_of_a_tiny_model_are_counted(family):
    config = tiny_config(family)
    assert weight_bytes(config, "bfloat16") == 2 * count_parameters(config)
