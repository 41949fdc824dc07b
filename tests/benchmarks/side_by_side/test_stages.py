"""Stages by name, and their least times against sums written out by hand."""

from __future__ import annotations

import pytest

from benchmarks.side_by_side import stages
from benchmarks.side_by_side.stages import (
    STAGES,
    cache_bytes,
    choose_stages,
    least_seconds,
    seconds_to_read_weights,
)
from paligemma.bench.limits import Limits, decode_work, prefill_work, vision_work
from paligemma.config import count_parameters, release_config
from paligemma.errors import OptionError

CONFIG = release_config("paligemma2", "3b", 224)
LIMITS = Limits(read_bandwidth=31e9, matrix_peak=6.2e12)


def test_what_is_longer_counts_and_what_follows_adds_up():
    decode = decode_work(CONFIG.decoder, "bfloat16", 1, 272).seconds(LIMITS)
    assert decode == pytest.approx(5.26e9 / 31e9, rel=0.01)  # memory
    prefill = least_seconds(CONFIG, "bfloat16", STAGES["prefill"], LIMITS)["prefill"]
    assert prefill == pytest.approx(1.078e12 / 6.2e12, rel=0.01)  # arithmetic
    vision = least_seconds(CONFIG, "bfloat16", STAGES["vision"], LIMITS)["vision"]
    answer = least_seconds(CONFIG, "bfloat16", STAGES["answer"], LIMITS)
    assert answer["first token"] == vision + prefill
    assert answer["decode step"] == pytest.approx(decode, rel=0.01)
    caption = least_seconds(CONFIG, "bfloat16", STAGES["caption"], LIMITS)["caption"]
    assert caption == pytest.approx(vision + prefill + 19 * decode, rel=0.01)


def test_a_batch_reads_the_weights_once():
    one = least_seconds(CONFIG, "int8", STAGES["batch-1"], LIMITS)["batch-1"]
    eight = least_seconds(CONFIG, "int8", STAGES["batch-8"], LIMITS)["batch-8"]
    assert one < eight < 1.2 * one


def test_questions_about_one_image_encode_it_once():
    one = least_seconds(CONFIG, "bfloat16", STAGES["questions-1"], LIMITS)["questions-1"]
    two = least_seconds(CONFIG, "bfloat16", STAGES["questions-2"], LIMITS)["questions-2"]
    vision = vision_work(CONFIG).seconds(LIMITS)
    prefill = prefill_work(CONFIG.decoder, "bfloat16", 1, 272).seconds(LIMITS)
    assert two - one == pytest.approx(prefill, rel=0.06)  # and the steps read a second cache
    assert vision > 0.1 * prefill


def test_there_is_no_limit_for_preprocessing():
    assert least_seconds(CONFIG, "bfloat16", STAGES["image"], LIMITS) == {}


def test_loading_is_limited_by_the_file():
    seconds = seconds_to_read_weights(CONFIG, "bfloat16", 2e9)
    assert seconds == 2 * count_parameters(CONFIG) / 2e9


def test_the_cache_holds_image_prompt_and_answer():
    assert cache_bytes(CONFIG, 3, 8) == 3 * (256 + 16 + 8) * 2 * 26 * 4 * 256 * 2


def test_a_folders_weights_are_read_to_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "_PIECE_BYTES", 1000)
    (tmp_path / "model.safetensors").write_bytes(bytes(2500))
    (tmp_path / "config.json").write_bytes(bytes(10))
    monkeypatch.setattr(stages, "median_seconds", lambda read: read() or 0.5)
    assert stages.file_bandwidth(tmp_path) == 5000


def test_groups_of_stages_open_up_and_each_stage_comes_once():
    names = [stage.name for stage in choose_stages(["batch", "answer", "batch-8", "image"])]
    batches = [f"batch-{n}" for n in (1, 2, 4, 8, 16, 32, 64)]
    assert names == ["image", "answer", *batches]
    assert {stage.name for stage in choose_stages(["all", "load"])} == set(STAGES)


def test_an_answer_gives_two_figures_and_every_other_stage_one():
    assert STAGES["answer"].metrics == ("first token", "decode step")
    assert STAGES["caption"].metrics == ("caption",)
    assert (STAGES["caption"].num_tokens, STAGES["detect"].num_tokens) == (20, 18)
    assert STAGES["questions-32"].num_rows == 32


def test_an_unknown_stage_is_refused():
    with pytest.raises(OptionError, match="Unknown stage 'decode'"):
        choose_stages(["decode"])
