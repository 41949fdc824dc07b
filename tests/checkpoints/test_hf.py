"""Names: ours and Hugging Face's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.checkpoints.hf import (
    EMBEDDING,
    num_table_rows,
    pad_table,
    to_memory_name,
    to_released_name,
    to_released_names,
)
from paligemma.checkpoints.hf_config import read_config
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.reader import StoredTensor, WeightFiles
from paligemma.checkpoints.rows import parameter_shapes, read_all
from paligemma.checkpoints.save import save_model
from paligemma.config import release_config
from paligemma.errors import CheckpointError
from paligemma.fast.weights import Plain
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, tiny_config, tiny_model, tiny_reference


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


def test_prefixes_of_larger_models_are_stripped() -> None:
    for prefix in ("base_model.model.", "paligemma_with_expert.paligemma.", "vlm.", "model."):
        for inner in ("language_model.model.norm.weight", "model.language_model.norm.weight"):
            assert to_released_name(prefix + inner) == "language_model.model.norm.weight"
            assert to_released_name("model." + prefix + inner) == "language_model.model.norm.weight"


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(save_model(tiny_model("paligemma"), folder) / "model.safetensors")


def renamed(folder: Path, tensors: dict[str, Tensor], rename: Callable[[str], str]) -> Path:
    """Rename the tensors of a folder, and add others under names of their own."""
    names = {rename(name): tensor for name, tensor in tensors.items()}
    save_file(names, folder / "model.safetensors")
    return folder


def test_colpali_of_transformers_is_read(tmp_path: Path) -> None:
    tensors = stored_tensors(tmp_path)
    extra = {f"embedding_proj_layer.{n}": torch.ones(2) for n in ("weight", "bias")}
    path = renamed(tmp_path, tensors, lambda n: "vlm." + to_memory_name(n))
    save_file(load_file(path / "model.safetensors") | extra, path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    outer = {"model_type": "colpali", "vlm_config": config, "embedding_dim": 128}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.notes == (
            "Left out: ColPali's projection of the embeddings (2 tensors).",
        )
    assert_equals_tiny(tmp_path)


@pytest.mark.parametrize("inner", ["model.", "model.model."])
def test_colpali_of_its_authors_is_read(tmp_path: Path, inner: str) -> None:
    tensors = stored_tensors(tmp_path)
    if inner == "model.model.":
        renamed(tmp_path, tensors, lambda n: "model." + to_memory_name(n))
    else:
        renamed(tmp_path, tensors, lambda n: "model." + n)
    extra = {f"custom_text_proj.{n}": torch.ones(2) for n in ("weight", "bias")}
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | extra, file)
    with open_checkpoint(tmp_path) as checkpoint:
        assert "ColPali" in checkpoint.notes[0]
    assert_equals_tiny(tmp_path)


def assert_equals_tiny(folder: Path) -> None:
    expected, model = tiny_model("paligemma"), load_model(folder, weights=Plain("float32"))
    pairs = zip(expected.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


def pi0_tensors(folder: Path) -> dict[str, Tensor]:
    prefix = "model.paligemma_with_expert."
    tensors = {}
    for name, tensor in stored_tensors(folder).items():
        if name == EMBEDDING:
            tensors[prefix + "paligemma.lm_head.weight"] = tensor
        else:
            tensors[prefix + "paligemma." + to_memory_name(name)] = tensor
    for extra in (
        prefix + "gemma_expert.model.layers.0.mlp.up_proj.weight",
        prefix + "gemma_expert.lm_head.weight",
        *(f"model.{n}.weight" for n in ("action_in_proj", "action_time_mlp_out", "state_proj")),
        "normalize_inputs.buffer_observation_state.mean",
    ):
        tensors[extra] = torch.ones(2)
    return tensors


def test_pi0_with_a_config_is_read(tmp_path: Path) -> None:
    tensors = pi0_tensors(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.notes == (
            "Left out: pi0's action expert (2 tensors).",
            "Left out: pi0's projections of actions and states (3 tensors).",
            "Left out: pi0's statistics of actions and states (1 tensor).",
            "The embedding table was read from "
            "model.paligemma_with_expert.paligemma.lm_head.weight.",
        )
    assert_equals_tiny(tmp_path)


def test_pi0_of_unreleased_shapes_needs_a_config(tmp_path: Path) -> None:
    tensors = pi0_tensors(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"type": "pi0", "chunk_size": 50}')
    with pytest.raises(CheckpointError, match="is that of a robot policy, and the weights do not"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("table_rows", [257152, 257216])
def test_the_config_of_released_shapes_is_derived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table_rows: int
) -> None:
    """With headers only: the weights of a release would have 6 GB."""
    config = release_config("paligemma2", "3b", 448)
    shapes = parameter_shapes(config)
    names = to_released_names(config, shapes)
    tensors = {
        "paligemma_with_expert.paligemma." + names[ours]: StoredTensor(
            path=tmp_path, dtype_code="BF16", shape=shape, offset=0, num_bytes=0
        )
        for ours, shape in (shapes | {"decoder.embedding.weight": (table_rows, 2304)}).items()
    }
    monkeypatch.setattr(WeightFiles, "_open", lambda self, folder: self.tensors.update(tensors))
    stored = read_config(tmp_path)
    assert (stored.config, stored.table_rows) == (config, table_rows)
    assert "contains no config.json, so the config was taken from the release" in stored.notes[0]
    name = f"paligemma_with_expert.paligemma.{names['decoder.final_norm.weight']}"
    tensors[name] = replace(tensors[name], shape=(2305,))
    with pytest.raises(CheckpointError, match="cannot be derived"):
        read_config(tmp_path)


def test_adapters_that_are_not_merged_are_refused(tmp_path: Path) -> None:
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    tensors = stored_tensors(tmp_path)
    tensors["base_model.model." + name.replace("weight", "base_layer.weight")] = tensors.pop(name)
    tensors[name.replace("weight", "lora_A.default.weight")] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not merged: .*base_layer.*merge_and_unload"):
        open_checkpoint(tmp_path)


def test_only_known_parts_are_left_out(tmp_path: Path) -> None:
    tensors = stored_tensors(tmp_path)
    for name in ("custom_text_proj.scale", "action_head.weight", "vlm.extra.weight"):
        save_file(tensors | {name: torch.ones(2)}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"unknown: {name}"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize("position", [0, 3])
def test_an_output_layer_must_equal_the_table(tmp_path: Path, position: int) -> None:
    tensors = stored_tensors(tmp_path)
    table = tensors[EMBEDDING].clone()
    save_file(tensors | {"lm_head.weight": table}, tmp_path / "model.safetensors")
    assert_equals_tiny(tmp_path)
    table[position, 5] += 1
    save_file(tensors | {"lm_head.weight": table}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        open_checkpoint(tmp_path)


QUANTIZED_BY_OTHERS = {
    "GPTQ": {"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"},
    "AWQ": {"qweight": "I32", "qzeros": "I32", "scales": "F16"},
    "compressed-tensors": {"weight_packed": "I32", "weight_scale": "F16", "weight_shape": "I64"},
    "quanto": {"weight._data": "I8", "weight._scale": "F16"},
    "torchao": {"weight_qdata": "I8", "weight_scale": "F32"},
    "scaled float8": {"weight": "F8_E4M3"},
}
CODES = {
    "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "I8": torch.int8,
    "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


@pytest.mark.parametrize("method", QUANTIZED_BY_OTHERS)
def test_weights_quantized_by_others_are_refused(tmp_path: Path, method: str) -> None:
    tensors = stored_tensors(tmp_path)
    module = "language_model.model.layers.0.mlp.up_proj"
    del tensors[module + ".weight"]
    for role, code in QUANTIZED_BY_OTHERS[method].items():
        tensors[f"{module}.{role}"] = torch.zeros(4, 4).to(CODES[code])
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"quantized by {method}.*weights='int8' or 'int4'"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("method", "name"),
    [("gptq", "GPTQ"), ("AWQ", "AWQ"), ("torchao", "torchao"), ("vptq", "'vptq'")],
)
def test_methods_that_the_config_names_are_refused(tmp_path: Path, method: str, name: str) -> None:
    stored_tensors(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["quantization_config"] = {"quant_method": method}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"quantized by {name}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "is a GGUF file"),
        (b"\x80\x04\x95" + bytes(64), "is a pickle"),
        (None, "is a pickle"),
    ],
)
def test_files_that_are_never_read_say_why(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "model.npz"
    if content is None:
        torch.save({"a": torch.ones(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["model.gguf", "pytorch_model.bin"])
def test_a_folder_with_other_weights_only_says_which(tmp_path: Path, name: str) -> None:
    stored_tensors(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes((b"GGUF" if "gguf" in name else b"\x80\x02") + bytes(64))
    with pytest.raises(CheckpointError, match=f"{name} is a (GGUF file|pickle)"):
        open_checkpoint(tmp_path)


def test_what_transformers_saves_as_colpali_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    inner = tiny_reference(tiny_config("paligemma"))
    config = transformers.ColPaliConfig(vlm_config=inner.config.to_dict())
    outer = transformers.ColPaliForRetrieval(config)
    inner_state = {name.removeprefix("model."): t for name, t in inner.state_dict().items()}
    outer.vlm.load_state_dict(inner_state, strict=False)
    outer.save_pretrained(tmp_path)
    tables = [t for name, t in outer.state_dict().items() if name.endswith("embed_tokens.weight")]
    with open_checkpoint(tmp_path) as checkpoint:
        assert any("ColPali" in note for note in checkpoint.notes)
        table = read_all(checkpoint.contents.parameters["decoder.embedding.weight"])
    assert torch.equal(table, tables[0][: table.shape[0]])
