"""The runner does the work that it is timed for."""

from __future__ import annotations

import pytest
import torch

from paligemma.bench.runner import ModelRunner, build_runner
from paligemma.engine.generate import generate
from paligemma.fast.weights import Plain
from paligemma.inputs import ModelInputs
from tests.tiny import tiny_config, tiny_model


@pytest.fixture
def runner() -> ModelRunner:
    return ModelRunner(tiny_model())


def recorded(monkeypatch: pytest.MonkeyPatch, runner: ModelRunner) -> list[tuple[int, ...]]:
    """The token ids that go into every decode step from now on."""
    steps: list[tuple[int, ...]] = []
    step = runner.model.decode_step

    def decode_step(token_ids, cache):
        steps.append(tuple(token_ids.tolist()))
        return step(token_ids, cache)

    monkeypatch.setattr(runner.model, "decode_step", decode_step)
    return steps


def test_an_answer_is_that_of_the_plain_loop(runner, monkeypatch):
    inputs: list[ModelInputs] = []
    prefill = runner.model.prefill

    def noted(given, cache, image_tokens):
        inputs.append(given)
        return prefill(given, cache, image_tokens)

    monkeypatch.setattr(runner.model, "prefill", noted)
    steps = recorded(monkeypatch, runner)
    available_after = runner.answer(5, 2)
    monkeypatch.undo()
    assert len(available_after) == 5
    assert available_after == sorted(available_after)
    rows = generate(runner.model, inputs[0], max_new_tokens=5, eos_id=-1)
    expected = list(zip(*(row.token_ids for row in rows), strict=True))
    assert steps == expected[:4]


def test_steps_go_on_as_an_answer_does(runner, monkeypatch):
    runner._image_tokens = runner.model.embed_images(runner._pixel_values).detach()
    steps = recorded(monkeypatch, runner)
    runner.answer(5, 1)
    alone = [ids[0] for ids in steps]
    steps.clear()
    assert len(runner.steps(4, 3)) == 4
    assert steps == [(token_id,) * 3 for token_id in alone]


@pytest.mark.parametrize("stage", ["image", "vision", "prefill"])
def test_each_stage_takes_some_time(runner, stage):
    assert getattr(runner, stage)() > 0


def test_a_plain_model_is_made_in_bfloat16():
    model = build_runner(tiny_config(), Plain("bfloat16")).model
    assert model.dtype == torch.bfloat16
    assert all(p.isfinite().all() for p in model.parameters())
