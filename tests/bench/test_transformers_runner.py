"""transformers is asked for the same work, and mending it changes no logit."""

from __future__ import annotations

import pytest
import torch

from paligemma.bench.transformers_runner import (
    MendedTransformersRunner,
    TransformersRunner,
    build,
    mended,
    seconds_to_load,
)
from paligemma.checkpoints.save import save_model
from paligemma.config import Family
from tests.tiny import FAMILIES, tiny_config, tiny_model


@pytest.fixture(scope="module", params=FAMILIES)
def runner(request) -> TransformersRunner:
    family: Family = request.param
    return build(tiny_config(family))


def test_the_model_has_the_shape_and_the_type_of_a_release(runner):
    text = runner.model.config.text_config
    assert runner.model.dtype == torch.bfloat16
    assert text.hidden_size == runner.config.decoder.width
    if runner.config.decoder.post_norms:
        assert text.layer_types[:2] == ["sliding_attention", "full_attention"]
        assert text._attn_implementation == "eager"
    table = runner.model.get_input_embeddings().weight
    assert runner.model.lm_head.weight is table
    assert 0 < table.abs().max() <= 0.02


def test_an_answer_has_as_many_tokens_as_asked_for(runner):
    for each in (runner, MendedTransformersRunner(runner)):
        known_after = each.answer(4, 2)
        assert len(known_after) == 4
        assert known_after == sorted(known_after)
        assert known_after[0] > 0


def test_steps_are_timed_without_their_prefill(runner, monkeypatch):
    lengths = []
    forward = runner.model.model.language_model.forward

    def noted(*arguments, **options):
        lengths.append(tuple(options["inputs_embeds"].shape[:2]))
        return forward(*arguments, **options)

    monkeypatch.setattr(runner.model.model.language_model, "forward", noted)
    assert len(runner.steps(3, 5)) == 3
    assert lengths == [(1, 41), *[(5, 1)] * 4]


@pytest.mark.parametrize("num_rows", [1, 3])
def test_mending_changes_no_logit(runner, num_rows):
    inputs = runner._inputs(num_rows) | {"pixel_values": runner._read_pictures(num_rows)}
    with torch.inference_mode():
        expected = runner.model(**inputs, logits_to_keep=1).logits
        with mended(runner.model):
            found = runner.model(**inputs, logits_to_keep=1).logits
        after = runner.model(**inputs, logits_to_keep=1).logits
    assert found.shape == expected.shape == (num_rows, 1, 192)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=2e-2)
    assert torch.equal(after, expected)


@pytest.mark.parametrize("stage", ["image", "vision", "prefill"])
def test_each_stage_takes_some_time(runner, stage):
    assert getattr(runner, stage)() > 0
    assert getattr(MendedTransformersRunner(runner), stage)() > 0


def test_a_checkpoint_is_loaded(tmp_path):
    save_model(tiny_model().to(torch.bfloat16), tmp_path / "tiny")
    assert seconds_to_load(tmp_path / "tiny") > 0
