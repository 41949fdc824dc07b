"""config.json is read with distrust and written so that it is read back the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from paligemma.checkpoints.hf_config import read_config, write_config
from paligemma.checkpoints.quantized import describe
from paligemma.config import DECODERS, release_config
from paligemma.errors import CheckpointError, OptionError
from tests.tiny import FAMILIES, tiny_config

# The released files of 2024, less the keys without meaning here.
PALIGEMMA = {
    "model_type": "paligemma",
    "hidden_size": 2048,
    "projection_dim": 2048,
    "image_token_index": 257152,
    "vocab_size": 257216,
    "text_config": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_image_tokens": 256,
        "num_key_value_heads": 1,
        "vocab_size": 257216,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "projector_hidden_act": "gelu_fast",
        "vision_use_head": False,
    },
}


def write(folder: Path, content: object) -> Path:
    (folder / "config.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return folder


def changed(*path: str, to: object) -> dict[str, Any]:
    content: dict[str, Any] = copy.deepcopy(PALIGEMMA)
    section = content
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = to
    return content


def test_a_released_config_is_read(tmp_path: Path) -> None:
    stored = read_config(write(tmp_path, PALIGEMMA))
    assert stored.config == release_config("paligemma", "3b", 224)
    assert stored.table_rows == 257216


def test_a_released_config_of_another_resolution_is_read(tmp_path: Path) -> None:
    content = changed("vision_config", "image_size", to=896)
    content["text_config"]["num_image_tokens"] = 4096
    content["vision_config"]["num_image_tokens"] = 4096
    assert read_config(write(tmp_path, content)).config == release_config("paligemma", "3b", 896)


def test_a_paligemma_2_that_omits_defaults_is_read(tmp_path: Path) -> None:
    content = copy.deepcopy(PALIGEMMA) | {"projection_dim": 2304}
    content["text_config"] = {"model_type": "gemma2", "vocab_size": 257216}
    assert read_config(write(tmp_path, content)).config == release_config("paligemma2", "3b", 224)


@pytest.mark.parametrize(("family", "size"), DECODERS)
def test_what_is_written_is_read_back(tmp_path: Path, family: Any, size: str) -> None:
    config = release_config(family, size, 448)
    write_config(tmp_path, config, "bfloat16")
    assert read_config(tmp_path).config == config
    assert read_config(tmp_path).table_rows == 257216


@pytest.mark.parametrize("family", FAMILIES)
def test_unusual_values_are_read_back(tmp_path: Path, family: Any) -> None:
    config = tiny_config(family)
    write_config(tmp_path, config, "float32")
    assert read_config(tmp_path).config == config


@pytest.mark.parametrize("image_token", [191, 128, 151, 300, 257152])
def test_every_row_counts_in_another_table_that_transformers_wrote(
    tmp_path: Path, image_token: int
) -> None:
    content = changed("text_config", "vocab_size", to=192)
    content |= {"transformers_version": "5.23.0", "image_token_index": image_token}
    assert read_config(write(tmp_path, content)).config.decoder.vocab_size == 192


def test_the_image_token_may_be_left_out(tmp_path: Path) -> None:
    content = {key: value for key, value in PALIGEMMA.items() if key != "image_token_index"}
    assert read_config(write(tmp_path, content)).config.decoder.vocab_size == 257216


def test_a_window_comes_only_from_the_caller(tmp_path: Path) -> None:
    write_config(tmp_path, release_config("paligemma2", "3b", 896), "bfloat16")
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["text_config"]["layer_types"] == ["full_attention"] * 26
    assert content["text_config"]["sliding_window"] == 4096
    assert read_config(tmp_path).config.decoder.sliding_window is None
    decoder = read_config(tmp_path, sliding_window=4096).config.decoder
    assert decoder.sliding_window == 4096
    assert decoder.sliding_layers == (True, False) * 13
    for window in (0, -1, True):
        with pytest.raises(OptionError, match="sliding_window is"):
            read_config(tmp_path, sliding_window=window)
    with pytest.raises(OptionError, match="PaliGemma 1"):
        read_config(write(tmp_path, PALIGEMMA), sliding_window=4096)


def test_a_value_without_a_place_in_the_format_is_refused(tmp_path: Path) -> None:
    for config in (
        tiny_config("paligemma", attn_logit_softcap=50.0),
        tiny_config("paligemma", query_scale=0.5),
        tiny_config("paligemma2", query_scale=0.3),
    ):
        with pytest.raises(CheckpointError):
            write_config(tmp_path, config, "float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model_type",), "gemma3", "model_type is 'gemma3'"),
        (("model_type",), None, "model_type is None"),
        (("text_config", "model_type"), "gemma3_text", "expected 'gemma' or 'gemma2'"),
        (("text_config", "model_type"), ["gemma"], "expected 'gemma' or 'gemma2'"),
        (("text_config",), None, "text_config is missing"),
        (("text_config",), "gemma", "text_config is missing"),
        (("vision_config",), [], "vision_config is missing"),
        (("text_config", "hidden_size"), "2048", "hidden_size is '2048'"),
        (("text_config", "hidden_size"), 2048.0, "a whole number"),
        (("text_config", "hidden_size"), True, "a whole number"),
        (("text_config", "hidden_size"), 10**12, "a whole number"),
        (("text_config", "num_hidden_layers"), 10**6, "from 1 to 512"),
        (("text_config", "num_hidden_layers"), 0, "a whole number"),
        (("text_config", "vocab_size"), -5, "a whole number"),
        (("text_config", "rms_norm_eps"), "small", "a number above 0"),
        (("text_config", "rope_theta"), -1, "a number above 0"),
        (("text_config", "rope_scaling"), {"type": "linear", "factor": 2}, "scaled rotary"),
        (("text_config", "rope_parameters"), {"rope_type": "yarn", "factor": 4}, "factor is 4"),
        (("text_config", "rope_parameters"), {"rope_type": "yarn"}, "rope_type is 'yarn'"),
        (("text_config", "rope_parameters"), 5, "rope_parameters is missing"),
        (("text_config", "hidden_activation"), "relu", "hidden_activation is 'relu'"),
        (("text_config", "attention_bias"), True, "attention_bias is True"),
        (("text_config", "tie_word_embeddings"), False, "tie_word_embeddings is False"),
        (("text_config", "use_bidirectional_attention"), False, "bidirectional"),
        (("text_config", "num_key_value_heads"), 3, "num_kv_heads is 3"),
        (("text_config", "head_dim"), 15, "must be even"),
        (("vision_config", "model_type"), "clip_vision_model", "siglip"),
        (("vision_config", "hidden_act"), "gelu", "hidden_act is 'gelu'"),
        (("vision_config", "image_size"), 225, "multiple of patch_size"),
        (("vision_config", "image_size"), [224, 224], "a whole number"),
        (("vision_config", "image_size"), 2**22, "1 to 16384"),
        (("vision_config", "num_channels"), 4, "num_channels is 4"),
        (("projection_dim",), 1024, "projection_dim is 1024"),
        (("image_token_index",), "256", "image_token_index is '256'"),
        (("quantization_config",), {"bits": 4}, "that of bitsandbytes or MLX"),
        (("quantization_config",), {"quant_method": "gptq"}, "quantized by GPTQ"),
        (("quantization",), {"format": "int4"}, "quantization is .* expected version 1 of int8"),
        (("quantization",), "int4", "quantization is 'int4'"),
        (("quantization",), describe("int4") | {"version": 2}, "paligemma quantize"),
        (("quantization",), describe("int8") | {"zero_point": True}, "zero_point"),
        (("model_type",), "x" * 10_000, r"\.\.\."),
    ],
)
def test_what_this_package_cannot_run_is_refused_by_key(
    tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    write(tmp_path, changed(*path, to=value))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_config(tmp_path)
    assert "config.json" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1]", "an object"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_broken_json_is_refused(tmp_path: Path, raw: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_config(write(tmp_path, raw))


def test_a_missing_config_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"contains no config\.json"):
        read_config(tmp_path)


def test_keys_that_ask_for_code_have_no_effect(tmp_path: Path) -> None:
    extra = {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True}
    (tmp_path / "evil.py").write_text("raise SystemExit")
    assert read_config(write(tmp_path, PALIGEMMA | extra)).config.family == "paligemma"
