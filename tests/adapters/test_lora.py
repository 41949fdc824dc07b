"""Adapters: what they change, what they leave alone, and what merging gives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from paligemma.adapters.lora import (
    LoraConfig,
    LoraLinear,
    Part,
    add_lora,
    attach_lora,
    freeze_base,
    linear_layers,
    lora_layers,
    lora_parameters,
    merge_lora,
)
from paligemma.checkpoints.save import save_model
from paligemma.errors import CheckpointError, OptionError
from paligemma.fast.accelerate import accelerate
from paligemma.finetune.config import LEARNING_RATES
from paligemma.finetune.loss import suffix_loss
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, FLOAT32_TOLERANCE, Row, tiny_config, tiny_inputs, tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}
ALL_PARTS: tuple[Part, ...] = ("decoder", "vision_encoder", "projector")
EVERYWHERE = LoraConfig(rank=3, alpha=7.0, parts=ALL_PARTS)


def disturb(model: PaliGemma, seed: int = 5) -> None:
    """As if it had been trained: every adapter leaves its mark."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            size = 0.3 * layer.base_weight().std() / math.sqrt(layer.rank) / layer.scaling
            layer.lora_a.copy_(torch.randn(layer.lora_a.shape, generator=generator))
            layer.lora_b.copy_(size * torch.randn(layer.lora_b.shape, generator=generator))
            if layer.magnitude is not None:
                layer.magnitude.mul_(1 + torch.rand(layer.magnitude.shape, generator=generator))


def logits_of(model: PaliGemma, seed: int = 1) -> torch.Tensor:
    inputs = tiny_inputs(model.config, [Row(suffix=4), Row(prefix=8, suffix=3)], seed=seed)
    with torch.inference_mode():
        logits: torch.Tensor = model(inputs)
        return logits[inputs.input_mask]


def train(model: PaliGemma, num_steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=0.01)
    for step in range(num_steps):
        inputs = tiny_inputs(model.config, [Row(suffix=4), Row(prefix=8, suffix=3)], seed=step)
        total, count = suffix_loss(model.decoder, model.hidden_states(inputs), inputs)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_g9_a_new_adapter_changes_nothing(family: Any, kind: str) -> None:
    expected = logits_of(tiny_model(family))
    model = add_lora(tiny_model(family), LoraConfig(parts=ALL_PARTS, **KINDS[kind]))
    assert (logits_of(model) - expected).abs().max() < (1e-5 if kind == "dora" else 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_g9_training_changes_the_adapter_and_no_bit_of_the_base(kind: str) -> None:
    before = tiny_model()
    model = add_lora(tiny_model(), LoraConfig(rank=3, parts=ALL_PARTS, **KINDS[kind]))
    train(model)
    kept = {
        name.replace(".base.", "."): p
        for name, p in model.named_parameters()
        if not p.requires_grad
    }
    assert kept.keys() == dict(before.named_parameters()).keys()
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, kept[name]), name
    for name, layer in lora_layers(model).items():
        assert layer.lora_b.abs().max() > 0, name
    assert (logits_of(model) - logits_of(before)).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_g9_merged_equals_unmerged(family: Any, kind: str) -> None:
    model = add_lora(tiny_model(family), LoraConfig(rank=3, parts=ALL_PARTS, **KINDS[kind]))
    disturb(model)
    unmerged = logits_of(model)
    assert (unmerged - logits_of(tiny_model(family))).abs().max() > 0.1
    merged = merge_lora(model)
    assert not lora_layers(merged)
    assert (logits_of(merged) - unmerged).abs().max() < 1e-5 * unmerged.abs().max()
    names = dict(tiny_model(family).named_parameters()).keys()
    assert dict(merged.named_parameters()).keys() == names


@pytest.mark.parametrize("kind", KINDS)
def test_g9_merged_equals_unmerged_in_bfloat16_within_its_rounding(kind: str) -> None:
    model = tiny_model(attn_logit_softcap=20.0, final_logit_softcap=30.0).bfloat16()
    plain = logits_of(model)
    add_lora(model, LoraConfig(rank=3, **KINDS[kind]))
    disturb(model)
    unmerged = logits_of(model)
    away = (unmerged - plain).square().mean().sqrt()
    apart = (logits_of(merge_lora(model)) - unmerged).square().mean().sqrt()
    assert model.dtype == torch.bfloat16
    assert apart < (0.1 if kind == "dora" else 0.05) * unmerged.square().mean().sqrt()
    assert away > 0.5 * unmerged.square().mean().sqrt()


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    base = torch.nn.Linear(8, 6)
    assert LoraLinear(base, rank=4, alpha=8).scaling == 2.0
    assert LoraLinear(base, rank=4, alpha=8, use_rslora=True).scaling == 4.0


def test_dora_keeps_the_lengths_that_it_learned() -> None:
    layer = LoraLinear(torch.nn.Linear(8, 6), rank=2, alpha=2, use_dora=True)
    assert layer.magnitude is not None
    with torch.no_grad():
        layer.lora_b.normal_(generator=torch.Generator().manual_seed(0))
    lengths = torch.linalg.vector_norm(layer.merged(torch.float32).weight, dim=1)
    assert torch.allclose(lengths, layer.magnitude)


def test_a_row_of_zeros_stays_one_with_dora() -> None:
    base = torch.nn.Linear(8, 6, bias=False)
    torch.nn.init.zeros_(base.weight)
    layer = LoraLinear(base, rank=2, alpha=2, use_dora=True)
    assert layer(torch.ones(3, 8)).abs().max() == 0
    assert layer.merged(torch.float32).weight.abs().max() == 0


def test_by_default_every_linear_layer_of_the_decoder_is_adapted_and_no_other() -> None:
    model = add_lora(tiny_model("paligemma"), LoraConfig())
    depth = model.config.decoder.depth
    names = lora_layers(model).keys()
    assert len(names) == 7 * depth
    assert all(name.startswith("decoder.blocks.") for name in names)
    assert len(lora_parameters(model)) == 14 * depth
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 14 * depth


def test_the_table_of_embeddings_is_never_adapted() -> None:
    model = add_lora(tiny_model(), EVERYWHERE)
    assert not model.decoder.embedding.weight.requires_grad
    assert set(linear_layers(tiny_model(), ALL_PARTS)) == lora_layers(model).keys()
    assert not any("embedding" in name for name in lora_layers(model))


def test_layers_are_chosen_by_the_end_of_their_names() -> None:
    config = LoraConfig(layers=("q_proj", "blocks.1.mlp.up_proj"), parts=("decoder",))
    names = lora_layers(add_lora(tiny_model(), config))
    depth = tiny_config().decoder.depth
    assert [n for n in names if "q_proj" in n] == [
        f"decoder.blocks.{i}.attention.q_proj" for i in range(depth)
    ]
    assert [n for n in names if "q_proj" not in n] == ["decoder.blocks.1.mlp.up_proj"]


def test_the_same_seed_makes_the_same_adapter_and_leaves_other_draws_alone() -> None:
    models = [tiny_model() for _ in range(3)]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_lora(model, LoraConfig(), seed=seed)
    assert torch.equal(torch.rand(4), expected)
    first, again, other = (lora_parameters(model)[0] for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_acts_in_training_only() -> None:
    model = add_lora(tiny_model(), LoraConfig(dropout=0.5))
    disturb(model)
    evaluated = logits_of(model)
    assert torch.equal(evaluated, logits_of(model))
    model.train()
    assert not torch.equal(evaluated, logits_of(model))


def test_small_steps_are_not_rounded_away_on_a_bfloat16_base() -> None:
    model = add_lora(tiny_model().bfloat16(), LoraConfig())
    assert {p.dtype for p in lora_parameters(model)} == {torch.float32}
    logits_of(model)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": True}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"parts": ("table",)}, "parts"),
        ({"parts": ()}, "parts"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(OptionError, match=word):
        LoraConfig(**options)


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'z_proj'.*down_proj"):
        add_lora(tiny_model(), LoraConfig(layers=("z_proj",)))
    with pytest.raises(OptionError, match="rank is 4000, larger"):
        add_lora(tiny_model(), LoraConfig(rank=4000))
    with pytest.raises(OptionError, match="already has adapters"):
        add_lora(add_lora(tiny_model(), LoraConfig()), LoraConfig())
    with pytest.raises(OptionError, match="packed"):
        add_lora(accelerate(tiny_model().bfloat16()), LoraConfig())


def test_an_unmerged_model_is_not_saved_as_a_plain_one(tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match="LoRA"):
        save_model(add_lora(tiny_model(), LoraConfig()), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_adapters_can_be_taken_off_one_model_and_put_on_another() -> None:
    model = add_lora(tiny_model(), LoraConfig(rank=3, alpha=7.0, use_dora=True))
    disturb(model)
    adapter = {name: layer.low_rank() for name, layer in lora_layers(model).items()}
    other = attach_lora(tiny_model(), adapter)
    assert torch.equal(logits_of(other), logits_of(model))
    assert all(p.requires_grad for p in lora_parameters(other))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [None, "nf4"])
def test_autocast_gives_nearly_the_same_gradients(kind: str, frozen: Any) -> None:
    model = tiny_model("paligemma")
    if frozen is not None:
        freeze_base(model, frozen)
    add_lora(model, LoraConfig(rank=3, **KINDS[kind]))
    disturb(model)
    inputs = tiny_inputs(model.config, [Row(suffix=4), Row(prefix=8, suffix=3)])
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total, count = suffix_loss(model.decoder, model.hidden_states(inputs), inputs)
        (total / count).backward()
        gradients.append([p.grad for p in lora_parameters(model) if p.grad is not None])
        model.zero_grad()
    assert len(gradients[0]) == len(gradients[1]) == len(lora_parameters(model))
    one, two = (torch.cat([g.flatten() for g in found]) for found in gradients)
    assert two.dtype == torch.float32
    assert F.cosine_similarity(one, two, dim=0) > 0.95


@pytest.fixture(params=["nf4", "int8"])
def frozen_format(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_on_a_frozen_base(frozen_format: Any, kind: str) -> None:
    model = freeze_base(tiny_model(), frozen_format)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    started = logits_of(model)
    add_lora(model, LoraConfig(rank=3, **KINDS[kind]))
    assert (logits_of(model) - started).abs().max() < FLOAT32_TOLERANCE
    train(model)
    assert (logits_of(model) - started).abs().max() > 0.01
    after = {name.replace(".base.", "."): buffer for name, buffer in model.named_buffers()}
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_into_a_frozen_base_gives_a_plain_model(frozen_format: Any, kind: str) -> None:
    model = freeze_base(tiny_model(), frozen_format)
    add_lora(model, LoraConfig(rank=3, layers=("q_proj", "up_proj"), **KINDS[kind]))
    disturb(model)
    unmerged = logits_of(model)
    merged = merge_lora(model)
    assert (logits_of(merged) - unmerged).abs().max() < 1e-5 * unmerged.abs().max()
    assert dict(merged.named_parameters()).keys() == dict(tiny_model().named_parameters()).keys()
    assert not list(merged.buffers())


def test_learning_rates_are_known_for_every_method_and_size() -> None:
    assert LEARNING_RATES.keys() == {"full", "frozen-encoder", "lora", "qlora"}
    for method, rates in LEARNING_RATES.items():
        assert rates.keys() == {"3b", "10b", "28b"}
        assert rates["3b"] >= rates["10b"] >= rates["28b"] > 0
        assert rates["3b"] == LEARNING_RATES["full"]["3b"] * (10 if "lora" in method else 1)
