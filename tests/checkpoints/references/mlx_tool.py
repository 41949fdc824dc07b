"""Run mlx-vlm's own reader, writer and model.

    python mlx_tool.py logits FOLDER INPUTS.npz OUT.npz     INPUTS: ids, pixels
    python mlx_tool.py quantize FOLDER OUT FORM...          FORM: BITS-GROUP_SIZE-DTYPE[-RECIPE]

For each form, writes OUT/FORM as mlx_vlm.convert does, and OUT/FORM.npz with all weights,
dequantized by MLX.

Runs in an environment of its own (the extra `references`); imports nothing of the package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_vlm.convert import mixed_quant_predicate_builder
from mlx_vlm.quant_utils import quantize_model
from mlx_vlm.utils import load_config, load_model, save_config, save_weights


def logits(folder: str, inputs: str, out: str) -> None:
    model = load_model(Path(folder))
    arrays = np.load(inputs)
    ids, pixels = mx.array(arrays["ids"]), mx.array(arrays["pixels"])
    result = model(ids, pixels, mx.ones(ids.shape, dtype=mx.int32))
    np.savez(out, logits=np.array(result.logits.astype(mx.float32)))


def quantize(folder: str, out: str, *forms: str) -> None:
    for form in forms:
        bits, group_size, dtype, *recipe = form.split("-")
        model = load_model(Path(folder))
        model.set_dtype(getattr(mx, dtype))
        config = load_config(Path(folder))
        if int(bits):
            predicate = None
            if recipe:
                predicate = mixed_quant_predicate_builder(recipe[0], model)
            model, config = quantize_model(
                model, config, int(group_size), int(bits), quant_predicate=predicate
            )
        save_weights(f"{out}/{form}", model)
        save_config(config, Path(out, form, "config.json"))
        arrays: dict[str, Any] = weights(Path(out, form))
        np.savez(f"{out}/{form}.npz", **arrays)


def weights(folder: Path) -> dict[str, np.ndarray]:
    model = load_model(folder)
    found = dict(tree_flatten(model.parameters()))
    for name, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            found[f"{name}.weight"] = mx.dequantize(
                module.weight,
                module.scales,
                module.biases,
                group_size=module.group_size,
                bits=module.bits,
            )
    return {name: np.array(weight.astype(mx.float32)) for name, weight in found.items()}


if __name__ == "__main__":
    tools: dict[str, Callable[..., None]] = {"logits": logits, "quantize": quantize}
    tools[sys.argv[1]](*sys.argv[2:])
