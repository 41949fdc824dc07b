"""transformers is asked for the same work as this package."""

from __future__ import annotations

import pytest
import torch

from benchmarks.side_by_side.transformers_runner import (
    FrozenTransformersRunner,
    TransformersRunner,
    build,
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
    for each in (runner, FrozenTransformersRunner(runner)):
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


def test_weights_are_frozen_while_the_frozen_form_works_and_no_longer(runner, monkeypatch):
    frozen = []
    forward = runner.model.lm_head.forward

    def noted(hidden):
        frozen.append(not runner.model.lm_head.weight.requires_grad)
        return forward(hidden)

    monkeypatch.setattr(runner.model.lm_head, "forward", noted)
    runner.answer(2, 1)
    FrozenTransformersRunner(runner).answer(2, 1)
    runner.answer(1, 1)
    assert frozen == [False, False, True, True, False]


@pytest.mark.parametrize("stage", ["image", "vision", "prefill"])
def test_each_stage_takes_some_time(runner, stage):
    assert getattr(runner, stage)() > 0


def test_a_checkpoint_is_loaded(tmp_path):
    save_model(tiny_model().to(torch.bfloat16), tmp_path / "tiny")
    assert seconds_to_load(tmp_path / "tiny") > 0
