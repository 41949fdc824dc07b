"""Convert between Hugging Face's config.json and PaliGemmaConfig.

Reads the files of transformers 4.x (`rope_theta`) and 5.x (`rope_parameters`). Missing keys take
the defaults of transformers 5.23 (`GemmaConfig`, `Gemma2Config` and `SiglipVisionConfig`), because
its files omit values that equal a default. Anything that this package would compute differently is
refused, never ignored. Keys that request running code (`auto_map`) have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paligemma.checkpoints.config_checks import (
    MAX_DEPTH,
    Section,
    check_window,
    released_decoder,
)
from paligemma.checkpoints.files import read_json, write_json
from paligemma.checkpoints.hf import (
    EMBEDDING,
    OUTPUT_LAYER,
    POSITIONS,
    num_table_rows,
    to_released_name,
    to_released_names,
)
from paligemma.checkpoints.quantized import describe, read_description
from paligemma.checkpoints.reader import WeightFiles
from paligemma.checkpoints.refused import why_method
from paligemma.checkpoints.rows import parameter_shapes
from paligemma.config import RELEASES, DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.errors import CheckpointError, OptionError
from paligemma.fast.weights import Quantization

CONFIG_FILE = "config.json"

_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
    },
    "gemma2": {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
_ROPE_THETA = 10_000.0
_RELEASED_SLIDING_WINDOW = 4096
_RELEASED_VOCABULARY, _RELEASED_TABLE_ROWS = 257152, 257216
_IMAGE_TOKEN_INDEX = 256_000  # default
_MAX_RESOLUTION = 2**14
_RESCALE_FACTOR = 1 / 255
_PI0_KEYS = {"paligemma_variant", "action_expert_variant", "chunk_size", "n_action_steps"}


@dataclass(frozen=True, kw_only=True)
class StoredConfig:
    """A config, with the rows of the stored embedding table and the quantization.

    A table that this package quantized has no rows beyond the vocabulary.
    """

    config: PaliGemmaConfig
    table_rows: int
    quantization: Quantization | None = None
    mlx_groups: Mapping[str, Any] | None = None
    """MLX's entry "quantization": bits and group size, with exceptions per module."""
    notes: tuple[str, ...] = ()


def read_config(folder: Path, sliding_window: int | None = None) -> StoredConfig:
    """Read `config.json` of a checkpoint folder.

    In the released files and in those of `write_config`, the vocabulary ends at
    `image_token_index`, and the rows after it are the image placeholder and padding (257152 of
    257216 rows count). In all other files that transformers wrote, every row counts, as it does
    there. `sliding_window` replaces the value in the file, which is not used: see `DecoderConfig`.

    The config of ColPali contains that of PaliGemma. Where there is none, as in pi0 and in folders
    with weights only, it follows from the shapes of the weights if these are those of a release.

    Raises CheckpointError, which names file and key, for missing or unsupported values, and
    OptionError for an invalid window.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        return _config_of_weights(folder, sliding_window, f"{folder} contains no {CONFIG_FILE}")
    content = read_json(path)
    top = Section(path, "config", content)
    mlx_groups = _check_foreign_quantization(top)
    if top.get("model_type") == "colpali":
        top = Section(path, "vlm_config", content.get("vlm_config"))
        content = top.content
    if top.get("model_type") is None and content.keys() & _PI0_KEYS:
        return _config_of_weights(folder, sliding_window, f"{path} is that of a robot policy")
    if top.get("model_type") != "paligemma":
        raise top.refuse("model_type", "expected 'paligemma' (PaliGemma 1 and 2)")
    quantization = None
    if mlx_groups is None:
        quantization = read_description(path, top.get("quantization"))
    text = content.get("text_config")
    model_type = text.get("model_type") if isinstance(text, dict) else None
    defaults = _TEXT_DEFAULTS.get(model_type) if isinstance(model_type, str) else None
    text = Section(path, "text_config", text, defaults)
    if defaults is None:
        raise text.refuse("model_type", "expected 'gemma' or 'gemma2'")
    if sliding_window is not None:
        check_window(sliding_window, is_gemma2=model_type == "gemma2")
    vision = Section(path, "vision_config", content.get("vision_config"), _VISION_DEFAULTS)
    table_rows = text.whole("vocab_size")
    image_token = _read_image_token(top)
    vocab_size = image_token if _is_padded(top, image_token, table_rows) else table_rows
    try:
        config = PaliGemmaConfig(
            vision=_read_vision(vision), decoder=_read_decoder(text, vocab_size, sliding_window)
        )
    except OptionError as error:
        raise CheckpointError(f"{path}: {error}") from error
    top.require("projection_dim", config.decoder.width)
    if quantization is not None:
        table_rows = config.decoder.vocab_size
    return StoredConfig(
        config=config, table_rows=table_rows, quantization=quantization, mlx_groups=mlx_groups
    )


def _check_foreign_quantization(top: Section) -> Mapping[str, Any] | None:
    """Return MLX's entry; raise if another tool than MLX and bitsandbytes quantized the weights.

    How each weight is quantized is read from its tensors.
    """
    own, foreign = top.get("quantization"), top.get("quantization_config")
    if isinstance(foreign, dict) and foreign.get("quant_method") not in (None, "bitsandbytes"):
        raise CheckpointError(why_method(top.path, foreign["quant_method"]))
    entry = own if isinstance(own, dict) and "format" not in own else foreign
    if not isinstance(entry, dict) or "group_size" not in entry or "bits" not in entry:
        is_read = foreign is None or (
            isinstance(foreign, dict) and foreign.get("quant_method") == "bitsandbytes"
        )
        if not is_read:
            raise top.refuse("quantization_config", "expected that of bitsandbytes or MLX")
        return None
    for module, groups in {"": entry, **entry}.items():
        if not isinstance(groups, dict):
            continue
        where = f"{top.path}: quantization{module and ' of ' + module}"
        mode = groups.get("mode", "affine")
        if mode != "affine":
            raise CheckpointError(
                f"{where} has the mode {str(mode)[:40]!r}; of MLX's modes only 'affine' is read. "
                "Convert the original model with mlx_vlm.convert --q-mode affine, or load it with "
                "weights='int4' (--quantization int4)."
            )
        if any(not isinstance(groups.get(key, 0), int) for key in ("bits", "group_size")):
            raise CheckpointError(f"{where} has bits or a group_size that is not a whole number.")
    return entry


def _config_of_weights(folder: Path, sliding_window: int | None, why: str) -> StoredConfig:
    """Return the config of the release whose weights have the shapes of those in a folder."""
    try:
        with WeightFiles(folder) as files:
            shapes = {to_released_name(name): t.shape for name, t in files.tensors.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{why}, and its weights cannot replace it. {error}") from error
    table = shapes.pop(OUTPUT_LAYER, None)
    table = shapes.pop(EMBEDDING, table) or (0,)
    for config in dict.fromkeys(release.config for release in RELEASES):
        vocab_size, width = config.decoder.vocab_size, config.decoder.width
        if shapes.get(POSITIONS) != (config.vision.num_image_tokens, config.vision.width):
            continue
        if table not in ((vocab_size, width), (num_table_rows(vocab_size), width)):
            continue
        ours = parameter_shapes(config)
        del ours["decoder.embedding.weight"]
        if all(shapes.get(n) == ours[p] for p, n in to_released_names(config, ours).items()):
            note = f"{why}, so the config was taken from the release with the same shapes."
            decoder = released_decoder(config.decoder, sliding_window)
            config = replace(config, decoder=decoder)
            return StoredConfig(config=config, table_rows=table[0], notes=(note,))
    raise CheckpointError(
        f"{why}, and the weights do not have the shapes of a released model, so the config cannot "
        f"be derived. Copy {CONFIG_FILE} of the PaliGemma that it was made from into the folder."
    )


def _read_image_token(top: Section) -> int:
    """Return the id of the image placeholder, which may exceed the rows of the table."""
    for key in ("image_token_index", "image_token_id"):
        if top.get(key) is not None:
            return top.whole(key)
    return _IMAGE_TOKEN_INDEX


def _is_padded(top: Section, image_token: int, table_rows: int) -> bool:
    """Return whether the rows from `image_token` on are padding."""
    if (image_token, table_rows) == (_RELEASED_VOCABULARY, _RELEASED_TABLE_ROWS):
        return True
    by_transformers = top.get("transformers_version") is not None
    return not by_transformers and num_table_rows(image_token) == table_rows


def _read_vision(section: Section) -> VisionConfig:
    section.require("model_type", "siglip_vision_model")
    section.require("hidden_act", "gelu_pytorch_tanh")
    section.require("num_channels", 3)
    return VisionConfig(
        resolution=section.whole("image_size", _MAX_RESOLUTION),
        patch_size=section.whole("patch_size"),
        width=section.whole("hidden_size"),
        depth=section.whole("num_hidden_layers", MAX_DEPTH),
        mlp_dim=section.whole("intermediate_size"),
        num_heads=section.whole("num_attention_heads"),
        layer_norm_eps=section.positive("layer_norm_eps"),
    )


def _read_decoder(section: Section, vocab_size: int, sliding_window: int | None) -> DecoderConfig:
    is_gemma2 = section.get("model_type") == "gemma2"
    # Files of Gemma 1 say "gelu" but mean the tanh approximation, as transformers does.
    section.require("hidden_act", "gelu_pytorch_tanh", "gelu")
    section.require("hidden_activation", "gelu_pytorch_tanh")
    section.require("attention_bias", False)
    section.require("tie_word_embeddings", True)
    section.require("use_bidirectional_attention", True)
    depth = section.whole("num_hidden_layers", MAX_DEPTH)
    head_dim = section.whole("head_dim")
    query_scalar = section.positive("query_pre_attn_scalar") if is_gemma2 else head_dim
    return DecoderConfig(
        vocab_size=vocab_size,
        width=section.whole("hidden_size"),
        depth=depth,
        mlp_dim=section.whole("intermediate_size"),
        num_heads=section.whole("num_attention_heads"),
        num_kv_heads=section.whole("num_key_value_heads"),
        head_dim=head_dim,
        query_scale=query_scalar**-0.5,
        post_norms=is_gemma2,
        attn_logit_softcap=section.positive_or_none("attn_logit_softcapping"),
        final_logit_softcap=section.positive_or_none("final_logit_softcapping"),
        sliding_window=sliding_window,
        sliding_layers=() if sliding_window is None else _read_sliding_layers(section, depth),
        rope_theta=_read_rope_theta(section),
        rms_norm_eps=section.positive("rms_norm_eps"),
    )


def _read_sliding_layers(section: Section, depth: int) -> tuple[bool, ...]:
    """Return which layers use the window, from `layer_types`; by default the even ones."""
    types = section.get("layer_types")
    if types is None or types == ["full_attention"] * depth:
        return tuple(i % 2 == 0 for i in range(depth))
    choices = ("sliding_attention", "full_attention")
    if not isinstance(types, list) or len(types) != depth or any(t not in choices for t in types):
        raise section.refuse("layer_types", f"expected one of {choices} per layer")
    return tuple(t == "sliding_attention" for t in types)


def _read_rope_theta(section: Section) -> float:
    if section.get("rope_scaling") is not None:
        raise section.refuse("rope_scaling", "scaled rotary positions are not supported")
    if section.get("rope_parameters") is None:
        return _ROPE_THETA if section.get("rope_theta") is None else section.positive("rope_theta")
    rope = Section(
        section.path,
        f"{section.name}.rope_parameters",
        section.get("rope_parameters"),
        {"rope_theta": _ROPE_THETA},
    )
    unknown = rope.content.keys() - {"rope_theta", "rope_type"}
    if unknown:
        raise rope.refuse(min(unknown), "only rope_theta is supported")
    rope.require("rope_type", "default")
    return rope.positive("rope_theta")


def write_config(
    folder: Path, config: PaliGemmaConfig, dtype: str, quantization: Quantization | None = None
) -> None:
    """Write `config.json`, `generation_config.json` and `preprocessor_config.json`.

    transformers 4.57 and 5.23 can read them, unless weights are quantized. Raises CheckpointError
    when Hugging Face's format cannot represent a value, such as a soft cap in a Gemma 1.
    """
    vision, decoder = config.vision, config.decoder
    special_ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    table_rows = num_table_rows(decoder.vocab_size)
    content = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "torch_dtype": dtype,
        "hidden_size": decoder.width,
        "projection_dim": decoder.width,
        "vocab_size": table_rows,
        "image_token_index": decoder.vocab_size,
        "ignore_index": -100,
        "tie_word_embeddings": True,
        **special_ids,
        "text_config": {
            "vocab_size": table_rows,
            "hidden_size": decoder.width,
            "intermediate_size": decoder.mlp_dim,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "head_dim": decoder.head_dim,
            "rms_norm_eps": decoder.rms_norm_eps,
            "rope_theta": decoder.rope_theta,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "num_image_tokens": vision.num_image_tokens,
            "tie_word_embeddings": True,
            "torch_dtype": dtype,
            **special_ids,
            **(_gemma2_fields(decoder) if decoder.post_norms else _gemma1_fields(decoder)),
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": vision.resolution,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_dim,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            "layer_norm_eps": vision.layer_norm_eps,
            "hidden_act": "gelu_pytorch_tanh",
            "num_image_tokens": vision.num_image_tokens,
            "projection_dim": decoder.width,
            "torch_dtype": dtype,
            "vision_use_head": False,
        },
    }
    if quantization is not None:
        content["quantization"] = describe(quantization)
    write_json(folder / CONFIG_FILE, content)
    write_json(folder / "generation_config.json", {"_from_model_config": True, **special_ids})
    write_json(
        folder / "preprocessor_config.json",
        {
            "processor_class": "PaliGemmaProcessor",
            "image_processor_type": "SiglipImageProcessor",
            "image_seq_length": vision.num_image_tokens,
            "size": {"height": vision.resolution, "width": vision.resolution},
            "do_convert_rgb": True,
            "do_resize": True,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": _RESCALE_FACTOR,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )


def _gemma1_fields(decoder: DecoderConfig) -> dict[str, Any]:
    extras = (decoder.attn_logit_softcap, decoder.final_logit_softcap, decoder.sliding_window)
    default_scale = math.isclose(decoder.query_scale, decoder.head_dim**-0.5, rel_tol=1e-6)
    if extras != (None, None, None) or not default_scale:
        raise CheckpointError(
            "A decoder without post-norms is saved as a Gemma 1, which has no soft caps, no "
            "sliding window, and the query scale head_dim^-0.5. This config has other values, "
            "so config.json cannot represent it."
        )
    return {"model_type": "gemma"}


def _gemma2_fields(decoder: DecoderConfig) -> dict[str, Any]:
    query_scalar = decoder.query_scale**-2
    if not math.isclose(query_scalar, round(query_scalar), rel_tol=1e-6):
        raise CheckpointError(
            f"The query scale is {decoder.query_scale}; config.json can only represent the "
            "inverse square root of a whole number."
        )
    # Layers without a window are written as full attention, so that transformers computes the same
    # as this package. The size of the window is required even if no layer uses it.
    slides = decoder.sliding_layers if decoder.sliding_window else (False,) * decoder.depth
    return {
        "model_type": "gemma2",
        "query_pre_attn_scalar": round(query_scalar),
        "attn_logit_softcapping": decoder.attn_logit_softcap,
        "final_logit_softcapping": decoder.final_logit_softcap,
        "sliding_window": decoder.sliding_window or _RELEASED_SLIDING_WINDOW,
        "layer_types": ["sliding_attention" if s else "full_attention" for s in slides],
    }
