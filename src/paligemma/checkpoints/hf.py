"""Map tensor names between Hugging Face checkpoints and this package, in both directions.

All shapes agree: both sides store linear weights as (out, in) and split rotary features in halves.
Apart from names, only two things differ.

- Gemma 1's `post_attention_layernorm` is the norm *before* the MLP (big_vision's
  `pre_ffw_norm`). Gemma 2 gives that name to a norm after attention and calls the one before
  the MLP `pre_feedforward_layernorm`.
- Their embedding table has rows beyond the vocabulary: one for the `<image>` placeholder, which is
  never looked up, and padding to a multiple of 64 (257216 = 257152 + 64).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError

EMBEDDING = "language_model.model.embed_tokens.weight"
OUTPUT_LAYER = "language_model.lm_head.weight"
PATCHES = "vision_tower.vision_model.embeddings.patch_embedding.weight"
POSITIONS = "vision_tower.vision_model.embeddings.position_embedding.weight"

_VISION = "vision_tower.vision_model."
_DECODER = "language_model.model."
_ROW_MULTIPLE = 64

_PREFIXES = ("base_model.model.", "paligemma_with_expert.paligemma.", "vlm.", "model.")
_LINEAR = r"(weight|bias)"
_OTHER_PARTS = {
    rf"(model\.)?custom_text_proj\.{_LINEAR}": "ColPali's projection of the embeddings",
    rf"embedding_proj_layer\.{_LINEAR}": "ColPali's projection of the embeddings",
    r"(model\.)?paligemma_with_expert\.gemma_expert\..+": "pi0's action expert",
    r"(model\.)?(action_(in|out)_proj|(action_)?time_mlp_(in|out)|state_proj)"
    rf"\.{_LINEAR}": "pi0's projections of actions and states",
    r"(normalize_inputs|normalize_targets|unnormalize_outputs)\.buffer_.+": (
        "pi0's statistics of actions and states"
    ),
}
_ADAPTER_PARTS = (
    *("base_layer", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"),
    *("lora_magnitude_vector", "modules_to_save", "original_module"),
)

_MODULES = {
    "vision_encoder.patch_embedding": _VISION + "embeddings.patch_embedding",
    "vision_encoder.position_embedding": _VISION + "embeddings.position_embedding",
    "vision_encoder.post_layernorm": _VISION + "post_layernorm",
    "projector.linear": "multi_modal_projector.linear",
    "decoder.embedding": _DECODER + "embed_tokens",
    "decoder.final_norm": _DECODER + "norm",
}
_VISION_LAYER = {
    "layer_norm1": "layer_norm1",
    "layer_norm2": "layer_norm2",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.out_proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_DECODER_LAYER = {
    "pre_attention_norm": "input_layernorm",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
_NORMS = {
    "paligemma": {"pre_mlp_norm": "post_attention_layernorm"},
    "paligemma2": {
        "post_attention_norm": "post_attention_layernorm",
        "pre_mlp_norm": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    },
}


def to_released_names(config: PaliGemmaConfig, parameters: Iterable[str]) -> dict[str, str]:
    """Map our parameter names to the names in the released files.

    Raises CheckpointError for a parameter that PaliGemma does not have.

    >>> from paligemma.config import release_config
    >>> name = "decoder.blocks.0.pre_mlp_norm.weight"
    >>> to_released_names(release_config("paligemma", "3b", 224), [name])[name]
    'language_model.model.layers.0.post_attention_layernorm.weight'
    """
    modules = dict(_MODULES)
    for i in range(config.vision.depth):
        for ours, theirs in _VISION_LAYER.items():
            modules[f"vision_encoder.blocks.{i}.{ours}"] = f"{_VISION}encoder.layers.{i}.{theirs}"
    for i in range(config.decoder.depth):
        for ours, theirs in (_DECODER_LAYER | _NORMS[config.family]).items():
            modules[f"decoder.blocks.{i}.{ours}"] = f"{_DECODER}layers.{i}.{theirs}"
    names = {}
    for parameter in parameters:
        module, _, leaf = parameter.rpartition(".")
        if module not in modules:
            raise CheckpointError(
                f"The model's parameter {parameter} has no counterpart in a PaliGemma checkpoint. "
                "Merge or remove what was added to the model, such as LoRA adapters."
            )
        names[parameter] = f"{modules[module]}.{leaf}"
    return names


def to_released_name(name: str) -> str:
    """Map any spelling of a tensor to that of the released files; keep other names.

        released (4.x)                       saved by 5.x          in memory
        vision_tower.vision_model.           vision_tower.         model.vision_tower.
        language_model.model.                language_model.model. model.language_model.
        (language_model.lm_head.)            lm_head.              lm_head.

    Models that contain a PaliGemma add prefixes: `model.` and `vlm.` (ColPali), `base_model.model.`
    (peft), `paligemma_with_expert.paligemma.` (pi0). What follows the name of a module stays, as
    in the names of quantized weights.

    >>> to_released_name("vlm.model.language_model.norm.weight")
    'language_model.model.norm.weight'
    """
    stripped = ""
    while stripped != name:
        stripped = name
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
    if name.startswith("vision_tower.") and not name.startswith(_VISION):
        return _VISION + name.removeprefix("vision_tower.")
    if name.startswith("lm_head."):
        return "language_model." + name
    if name.startswith("language_model.") and not name.startswith("language_model.lm_head."):
        return _DECODER + name.removeprefix("language_model.").removeprefix("model.")
    return name


def to_memory_name(released_name: str) -> str:
    """Map a released name to the in-memory name of transformers 5, which adapter files use.

    >>> to_memory_name("language_model.model.layers.0.mlp.up_proj.weight")
    'model.language_model.layers.0.mlp.up_proj.weight'
    """
    for released, in_memory in ((_VISION, "vision_tower."), (_DECODER, "language_model.")):
        if released_name.startswith(released):
            return "model." + in_memory + released_name.removeprefix(released)
    return "model." + released_name


def belongs_to(name: str) -> str | None:
    """Return which other part of a larger model a tensor belongs to; None if to no known one.

    These are the tensors that may be left out when the PaliGemma in a checkpoint is read.

    >>> belongs_to("model.custom_text_proj.weight")
    "ColPali's projection of the embeddings"
    """
    if to_released_name(name).startswith(_VISION + "head."):
        return "SigLIP's pooling head, which PaliGemma does not use"
    for pattern, part in _OTHER_PARTS.items():
        if re.fullmatch(pattern, name):
            return part
    return None


def is_adapter_part(name: str) -> bool:
    """Return whether a tensor is part of an adapter of peft that was not merged."""
    return any(f".{part}." in name for part in _ADAPTER_PARTS)


def num_table_rows(vocab_size: int) -> int:
    """Return the number of rows of a stored embedding table: vocabulary, `<image>` and padding.

    >>> num_table_rows(257152)
    257216
    """
    return -(-(vocab_size + 1) // _ROW_MULTIPLE) * _ROW_MULTIPLE


def pad_table(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Pad a table float[V, D], given in blocks of rows, to num_table_rows(V) rows.

    The added rows are the mean of the others, whose logit never exceeds the largest one. A row of
    zeros would win where all other logits are negative.
    """
    num_rows, total = 0, torch.zeros(())
    for block in blocks:
        yield block
        num_rows += block.shape[0]
        total = total + block.sum(dim=0, dtype=torch.float64)
    mean = (total / num_rows).to(block.dtype)
    yield mean.expand(num_table_rows(num_rows) - num_rows, -1)
