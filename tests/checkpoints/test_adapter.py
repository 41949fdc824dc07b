"""Adapters' files: written for peft, read from peft, and refused where they do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from paligemma.adapters.lora import (
    LoraConfig,
    add_lora,
    attach_lora,
    lora_layers,
    lora_parameters,
    merge_lora,
)
from paligemma.checkpoints.adapter import Adapter, fingerprint_of, read_adapter, write_adapter
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.save import save_model
from paligemma.config import Family
from paligemma.errors import CheckpointError, NumericalError, OptionError
from paligemma.fast.accelerate import accelerate, weight_rows
from paligemma.fast.weights import Packed, Plain, Trainable
from paligemma.finetune.loss import suffix_loss
from paligemma.model.paligemma import PaliGemma
from tests.adapters.test_lora import ALL_PARTS, KINDS, disturb, logits_of
from tests.tiny import (
    FAMILIES,
    Row,
    reference_arguments,
    tiny_config,
    tiny_inputs,
    tiny_model,
    tiny_reference,
)

PEFT_KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}
# What peft still asks of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
ROWS = [Row(prefix=9, suffix=4), Row(images=(1, 0), suffix=6)]


@pytest.fixture(scope="module")
def peft() -> Any:
    return pytest.importorskip("peft")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    """Folders that transformers has written; a model of ours from each is `load_model(folder)`."""
    made = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in made.items():
        tiny_reference(tiny_config(family)).save_pretrained(folder)
    return made


def fresh_reference(family: Family) -> Any:
    return tiny_reference(tiny_config(family))


def randomize_adapter(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.5 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@torch.inference_mode()
def difference(model: PaliGemma, reference: Any) -> tuple[float, float]:
    """The largest difference of logits, and the largest logit."""
    inputs = tiny_inputs(model.config, ROWS, pad="right")
    theirs = reference(**reference_arguments(inputs, reference)).logits
    theirs = theirs[inputs.input_mask][:, : model.config.decoder.vocab_size]
    ours = model(inputs)[inputs.input_mask]
    return float((ours - theirs).abs().max()), float(theirs.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_peft_gives_the_same_logits_here(
    peft: Any, bases: dict[Family, Path], tmp_path: Path, family: Family, kind: str
) -> None:
    reference = peft.get_peft_model(
        fresh_reference(family),
        peft.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules="all-linear",
            exclude_modules=["lm_head"],
            rank_pattern={"down_proj": 3},
            alpha_pattern={"layers.1.self_attn.q_proj": 10},
            **PEFT_KINDS[kind],
        ),
    ).eval()
    randomize_adapter(reference)
    reference.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, tiny_config(family))
    plain = load_model(bases[family])
    unlike, _ = difference(plain, reference)
    for model in (
        attach_lora(plain, adapter.layers),
        load_model(bases[family], adapter=adapter),
        load_model(bases[family], adapter=adapter, weights=Trainable(dtype="stored")),
    ):
        apart, largest = difference(model, reference)
        assert apart < 1e-5 * max(1.0, largest)
    assert unlike > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_ours_gives_the_same_logits_in_transformers_and_peft(
    peft: Any, bases: dict[Family, Path], tmp_path: Path, family: Family, kind: str
) -> None:
    config = LoraConfig(rank=3, alpha=7.5, parts=ALL_PARTS, **KINDS[kind])
    model = add_lora(load_model(bases[family]), config)
    disturb(model)
    write_adapter(model, tmp_path / "adapter")
    reference = fresh_reference(family)
    unlike, _ = difference(model, reference)
    loaded = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    apart, largest = difference(model, loaded)
    assert apart < 1e-5 * max(1.0, largest)
    assert unlike > 0.1
    adapted = {name for name, module in loaded.named_modules() if hasattr(module, "lora_A")}
    assert len(adapted) == len(lora_layers(model))


def test_a_few_layers_of_different_ranks_are_the_same_few_in_peft(
    peft: Any, bases: dict[Family, Path], tmp_path: Path
) -> None:
    model = load_model(bases["paligemma2"])
    small = add_lora(load_model(bases["paligemma2"]), LoraConfig(rank=2, alpha=3.0))
    large = add_lora(load_model(bases["paligemma2"]), LoraConfig(rank=5, alpha=7.0))
    disturb(small)
    disturb(large)
    chosen = {
        "decoder.blocks.1.attention.q_proj": small,
        "decoder.blocks.5.attention.q_proj": large,
        "decoder.blocks.5.mlp.up_proj": small,
    }
    attach_lora(model, {name: lora_layers(m)[name].low_rank() for name, m in chosen.items()})
    write_adapter(model, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(fresh_reference("paligemma2"), tmp_path / "adapter")
    apart, largest = difference(model, loaded.eval())
    assert apart < 1e-5 * max(1.0, largest)
    again = attach_lora(
        load_model(bases["paligemma2"]),
        read_adapter(tmp_path / "adapter", tiny_config("paligemma2")).layers,
    )
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize(
    ("family", "kind"), [("paligemma", "lora"), ("paligemma2", "lora"), ("paligemma", "dora")]
)
@pytest.mark.parametrize("num_steps", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_training_gives_the_curve_of_transformers_and_peft(
    peft: Any, bases: dict[Family, Path], tmp_path: Path, family: Family, kind: str, num_steps: int
) -> None:
    model = load_model(bases[family])
    model = add_lora(model, LoraConfig(rank=4, alpha=8.0, **KINDS[kind])).train()
    write_adapter(model, tmp_path / "start")
    reference = peft.PeftModel.from_pretrained(
        fresh_reference(family), tmp_path / "start", is_trainable=True
    ).train()
    ours = torch.optim.AdamW(lora_parameters(model), lr=3e-3)
    theirs = torch.optim.AdamW((p for p in reference.parameters() if p.requires_grad), lr=3e-3)
    curves: list[tuple[float, float]] = []
    for step in range(num_steps):
        inputs = tiny_inputs(tiny_config(family), ROWS, pad="right", seed=step % 4)
        total, count = suffix_loss(
            model.decoder,
            model.hidden_states(inputs),
            inputs,
            reduction="token",
            final_logit_softcap=True,
        )
        loss = total / count
        arguments = reference_arguments(inputs, reference)
        logits = reference(**arguments).logits[..., : model.config.decoder.vocab_size]
        assert inputs.loss_mask is not None
        targets = inputs.token_ids.masked_fill(~inputs.loss_mask, -100)[:, 1:]
        their_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten())
        for optimizer, value in ((ours, loss), (theirs, their_loss)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        curves.append((loss.item(), their_loss.item()))
    if num_steps == 50:
        assert curves[-1][0] < 0.8 * curves[0][0]
    assert max(abs(one - two) for one, two in curves) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_comes_back_bit_by_bit(tmp_path: Path, kind: str) -> None:
    model = add_lora(tiny_model(), LoraConfig(rank=3, dropout=0.25, parts=ALL_PARTS, **KINDS[kind]))
    disturb(model)
    folder = write_adapter(model, tmp_path / "a", base_name="google/some", revision="abc")
    adapter = read_adapter(folder, model.config, verify=True)
    assert adapter.base_name == "google/some"
    assert adapter.dropout == 0.25
    adapter.check_base(fingerprint_of(tiny_model()))
    again = attach_lora(tiny_model(), adapter.layers, dropout=adapter.dropout)
    assert lora_layers(again).keys() == lora_layers(model).keys()
    for one, two in zip(lora_parameters(model), lora_parameters(again), strict=True):
        assert torch.equal(one, two)
    write_adapter(again, tmp_path / "b", base_name="google/some", revision="abc")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("spelling", ["released", "4.x in memory"])
def test_names_of_older_transformers_are_read(tmp_path: Path, spelling: str) -> None:
    model = add_lora(tiny_model(), LoraConfig(rank=3, parts=ALL_PARTS))
    disturb(model)
    folder = write_adapter(model, tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    renamed = {}
    for name, tensor in load_file(path).items():
        name = name.replace("model.vision_tower.", "model.vision_tower.vision_model.")
        if spelling == "released":
            name = name.replace("base_model.model.model.", "base_model.model.")
            name = name.replace("language_model.", "language_model.model.")
        renamed[name] = tensor
    save_file(renamed, path)
    again = attach_lora(tiny_model(), read_adapter(folder, model.config).layers)
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize("kind", KINDS)
def test_merging_while_reading_equals_merging_in_memory(tmp_path: Path, kind: str) -> None:
    base = save_model(tiny_model(), tmp_path / "base")
    model = add_lora(load_model(base), LoraConfig(rank=3, parts=ALL_PARTS, **KINDS[kind]))
    disturb(model)
    adapter = read_adapter(write_adapter(model, tmp_path / "a"), model.config)
    loaded = load_model(base, adapter=adapter)
    expected = merge_lora(model).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name


@pytest.mark.parametrize("weights", [Packed(), Packed("int8")])
def test_an_adapter_is_merged_before_weights_are_packed(tmp_path: Path, weights: Packed) -> None:
    base = save_model(tiny_model().bfloat16(), tmp_path / "base")
    model = add_lora(load_model(base), LoraConfig(rank=3))
    disturb(model)
    adapter = read_adapter(write_adapter(model, tmp_path / "a"), model.config)
    expected = accelerate(merge_lora(model), weights.quantization)
    loaded = load_model(base, adapter=adapter, weights=weights)
    found = weight_rows(loaded)
    for name, rows in weight_rows(expected).items():
        num_rows = rows.shape[0]
        assert torch.equal(found[name].read(0, num_rows), rows.read(0, num_rows)), name


def test_an_adapter_goes_into_a_folder_that_is_quantized_already(tmp_path: Path) -> None:
    plain = save_model(tiny_model().bfloat16(), tmp_path / "plain")
    base = save_model(load_model(plain, weights="int8"), tmp_path / "base")
    model = add_lora(load_model(base, weights=Trainable()), LoraConfig(rank=3))
    disturb(model)
    adapter = read_adapter(write_adapter(model, tmp_path / "a"), model.config)
    wide = load_model(base, adapter=adapter, weights=Plain())
    name = "decoder.blocks.1.mlp.up_proj"
    merged = lora_layers(model)[name].merged(torch.bfloat16).weight
    assert torch.allclose(wide.get_parameter(f"{name}.weight"), merged, rtol=0.01, atol=0.01)
    packed = load_model(base, adapter=adapter)
    assert (logits_of(packed) - logits_of(wide)).square().mean().sqrt() < 0.2
    assert (logits_of(load_model(base)) - logits_of(wide)).square().mean().sqrt() > 0.5


@pytest.mark.parametrize("frozen_format", ["nf4", "int8"])
def test_a_frozen_base_is_filled_while_it_is_read(tmp_path: Path, frozen_format: Any) -> None:
    base = save_model(tiny_model(), tmp_path / "base")
    model = load_model(base, weights=Trainable(frozen_format))
    assert not any("_proj" in n for n, _ in model.decoder.named_parameters())
    add_lora(model, LoraConfig(rank=3))
    disturb(model)
    folder = write_adapter(model, tmp_path / "a")
    adapter = read_adapter(folder, model.config)
    again = load_model(base, weights=Trainable(frozen_format), adapter=adapter)
    assert torch.equal(logits_of(again), logits_of(model))
    adapter.check_base(fingerprint_of(load_model(base)))


def test_the_fingerprint_knows_weights_and_not_their_form(tmp_path: Path) -> None:
    base = save_model(tiny_model(), tmp_path / "base")
    found = fingerprint_of(load_model(base))
    assert fingerprint_of(load_model(base, weights="bfloat16")) == found
    assert fingerprint_of(load_model(base, weights="int4")) == found
    assert fingerprint_of(load_model(base, weights=Trainable("nf4"))) == found
    assert fingerprint_of(add_lora(load_model(base), LoraConfig(parts=ALL_PARTS))) == found
    assert fingerprint_of(tiny_model(seed=1)) != found


def test_an_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = add_lora(tiny_model(), LoraConfig())
    adapter = read_adapter(
        write_adapter(model, tmp_path / "a", base_name="the other"), model.config
    )
    base = save_model(tiny_model(seed=1), tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"'the other'.*fingerprint"):
        load_model(base, adapter=adapter)


def test_an_adapter_of_another_size_is_refused_by_name_and_shape(tmp_path: Path) -> None:
    folder = write_adapter(add_lora(tiny_model("paligemma2"), LoraConfig()), tmp_path / "a")
    with pytest.raises(CheckpointError) as refused:
        read_adapter(folder, tiny_config("paligemma"))
    assert "no linear layer of this model" in str(refused.value)
    assert re.search(r"lora_A\.weight is \(16, 48\), expected \(16, 32\)", str(refused.value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = add_lora(tiny_model(), LoraConfig(rank=3, layers=("q_proj",)))
    return write_adapter(model, tmp_path / "adapter")


def read(folder: Path) -> Adapter:
    return read_adapter(folder, tiny_config())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"a_setting_of_the_future": 3}, "a_setting_of_the_future"),
        ({"r": 1_000_000_000}, "rank 1000000000"),
        ({"r": 4}, r"is \(3, 48\), expected \(4, 48\)"),
        ({"r": -3}, "r is -3"),
        ({"r": True}, "r is True"),
        ({"r": "3"}, "r is '3'"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"use_dora": "yes"}, "use_dora is 'yes'"),
        ({"use_dora": True}, "has no matching magnitude"),
        ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern contains the pattern"),
        ({"alpha_pattern": {"q_proj": None}}, "q_proj is None"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_settings_that_would_change_the_result_are_refused_by_name(
    folder: Path, settings: dict[str, Any], words: str
) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(CheckpointError, match=words):
        read(folder)


def _name_of(tensors: dict[str, torch.Tensor], leaf: str) -> str:
    return next(name for name in tensors if name.endswith(leaf))


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[_name_of(tensors, "lora_B.weight")][0, 0] = torch.nan


def _half(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[_name_of(tensors, "lora_B.weight")]


def _stranger(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.language_model.embed_tokens.lora_embedding_A"] = torch.ones(3)


def _another_block(tensors: dict[str, torch.Tensor]) -> None:
    name = _name_of(tensors, "layers.0.self_attn.q_proj.lora_A.weight")
    tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()


def _twice(tensors: dict[str, torch.Tensor]) -> None:
    name = _name_of(tensors, "lora_A.weight")
    tensors[name.replace("base_model.model.model.", "base_model.model.")] = tensors[name].clone()


def _whole_numbers(tensors: dict[str, torch.Tensor]) -> None:
    name = _name_of(tensors, "lora_A.weight")
    tensors[name] = tensors[name].to(torch.uint8)


def _nothing(tensors: dict[str, torch.Tensor]) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_nan, "NaN or infinity in 1 tensor"),
        (_half, "has no matching b"),
        (_stranger, "no linear layer of this model has .*embed_tokens"),
        (_another_block, r"no linear layer of this model has .*layers\.9"),
        (_twice, "are the same tensor"),
        (_whole_numbers, "has dtype U8"),
        (_nothing, "contains no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    folder: Path, damage: Callable[[dict[str, torch.Tensor]], None], words: str
) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=words):
        read(folder)


def test_a_folder_without_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        read(tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickles"):
        read(folder)


def test_a_cut_file_and_a_flipped_bit_are_refused(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_adapter(folder, tiny_config(), verify=True)
    path.write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match="damaged"):
        read(folder)


def test_nothing_is_written_that_would_be_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no adapter"):
        write_adapter(tiny_model(), tmp_path / "a")
    model = add_lora(tiny_model(), LoraConfig())
    with torch.no_grad():
        lora_parameters(model)[3][0, 0] = torch.inf
    with pytest.raises(NumericalError, match=r"1 tensor.*lora_B"):
        write_adapter(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="already exists"):
        write_adapter(add_lora(tiny_model(), LoraConfig()), folder)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_packed_weights_are_not_to_be_trained(quantization: Any) -> None:
    packed = accelerate(tiny_model().bfloat16(), quantization)
    with pytest.raises(OptionError, match=r"cannot be trained.*weights=Trainable\(\)"):
        add_lora(packed, LoraConfig())
