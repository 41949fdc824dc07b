"""Names: ours and Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from paligemma.checkpoints.hf import num_table_rows, pad_table, to_released_name, to_released_names
from paligemma.config import release_config
from paligemma.errors import CheckpointError
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, tiny_config


def names_of(config_family: str, size: str = "3b") -> dict[str, str]:
    config = release_config(
        "paligemma" if config_family == "paligemma" else "paligemma2", size, 224
    )
    with torch.device("meta"):
        model = PaliGemma(config)
    return to_released_names(config, [name for name, _ in model.named_parameters()])


def test_names_equal_the_index_of_a_released_checkpoint(shared_data: Path) -> None:
    path = shared_data / "model_meta" / "paligemma_3b_tensor_names.json"
    released = json.loads(path.read_text())
    names = {
        pattern.format(layer=layer)
        for pattern in released["patterns"]
        for layer in range(
            released["vision_layers" if pattern.startswith("vision") else "language_layers"]
        )
    }
    assert len(names) == 603
    assert set(names_of("paligemma").values()) == names


@pytest.mark.parametrize(("size", "count"), [("3b", 727), ("10b", 903), ("28b", 947)])
def test_paligemma_2_has_the_known_number_of_tensors(size: str, count: int) -> None:
    assert len(set(names_of("paligemma2", size).values())) == count


def test_the_norm_before_the_mlp_has_another_name_in_each_generation() -> None:
    name = "decoder.blocks.0.pre_mlp_norm.weight"
    first, second = (to_released_names(tiny_config(family), [name])[name] for family in FAMILIES)
    assert first == "language_model.model.layers.0.post_attention_layernorm.weight"
    assert second == "language_model.model.layers.0.pre_feedforward_layernorm.weight"


@pytest.mark.parametrize(
    ("spelling", "released"),
    [
        ("vision_tower.post_layernorm.bias", "vision_tower.vision_model.post_layernorm.bias"),
        ("model.vision_tower.vision_model.x", "vision_tower.vision_model.x"),
        ("model.vision_tower.x", "vision_tower.vision_model.x"),
        ("model.multi_modal_projector.linear.bias", "multi_modal_projector.linear.bias"),
        ("model.language_model.layers.0.x", "language_model.model.layers.0.x"),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("something.else", "something.else"),
    ],
)
def test_every_spelling_leads_to_the_released_name(spelling: str, released: str) -> None:
    assert to_released_name(spelling) == released
    assert to_released_name(released) == released


def test_a_parameter_that_is_not_paligemmas_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"lora_a\.weight has no counterpart"):
        to_released_names(tiny_config(), ["decoder.blocks.0.mlp.up_proj.lora_a.weight"])


def test_the_table_is_padded_with_its_mean() -> None:
    assert num_table_rows(257152) == 257216
    assert num_table_rows(63) == 64
    assert num_table_rows(64) == 128
    table = torch.randn(151, 6, generator=torch.Generator().manual_seed(0))
    padded = torch.cat(list(pad_table(table.split(64))))
    assert padded.shape == (192, 6)
    assert torch.equal(padded[:151], table)
    torch.testing.assert_close(padded[151:], table.mean(dim=0).expand(41, -1))
