"""Run keras-hub as a reference: `python keras_hub_reference.py JOBS.json`.

A program of its own, because keras-hub and its dependencies may be in another environment. Each
job names its function here and its arguments. Arrays go to .npz files.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_hub
import numpy as np


def write(
    folder: str,
    settings: dict[str, Any],
    seed: int,
    arrays: str,
    quantize: str | None = None,
    lora_rank: int | None = None,
    shard_gigabytes: float | None = None,
) -> None:
    """Save a random backbone as a preset, with its float32 outputs for random inputs.

    With `quantize`, a folder of that name plus " before" has the weights before.
    """
    backbone = keras_hub.models.PaliGemmaBackbone(**settings)
    if lora_rank:
        backbone.enable_lora(lora_rank)
    rng = np.random.default_rng(seed)
    for variable in backbone.weights:
        if "seed" not in variable.path:
            fan_in = variable.shape[0] if len(variable.shape) > 1 else 4
            variable.assign(rng.normal(size=variable.shape) / np.sqrt(fan_in))
    inputs = _random_inputs(rng, settings["image_size"], settings["vocabulary_size"])
    if quantize:
        backbone.save_to_preset(f"{folder} before")
        backbone.quantize(quantize)
    backbone.save_to_preset(folder, max_shard_size=shard_gigabytes or 10)
    if not quantize:
        if settings.get("dtype", "float32") != "float32":  # compute in float32 with these weights
            backbone = keras_hub.models.Backbone.from_preset(folder)
        _save(arrays, inputs | _outputs(backbone, inputs))


def read(folder: str, arrays: str, seed: int) -> None:
    """Load a backbone from a preset and save its outputs for random inputs."""
    backbone = keras_hub.models.Backbone.from_preset(folder)
    rng = np.random.default_rng(seed)
    inputs = _random_inputs(rng, backbone.image_size, backbone.vocabulary_size)
    _save(arrays, inputs | _outputs(backbone, inputs))


def generate(folder: str, arrays: str, image: str, prompt: str, length: int) -> None:
    """Load a preset as a whole and answer a prompt about an image: uint8[H, W, 3] in a .npy."""
    model = keras_hub.models.CausalLM.from_preset(folder)
    model.compile(sampler="greedy")
    tokens = keras_hub.models.Tokenizer.from_preset(folder)(prompt)
    batch = {"images": np.load(image)[None], "prompts": [prompt]}
    prepared = model.preprocessor.generate_preprocess(batch, sequence_length=length)
    model.preprocessor = None
    answered = model.generate(prepared, stop_token_ids=None)
    outputs = {
        "tokens": tokens,
        "prepared_ids": prepared["token_ids"],
        "num_prepared": np.asarray(prepared["padding_mask"]).sum(),
        "pixels": prepared["images"],
        "answered_ids": answered["token_ids"],
    }
    _save(arrays, outputs)


def _save(path: str, arrays: dict[str, Any]) -> None:
    values: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(path, **values)


def _random_inputs(
    rng: np.random.Generator, image_size: int, vocabulary_size: int
) -> dict[str, np.ndarray]:
    ids = rng.integers(4, vocabulary_size, size=(2, 7))
    response = np.zeros_like(ids)
    response[:, 4:] = 1
    images = rng.uniform(-1, 1, size=(2, image_size, image_size, 3)).astype("float32")
    return {"images": images, "token_ids": ids.astype("int32"), "response_mask": response}


def _outputs(backbone: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    padding = np.ones_like(inputs["token_ids"])
    hidden = backbone({**inputs, "padding_mask": padding})
    logits = backbone.token_embedding(hidden, reverse=True)
    return {"hidden": np.asarray(hidden), "logits": np.asarray(logits)}


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        function: Any = {"write": write, "read": read, "generate": generate}[job.pop("function")]
        function(**job)
        print("done", flush=True)
