"""Copies of checkpoint folders in which one thing is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

LAYER = "language_model.model.layers.2."
TABLE = "language_model.model.embed_tokens.weight"
VISION = "vision_tower.vision_model.encoder.layers.1."


def edit(
    source: Path,
    target: Path,
    *,
    tensors: Callable[[Tensors, Any], object] | None = None,
    text: dict[str, Any] | None = None,
) -> Path:
    """Copy a folder; change its tensors, or keys of its text_config."""
    shutil.copytree(source, target)
    (target / "checksums.json").unlink(missing_ok=True)
    config = json.loads((target / "config.json").read_text())
    config["text_config"] |= text or {}
    (target / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        file = target / "model.safetensors"
        values = load_file(file)
        tensors(values, config)
        save_file({n: t.contiguous() for n, t in values.items()}, file, {"format": "pt"})
    return target


def scale_norm(tensors: Tensors, config: Any) -> None:
    tensors[LAYER + "input_layernorm.weight"] *= 1.5


def scale_whole_norm(tensors: Tensors, config: Any) -> None:
    norm = tensors[LAYER + "input_layernorm.weight"]
    tensors[LAYER + "input_layernorm.weight"] = ((1 + norm.float()) * 2 - 1).to(norm.dtype)


def add_one_to_norm(tensors: Tensors, config: Any) -> None:
    tensors[LAYER + "input_layernorm.weight"] += 1


def _swap(values: Tensor, size: int, a: int, b: int) -> Tensor:
    heads = values.clone().unflatten(0, (-1, size))
    order = list(range(len(heads)))
    order[a], order[b] = b, a
    return heads[order].flatten(0, 1)


def swap_query_heads(tensors: Tensors, config: Any) -> None:
    name = LAYER + "self_attn.q_proj.weight"
    tensors[name] = _swap(tensors[name], config["text_config"]["head_dim"], 0, 2)


def swap_output_heads(tensors: Tensors, config: Any) -> None:
    name = LAYER + "self_attn.o_proj.weight"
    tensors[name] = _swap(tensors[name].T, config["text_config"]["head_dim"], 1, 3).T


def swap_vision_heads(tensors: Tensors, config: Any) -> None:
    vision = config["vision_config"]
    name = VISION + "self_attn.k_proj.weight"
    size = vision["hidden_size"] // vision["num_attention_heads"]
    tensors[name] = _swap(tensors[name], size, 0, 1)


def shift_table(tensors: Tensors, config: Any) -> None:
    tensors[TABLE] = torch.roll(tensors[TABLE], 1, dims=0)


def shift_part_of_table(tensors: Tensors, config: Any) -> None:
    table = tensors[TABLE].clone()
    table[20:120] = tensors[TABLE][23:123]
    tensors[TABLE] = table


def zero_end_of_table(tensors: Tensors, config: Any) -> None:
    tensors[TABLE][100:] = 0


def repeat_layer(tensors: Tensors, config: Any) -> None:
    other = LAYER.replace("2", "3")
    tensors[LAYER + "mlp.down_proj.weight"] = tensors[other + "mlp.down_proj.weight"].clone()


def interleave_keys(tensors: Tensors, config: Any) -> None:
    name, size = LAYER + "self_attn.k_proj.weight", config["text_config"]["head_dim"]
    halves = tensors[name].unflatten(0, (-1, 2, size // 2))
    tensors[name] = halves.transpose(1, 2).flatten(0, 2)


def change_one_row(tensors: Tensors, config: Any) -> None:
    tensors[LAYER + "mlp.up_proj.weight"][7] += 0.01


def reverse_colors(tensors: Tensors, config: Any) -> None:
    name = "vision_tower.vision_model.embeddings.patch_embedding.weight"
    tensors[name] = tensors[name].flip(1)


def break_one_value(tensors: Tensors, config: Any) -> None:
    tensors[LAYER + "mlp.up_proj.weight"][3, 4] = torch.nan


# What was done, the parameter of ours that is named, and what is said about it.
WEIGHTS = (
    (scale_norm, "decoder.blocks.2.pre_attention_norm.weight", "multiplied by 1.5"),
    (
        scale_whole_norm,
        "decoder.blocks.2.pre_attention_norm.weight",
        r"the norm \(1 \+ weight\) is multiplied by 2,",
    ),
    (add_one_to_norm, "decoder.blocks.2.pre_attention_norm.weight", r"\+1 was added"),
    (swap_query_heads, "decoder.blocks.2.attention.q_proj.weight", "heads 0 and 2 are swapped"),
    (swap_output_heads, "decoder.blocks.2.attention.o_proj.weight", "heads 1 and 3 are swapped"),
    (
        swap_vision_heads,
        "vision_encoder.blocks.1.attention.k_proj.weight",
        "heads 0 and 1 are swapped",
    ),
    (shift_table, "decoder.embedding.weight", r"shifted by \+1: row i has the values of row i-1"),
    (shift_part_of_table, "decoder.embedding.weight", "rows 20 to 119 are shifted by -3"),
    (zero_end_of_table, "decoder.embedding.weight", "are zeros"),
    (
        repeat_layer,
        "decoder.blocks.2.mlp.down_proj.weight",
        r"it is the original's decoder.blocks.3.mlp.down_proj.weight",
    ),
    (interleave_keys, "decoder.blocks.2.attention.k_proj.weight", "interleaved"),
    (change_one_row, "decoder.blocks.2.mlp.up_proj.weight", "rows 7 differ"),
    (reverse_colors, "vision_encoder.patch_embedding.weight", "color channels"),
    (break_one_value, "decoder.blocks.2.mlp.up_proj.weight", "NaN"),
)
