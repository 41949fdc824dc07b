"""Least times, against sums written out by hand."""

from __future__ import annotations

import pytest

from paligemma.bench.costs import (
    cache_bytes,
    decode_work,
    least_seconds,
    prefill_work,
    vision_work,
    weight_bytes,
)
from paligemma.bench.limits import Limits
from paligemma.bench.workload import STAGES
from paligemma.config import count_parameters, release_config
from tests.tiny import tiny_config

CONFIG = release_config("paligemma2", "3b", 224)
LIMITS = Limits(read_bandwidth=31e9, matrix_peak=6.2e12, file_bandwidth=2e9)

# A layer of the 3B: queries and output 2304 x 2048, keys and values 2304 x 1024, three of 9216.
LAYER = 2 * 2304 * 2048 + 2 * 2304 * 1024 + 3 * 2304 * 9216
TABLE = 257152 * 2304


def test_a_decode_step_reads_every_weight_of_the_decoder_and_the_cache():
    work = decode_work(CONFIG.decoder, "bf16", 2, 272)
    cached = 2 * 26 * 4 * 256 * 272
    assert work.num_bytes == 2 * (26 * LAYER + TABLE) + 2 * 2 * cached
    attended = 4 * 26 * 8 * 256 * 272
    assert work.num_operations == 2 * (2 * (26 * LAYER + TABLE) + attended)


def test_quantized_weights_are_read_with_their_scales():
    bf16, int8, int4 = (
        decode_work(CONFIG.decoder, weights, 1, 0).num_bytes for weights in ("bf16", "int8", "int4")
    )
    assert 1.9 < bf16 / int8 < 2
    assert 1.3 < int8 / int4 < 1.8  # attention and the table stay int8


def test_a_prefill_computes_the_output_layer_for_the_last_position_only():
    work = prefill_work(CONFIG.decoder, "bf16", 1, 272)
    attended = 4 * 26 * 8 * 256 * 272**2
    assert work.num_operations == 2 * 26 * LAYER * 272 + attended + 2 * TABLE
    assert work.num_bytes == 2 * (26 * LAYER + TABLE)


def test_the_vision_encoder_works_on_every_patch():
    layer = 4 * 1152**2 + 2 * 1152 * 4304
    weights = 27 * layer + 3 * 14 * 14 * 1152 + 1152 * 2304
    attended = 4 * 27 * 1152 * 256**2
    assert vision_work(CONFIG).num_operations == 2 * 256 * weights + attended


def test_what_is_longer_counts_and_what_follows_adds_up():
    decode = decode_work(CONFIG.decoder, "bf16", 1, 272).seconds(LIMITS)
    assert decode == pytest.approx(5.26e9 / 31e9, rel=0.01)  # memory
    prefill = least_seconds(CONFIG, "bf16", STAGES["prefill"], LIMITS)["prefill"]
    assert prefill == pytest.approx(1.12e12 / 6.2e12, rel=0.01)  # arithmetic
    vision = least_seconds(CONFIG, "bf16", STAGES["vision"], LIMITS)["vision"]
    answer = least_seconds(CONFIG, "bf16", STAGES["answer"], LIMITS)
    assert answer["first token"] == vision + prefill
    assert answer["decode step"] == pytest.approx(decode, rel=0.01)
    caption = least_seconds(CONFIG, "bf16", STAGES["caption"], LIMITS)["caption"]
    assert caption == pytest.approx(vision + prefill + 19 * decode, rel=0.01)


def test_a_batch_reads_the_weights_once():
    one = least_seconds(CONFIG, "int8", STAGES["batch-1"], LIMITS)["batch-1"]
    eight = least_seconds(CONFIG, "int8", STAGES["batch-8"], LIMITS)["batch-8"]
    assert one < eight < 1.2 * one


def test_questions_about_one_picture_see_it_once():
    one = least_seconds(CONFIG, "bf16", STAGES["questions-1"], LIMITS)["questions-1"]
    two = least_seconds(CONFIG, "bf16", STAGES["questions-2"], LIMITS)["questions-2"]
    vision = vision_work(CONFIG).seconds(LIMITS)
    prefill = prefill_work(CONFIG.decoder, "bf16", 1, 272).seconds(LIMITS)
    assert two - one == pytest.approx(prefill, rel=0.06)  # and the steps read a second cache
    assert vision > 0.1 * prefill


def test_there_is_no_limit_for_preparing_a_picture():
    assert least_seconds(CONFIG, "bf16", STAGES["image"], LIMITS) == {}


def test_loading_is_limited_by_the_file():
    seconds = least_seconds(CONFIG, "bf16", STAGES["load"], LIMITS)["load"]
    assert seconds == 2 * count_parameters(CONFIG) / 2e9


@pytest.mark.parametrize("family", ["paligemma", "paligemma2"])
def test_all_weights_of_a_tiny_model_are_counted(family):
    config = tiny_config(family)
    assert weight_bytes(config, "bf16") == 2 * count_parameters(config)


def test_the_cache_holds_picture_prompt_and_answer():
    assert cache_bytes(CONFIG, 3, 8) == 3 * (256 + 16 + 8) * 2 * 26 * 4 * 256 * 2
