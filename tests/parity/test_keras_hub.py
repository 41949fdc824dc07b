"""Presets travel between keras-hub and this package, with equal outputs in both directions.

keras-hub brings TensorFlow, so it may be in another environment: set KERAS_HUB_PYTHON to its
Python, or install the extra `references`. One run of it serves all tests here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from paligemma.checkpoints.keras import open_keras, write_keras
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.rows import Contents, read_all
from paligemma.config import Family, PaliGemmaConfig
from paligemma.engine.generate import generate
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.image import ImageTransform, pixel_array
from tests.tiny import FLOAT32_TOLERANCE, randomize, tiny_config

PYTHON = os.environ.get("KERAS_HUB_PYTHON") or (
    sys.executable if importlib.util.find_spec("keras_hub") else None
)
pytestmark = pytest.mark.skipif(
    PYTHON is None,
    reason="keras-hub is not installed: install the extra 'references' or set KERAS_HUB_PYTHON",
)

VOCABULARY = Path(__file__).parents[1] / "vectors/interop/keras/k1/assets/tokenizer/vocabulary.spm"
PROMPT, PROMPT_IDS = "the quick brown fox", [4, 9, 5, 7]
LENGTH = 16

_SETTINGS: dict[str, Any] = {
    "vocabulary_size": 300,
    "image_size": 42,
    "num_layers": 2,
    "num_query_heads": 6,
    "num_key_value_heads": 1,
    "hidden_dim": 40,
    "intermediate_dim": 100,
    "head_dim": 12,
    "vit_patch_size": 14,
    "vit_num_heads": 3,
    "vit_hidden_dim": 30,
    "vit_num_layers": 2,
    "vit_intermediate_dim": 44,
}
_GEMMA2: dict[str, Any] = {
    **_SETTINGS,
    "num_layers": 3,
    "num_key_value_heads": 2,
    "hidden_dim": 60,
    "head_dim": 10,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "attention_logit_soft_cap": 50,
    "final_logit_soft_cap": 30,
    "use_sliding_window_attention": True,
}
THEIRS: dict[str, dict[str, Any]] = {
    "PaliGemma 1": {"settings": {**_SETTINGS, "vit_num_layers": 12}, "seed": 1},
    "PaliGemma 2": {"settings": _GEMMA2, "seed": 2},
    "after training with LoRA and dropout": {
        "settings": {**_SETTINGS, "dropout": 0.1},
        "seed": 3,
        "lora_rank": 2,
    },
    "bfloat16, in shards": {
        "settings": {**_GEMMA2, "dtype": "bfloat16"},
        "seed": 4,
        "shard_gigabytes": 1e-4,
    },
    "int8": {"settings": _GEMMA2, "seed": 5, "quantize": "int8"},
}
"""Presets that keras-hub writes: arguments of `write` in keras_hub_reference.py."""


@dataclass(frozen=True)
class Ours:
    """A preset that this package writes."""

    family: Family
    dtype: torch.dtype
    max_shard_bytes: int = 10**9


OURS = {
    "PaliGemma 1": Ours("paligemma", torch.float32),
    "PaliGemma 2, bfloat16, in shards": Ours("paligemma2", torch.bfloat16, 50_000),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all presets, and with the outputs of keras-hub in .npz files."""
    folder = tmp_path_factory.mktemp("keras")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype("uint8")
    np.save(folder / "image.npy", pixels)
    jobs: list[dict[str, Any]] = [
        {
            "function": "write",
            "folder": str(folder / name),
            "arrays": str(folder / f"{name}.npz"),
            **arguments,
        }
        for name, arguments in THEIRS.items()
    ]
    for name, preset in OURS.items():
        path = folder / f"our {name}"
        path.mkdir()
        contents = _contents(_varied_model(preset.family))
        write_keras(contents, path, preset.dtype, preset.max_shard_bytes)
        jobs.append(
            {"function": "read", "folder": str(path), "arrays": f"{path}.npz", "seed": 6},
        )
        jobs.append(
            {
                "function": "generate",
                "folder": str(path),
                "arrays": f"{path} answer.npz",
                "image": str(folder / "image.npy"),
                "prompt": PROMPT,
                "length": LENGTH,
            }
        )
    (folder / "jobs.json").write_text(json.dumps(jobs))
    program = Path(__file__).with_name("keras_hub_reference.py")
    assert PYTHON is not None
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [PYTHON, str(program), str(folder / "jobs.json")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", [name for name in THEIRS if name != "int8"])
def test_a_preset_of_keras_hub_gives_the_same_outputs_here(name: str, folder: Path) -> None:
    model = load_model(folder / name, weights="float32")
    _check_outputs(model, folder / f"{name}.npz")


@pytest.mark.parametrize("name", OURS)
def test_keras_hub_gives_the_same_outputs_for_our_preset(name: str, folder: Path) -> None:
    model = load_model(folder / f"our {name}", weights="float32")
    _check_outputs(model, folder / f"our {name}.npz")


def test_int8_weights_of_keras_hub_are_within_half_a_step_of_those_before(folder: Path) -> None:
    num_rounded = 0
    with open_keras(folder / "int8") as quantized, open_keras(folder / "int8 before") as before:
        for name, rows in before.contents.parameters.items():
            values = read_all(rows)
            difference = (read_all(quantized.contents.parameters[name]) - values).abs()
            if difference.any():
                num_rounded += 1
                assert (difference <= 0.51 / 127 * values.abs().amax(dim=1, keepdim=True)).all()
    assert num_rounded == 2 + 1 + 2 * 6 + 3 * 7  # tables, projector, layers


@pytest.mark.parametrize("name", OURS)
def test_keras_hub_answers_with_our_preset_as_this_package_does(name: str, folder: Path) -> None:
    arrays = np.load(folder / f"our {name} answer.npz")
    assert arrays["tokens"].tolist() == PROMPT_IDS
    prompt = arrays["prepared_ids"][:, : int(arrays["num_prepared"])]
    assert prompt.tolist() == [[1, *PROMPT_IDS]]
    model = load_model(folder / f"our {name}", weights="float32")
    inputs = _inputs(model, torch.tensor(arrays["pixels"]), torch.tensor(prompt))
    (row,) = generate(model, inputs, max_new_tokens=LENGTH - prompt.shape[1], eos_id=-1)
    answer = arrays["answered_ids"][0, prompt.shape[1] :].tolist()
    assert list(row.token_ids) == answer
    assert len(set(answer)) > 2


@pytest.mark.parametrize("name", OURS)
def test_keras_hub_prepares_images_with_our_preset_as_this_package_does(
    name: str, folder: Path
) -> None:
    theirs = torch.tensor(np.load(folder / f"our {name} answer.npz")["pixels"])[0].permute(2, 0, 1)
    image = Image.fromarray(np.load(folder / "image.npy"))
    resolution = theirs.shape[1]
    transform = ImageTransform(source_wh=image.size, resolution=resolution)
    ours = torch.from_numpy(pixel_array(image, transform))
    # We round to whole brightness levels, which are 1 / 127.5 apart, after each direction.
    assert (ours - theirs.clamp(-1, 1)).abs().max() < 2 / 127.5


class _Rows:
    def __init__(self, name: str, values: Tensor) -> None:
        self.name, self.shape, self.dtype = name, tuple(values.shape), values.dtype
        self._values = values

    def read(self, start: int, end: int) -> Tensor:
        return self._values[start:end]


def _contents(model: PaliGemma) -> Contents:
    rows = {name: _Rows(name, values.detach()) for name, values in model.named_parameters()}
    return Contents(config=model.config, parameters=rows, tokenizer=VOCABULARY.read_bytes())


def _varied_model(family: Family) -> PaliGemma:
    """A model that says something else at every step, with the vocabulary of the tokenizer."""
    model = PaliGemma(keras_config(family))
    randomize(model, seed=3)
    with torch.no_grad():
        model.decoder.embedding.weight.mul_(0.05)
        model.decoder.final_norm.weight.add_(20.0)
    return model


def keras_config(family: Family) -> PaliGemmaConfig:
    """A tiny config with the values that Keras has in its code."""
    config = tiny_config(family, rope_theta=10_000.0, rms_norm_eps=1e-6, vocab_size=11)
    decoder = replace(config.decoder, query_scale=config.decoder.head_dim**-0.5)
    return replace(config, vision=replace(config.vision, layer_norm_eps=1e-6), decoder=decoder)


def _inputs(
    model: PaliGemma, images: Tensor, ids: Tensor, response: Tensor | None = None
) -> ModelInputs:
    num_rows, num_image_tokens = len(ids), model.config.vision.num_image_tokens
    before = torch.zeros(num_rows, num_image_tokens, dtype=torch.int64)
    token_ids = torch.cat([before, ids.long()], dim=1)
    is_image = torch.zeros_like(token_ids, dtype=torch.bool)
    is_image[:, :num_image_tokens] = True
    response = torch.zeros_like(ids) if response is None else response
    return ModelInputs(
        token_ids=token_ids,
        input_mask=torch.ones_like(is_image),
        mask_ar=torch.cat([before, response.long()], dim=1).bool(),
        image_mask=is_image,
        pixel_values=images.permute(0, 3, 1, 2).contiguous(),
        image_index=tuple((i,) for i in range(num_rows)),
    )


def _check_outputs(model: PaliGemma, path: Path) -> None:
    arrays: Mapping[str, Any] = np.load(path)
    inputs = _inputs(
        model, *(torch.tensor(arrays[key]) for key in ("images", "token_ids", "response_mask"))
    )
    with torch.inference_mode():
        hidden, logits = model.hidden_states(inputs), model(inputs)
    for ours, theirs in ((hidden, arrays["hidden"]), (logits, arrays["logits"])):
        theirs = torch.tensor(theirs)
        assert theirs.abs().max() > 0.5
        assert (ours - theirs).abs().max() < FLOAT32_TOLERANCE * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("name", OURS)
def test_our_preset_holds_the_weights_bit_by_bit(name: str, folder: Path) -> None:
    model = _varied_model(OURS[name].family)
    with open_keras(folder / f"our {name}") as preset:
        for parameter, values in model.named_parameters():
            read = read_all(preset.contents.parameters[parameter])
            assert torch.equal(read, values.to(OURS[name].dtype)), parameter
