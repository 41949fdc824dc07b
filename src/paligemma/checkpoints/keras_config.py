"""The JSON files of a Keras preset (keras-hub's `PaliGemmaBackbone`), read and written.

`intermediate_dim` is twice the width of an MLP. `query_head_dim_normalize` is false for the 28B
model, whose query scale is (width / heads)^-0.5; keras-hub itself ignores it. Old files say
keras_nlp, have a plain string as dtype, and lack keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from paligemma.checkpoints.config_checks import (
    MAX_DEPTH,
    MAX_SIZE,
    Section,
    check_represented,
    with_window,
)
from paligemma.checkpoints.files import read_json
from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig, count_parameters
from paligemma.errors import CheckpointError, OptionError

CONFIG_FILE = "config.json"

_BACKBONE = "PaliGemmaBackbone"
_DEFAULT_VISION_MLP = 4304  # what null in old files means
_DEFAULT_WINDOW = 4096
_MAX_RESOLUTION = 2**14
_EPSILON = 1e-6
_DEFAULTS: dict[str, Any] = {
    "query_head_dim_normalize": True,
    "use_post_ffw_norm": False,
    "use_post_attention_norm": False,
    "use_sliding_window_attention": False,
    "sliding_window_size": _DEFAULT_WINDOW,
    "layer_norm_epsilon": _EPSILON,
}
_SEQUENCE_LENGTH = 1024  # keras-hub's default


@dataclass(frozen=True, kw_only=True)
class StoredConfig:
    """What the JSON files of a preset say."""

    config: PaliGemmaConfig
    is_int8: bool
    versions: Mapping[str, str]
    notes: tuple[str, ...]


def is_preset(folder: Path) -> bool:
    """Return whether a folder is a Keras preset, of whatever model."""
    path = folder / CONFIG_FILE
    return path.is_file() and "class_name" in read_json(path)


def read_config(folder: Path, sliding_window: int | None = None) -> StoredConfig:
    """Read the files of a preset.

    `sliding_window` replaces the value in the file, which is not used: see `DecoderConfig`.

    Raises CheckpointError, which names file and key, for missing or unsupported values, and
    OptionError for an invalid window.
    """
    path = folder / CONFIG_FILE
    content = read_json(path)
    if content.get("class_name") != _BACKBONE:
        raise CheckpointError(
            f"{path}: class_name is {str(content.get('class_name'))[:80]!r}; expected "
            f"{_BACKBONE!r}. Give the folder of a PaliGemma preset."
        )
    section = Section(path, "config", content.get("config"), _DEFAULTS)
    config = _read_backbone(section)
    config = replace(config, decoder=with_window(config.decoder, sliding_window))
    modes = _quantization_modes(section.get("dtype"))
    if modes - {"int8"}:
        raise CheckpointError(
            f"{path}: config.dtype says that the weights are quantized as "
            f"{', '.join(sorted(modes))}. Of Keras's quantized presets only int8 can be read; "
            "save the preset before `quantize`."
        )
    return StoredConfig(
        config=config,
        is_int8=bool(modes),
        versions=_versions(folder),
        notes=tuple(_notes(folder, section, config)),
    )


def _read_backbone(section: Section) -> PaliGemmaConfig:
    section.require("vit_classifier_activation", "linear")
    if section.get("vit_pooling") is not None:
        raise section.refuse("vit_pooling", "expected null: the decoder sees all image tokens")
    if section.positive("layer_norm_epsilon") != _EPSILON:
        raise section.refuse("layer_norm_epsilon", f"expected {_EPSILON}")
    try:
        return PaliGemmaConfig(vision=_read_vision(section), decoder=_read_decoder(section))
    except OptionError as error:
        raise CheckpointError(f"{section.path}: {error}") from error


def _read_vision(section: Section) -> VisionConfig:
    has_mlp = section.get("vit_intermediate_dim") is not None
    return VisionConfig(
        resolution=section.whole("image_size", _MAX_RESOLUTION),
        patch_size=section.whole("vit_patch_size"),
        width=section.whole("vit_hidden_dim"),
        depth=section.whole("vit_num_layers", MAX_DEPTH),
        mlp_dim=section.whole("vit_intermediate_dim") if has_mlp else _DEFAULT_VISION_MLP,
        num_heads=section.whole("vit_num_heads"),
        layer_norm_eps=_EPSILON,
    )


def _read_decoder(section: Section) -> DecoderConfig:
    post_norms = _flag(section, "use_post_ffw_norm")
    if _flag(section, "use_post_attention_norm") != post_norms:
        raise section.refuse("use_post_attention_norm", "expected the same as use_post_ffw_norm")
    gate_and_up = section.whole("intermediate_dim", 2 * MAX_SIZE)
    if gate_and_up % 2:
        raise section.refuse("intermediate_dim", "expected twice the width of the MLP")
    width, depth = section.whole("hidden_dim"), section.whole("num_layers", MAX_DEPTH)
    num_heads, head_dim = section.whole("num_query_heads"), section.whole("head_dim")
    by_head_dim = _flag(section, "query_head_dim_normalize")
    if not by_head_dim and width < num_heads:
        raise section.refuse("hidden_dim", f"expected at least num_query_heads, {num_heads}")
    return DecoderConfig(
        vocab_size=section.whole("vocabulary_size"),
        width=width,
        depth=depth,
        mlp_dim=gate_and_up // 2,
        num_heads=num_heads,
        num_kv_heads=section.whole("num_key_value_heads"),
        head_dim=head_dim,
        query_scale=(head_dim if by_head_dim else width // num_heads) ** -0.5,
        post_norms=post_norms,
        attn_logit_softcap=section.positive_or_none("attention_logit_soft_cap"),
        final_logit_softcap=section.positive_or_none("final_logit_soft_cap"),
        rms_norm_eps=_EPSILON,
    )


def _flag(section: Section, key: str) -> bool:
    value = section.get(key)
    if not isinstance(value, bool):
        raise section.refuse(key, "expected true or false")
    return value


def _quantization_modes(policy: object) -> set[str]:
    """Return the modes in a dtype policy, or in the policies of layers.

    >>> _quantization_modes({"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}})
    {'int8'}
    >>> _quantization_modes("int8_from_float32"), _quantization_modes("mixed_bfloat16")
    ({'int8'}, set())
    """
    modes: set[str] = set()
    policies = [policy]
    while policies:
        policy = policies.pop()
        if isinstance(policy, str):
            mode, separator, _ = policy.partition("_from_")
            modes |= {mode.partition("/")[0]} if separator else set()
        elif isinstance(policy, dict):
            modes |= {policy["mode"]} if isinstance(policy.get("mode"), str) else set()
            policies += policy.values()
    return {mode[:40] for mode in modes}


def _versions(folder: Path) -> dict[str, str]:
    path = folder / "metadata.json"
    if not path.exists():
        return {}
    content = read_json(path)
    versions = {key: content.get(key) for key in ("keras_version", "keras_hub_version")}
    return {key: value[:40] for key, value in versions.items() if isinstance(value, str)}


def _notes(folder: Path, section: Section, config: PaliGemmaConfig) -> list[str]:
    notes = query_scale_notes(config)
    window, decoder = section.get("sliding_window_size"), config.decoder
    if (
        section.get("use_sliding_window_attention") is True
        and decoder.sliding_window is None
        and isinstance(window, int)
        and window < config.vision.num_image_tokens + 512
    ):
        notes.append(
            f"Keras lets even layers see only {window} positions around each, which are fewer than "
            "image and text have. The weights were trained without such a window, so there is "
            "none here."
        )
    converter = folder / "image_converter.json"
    if converter.exists():
        settings = read_json(converter).get("config")
        if isinstance(settings, dict) and settings.get("crop_to_aspect_ratio", True) is not False:
            notes.append(
                "Keras crops an image to a square before it resizes it, as image_converter.json "
                "says. This package resizes the whole image, as in training."
            )
    return notes


def query_scale_notes(config: PaliGemmaConfig) -> list[str]:
    """Return what to know about a query scale that keras-hub does not apply."""
    decoder = config.decoder
    if decoder.query_scale == decoder.head_dim**-0.5:
        return []
    return [
        f"The weights were trained with the query scale {decoder.query_scale**-2:g}^-0.5, which "
        "config.json states with query_head_dim_normalize = false. keras-hub (0.32.0) ignores it "
        f"and uses {decoder.head_dim}^-0.5, so its outputs differ."
    ]


def preset_files(
    folder: Path, config: PaliGemmaConfig, dtype: str, *, has_tokenizer: bool
) -> dict[str, dict[str, Any]]:
    """Return the contents of the JSON files of a preset, by name.

    Images are resized in Keras as in this package: the whole image, bicubic, with antialiasing.
    Without a tokenizer there is no preprocessor and so no task.

    Raises CheckpointError for a config that a preset cannot represent.
    """
    settings = _backbone_settings(config, dtype)
    section = Section(folder / CONFIG_FILE, "config", settings, _DEFAULTS)
    check_represented(config, _read_backbone(section), "a Keras preset")
    backbone = _object("backbone", _BACKBONE, settings)
    converter = _image_converter(config.vision.resolution)
    files = {
        CONFIG_FILE: backbone,
        "metadata.json": {
            "keras_version": "3.15.1",
            "keras_hub_version": "0.32.0",
            "parameter_count": count_parameters(config),
            "date_saved": datetime.now().strftime("%Y-%m-%d@%H:%M:%S"),
            "tasks": ["CausalLM"],
        },
        "image_converter.json": converter,
    }
    if has_tokenizer:
        tokenizer = _tokenizer()
        preprocessor = _preprocessor(tokenizer, converter)
        files["tokenizer.json"] = tokenizer
        files["preprocessor.json"] = preprocessor
        files["task.json"] = _object(
            "causal_lm",
            "PaliGemmaCausalLM",
            {"backbone": backbone, "preprocessor": preprocessor, "name": "pali_gemma_causal_lm"},
        )
    return files


def _backbone_settings(config: PaliGemmaConfig, dtype: str) -> dict[str, Any]:
    vision, decoder = config.vision, config.decoder
    return {
        **_layer("backbone", dtype),
        "vocabulary_size": decoder.vocab_size,
        "image_size": vision.resolution,
        "num_layers": decoder.depth,
        "num_query_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "hidden_dim": decoder.width,
        "intermediate_dim": 2 * decoder.mlp_dim,
        "head_dim": decoder.head_dim,
        "vit_patch_size": vision.patch_size,
        "vit_num_heads": vision.num_heads,
        "vit_hidden_dim": vision.width,
        "vit_num_layers": vision.depth,
        "vit_intermediate_dim": vision.mlp_dim,
        "vit_pooling": None,
        "vit_classifier_activation": None,
        "vit_name": None,
        "query_head_dim_normalize": decoder.query_scale == decoder.head_dim**-0.5,
        "use_post_ffw_norm": decoder.post_norms,
        "use_post_attention_norm": decoder.post_norms,
        "final_logit_soft_cap": decoder.final_logit_softcap,
        "attention_logit_soft_cap": decoder.attn_logit_softcap,
        # Without a window, Keras computes the same as this package, and as in training.
        "sliding_window_size": decoder.sliding_window or _DEFAULT_WINDOW,
        "use_sliding_window_attention": decoder.sliding_window is not None,
        "layer_norm_epsilon": _EPSILON,
        "dropout": 0,
    }


def _object(module: str, class_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "module": f"keras_hub.src.models.pali_gemma.pali_gemma_{module}",
        "class_name": class_name,
        "config": settings,
        "registered_name": f"keras_hub>{class_name}",
    }


def _layer(name: str, dtype: str) -> dict[str, Any]:
    policy = {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": dtype},
        "registered_name": None,
    }
    return {"name": f"pali_gemma_{name}", "trainable": True, "dtype": policy}


def _image_converter(resolution: int) -> dict[str, Any]:
    settings = {
        **_layer("image_converter", "float32"),
        "image_size": [resolution, resolution],
        "scale": 1 / 127.5,
        "offset": -1,
        "interpolation": "bicubic",
        "antialias": True,
        "crop_to_aspect_ratio": False,
        "pad_to_aspect_ratio": False,
        "bounding_box_format": "yxyx",
    }
    return _object("image_converter", "PaliGemmaImageConverter", settings)


def _tokenizer() -> dict[str, Any]:
    settings = {
        **_layer("tokenizer", "int32"),
        "config_file": "tokenizer.json",
        "proto": None,
        "sequence_length": None,
        "add_bos": False,
        "add_eos": False,
    }
    return _object("tokenizer", "PaliGemmaTokenizer", settings)


def _preprocessor(tokenizer: dict[str, Any], converter: dict[str, Any]) -> dict[str, Any]:
    settings = {
        **_layer("causal_lm_preprocessor", "float32"),
        "tokenizer": tokenizer,
        "image_converter": converter,
        "config_file": "preprocessor.json",
        "sequence_length": _SEQUENCE_LENGTH,
        "add_start_token": True,
        "add_end_token": True,
    }
    return _object("causal_lm_preprocessor", "PaliGemmaCausalLMPreprocessor", settings)
