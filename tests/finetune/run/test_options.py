"""What follows where a person chooses nothing, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from paligemma.config import release_config
from paligemma.errors import OptionError
from paligemma.finetune.config import LEARNING_RATES
from paligemma.finetune.run.options import RunOptions, default_learning_rate, plan_training, size_of
from tests.tiny import tiny_config


@pytest.mark.parametrize("size", ["3b", "10b", "28b"])
def test_sizes_are_told_by_their_parameters(size: str) -> None:
    assert size_of(release_config("paligemma2", size, 448)) == size


def test_a_small_model_takes_larger_steps_than_3b() -> None:
    small, large = tiny_config("paligemma2"), release_config("paligemma2", "3b", 224)
    assert size_of(small) == "mini"
    for method, rates in LEARNING_RATES.items():
        assert default_learning_rate(method, large) == rates["3b"]
        assert default_learning_rate(method, small) > rates["3b"]


def test_the_length_is_ten_epochs_of_batches_of_eight_by_default() -> None:
    config = plan_training(RunOptions(data="x"), tiny_config("paligemma"), 100)
    assert (config.batch_size, config.num_steps) == (8, 125)
    assert plan_training(RunOptions(data="x"), tiny_config("paligemma"), 3).batch_size == 3


def test_what_is_chosen_goes_before_a_recipe() -> None:
    model = release_config("paligemma", "3b", 224)
    by_recipe = plan_training(RunOptions(data="x", recipe="chartqa", method="full"), model, 1000)
    assert by_recipe.learning_rate == 1e-5
    assert by_recipe.label_smoothing == 0.2
    assert by_recipe.weight_decay_kind == "big_vision"
    chosen = RunOptions(
        data="x", recipe="chartqa", method="full", label_smoothing=0.0, learning_rate=2e-6, steps=7
    )
    config = plan_training(chosen, model, 1000)
    assert (config.label_smoothing, config.learning_rate, config.num_steps) == (0.0, 2e-6, 7)


def test_adapters_keep_their_own_rate_with_a_recipe() -> None:
    model = release_config("paligemma", "3b", 224)
    config = plan_training(RunOptions(data="x", recipe="chartqa", method="lora"), model, 1000)
    assert config.learning_rate == LEARNING_RATES["lora"]["3b"]


def test_large_models_compute_blocks_twice_and_small_ones_do_not() -> None:
    large, small = release_config("paligemma", "3b", 224), tiny_config("paligemma")
    assert plan_training(RunOptions(data="x"), large, 9).checkpoint_activations
    assert not plan_training(RunOptions(data="x"), small, 9).checkpoint_activations
    kept = RunOptions(data="x", checkpoint_activations=False)
    assert not plan_training(kept, large, 9).checkpoint_activations


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "magic"}, "no method 'magic'. Methods: full, frozen-encoder, lora, qlora"),
        ({"validation_split": 1.0}, "validation_split is 1.0"),
        ({"epochs": 2.0, "steps": 3}, "give one of the two"),
        ({"method": "full", "dora": True}, "forms of adapters"),
        ({"method": "lora", "bfloat16_weights": True}, "always float32"),
        ({"vision_tower": Path("tower.safetensors")}, "method='frozen-encoder'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        RunOptions(data="x", **given)  # type: ignore[arg-type]
