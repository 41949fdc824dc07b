"""Shapes by name, and random inputs."""

from __future__ import annotations

import pytest
import torch

from paligemma.bench.workload import (
    fill_with_noise,
    named_config,
    prompt_ids,
)
from paligemma.config import release_config
from paligemma.errors import OptionError
from tests.tiny import tiny_config, tiny_model


@pytest.mark.parametrize(
    "name", ["paligemma2-10b-448", "paligemma2-10b-mix-448", "google/paligemma2-10b-pt-448"]
)
def test_a_shape_has_several_names(name):
    assert named_config(name) == release_config("paligemma2", "10b", 448)


def test_mini_is_a_shape_and_nonsense_is_not():
    assert named_config("mini").decoder.width < 1000
    with pytest.raises(OptionError, match="Unknown shape 'paligemma3'"):
        named_config("paligemma3")


def test_noise_is_small_and_the_same_every_time():
    model, again = tiny_model(), tiny_model(seed=3)
    fill_with_noise(model.parameters())
    fill_with_noise(again.parameters())
    for weight, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other)
        assert weight.abs().max() <= 0.02
    table = model.decoder.embedding.weight
    assert table.std() > 0.01


def test_noise_reaches_the_end_of_a_large_table():
    table = torch.full((2**22 // 1000 + 2, 1000), 7.0)
    fill_with_noise([table])
    assert table.abs().max() <= 0.02


def test_prompts_have_one_length_and_different_words():
    prompts = prompt_ids(tiny_config(), 3)
    assert prompts.shape == (3, 16)
    assert len({tuple(row) for row in prompts.tolist()}) == 3
    assert prompts.min() >= 5
    assert prompts.max() < 151
