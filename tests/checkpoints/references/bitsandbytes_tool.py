"""Quantize with transformers and bitsandbytes, or dequantize with bitsandbytes.

    python bitsandbytes_tool.py quantize FOLDER OUT {nf4,fp4,nf4dq,int8} DTYPE
    python bitsandbytes_tool.py dequantize FOLDER OUT.safetensors

Runs in an environment of its own (the extra `references`); imports nothing of the package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def quantize(folder: str, out: str, kind: str, dtype: str) -> None:
    from transformers import BitsAndBytesConfig, PaliGemmaForConditionalGeneration

    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind.removesuffix("dq"),
            bnb_4bit_use_double_quant=kind.endswith("dq"),
        )
    model = PaliGemmaForConditionalGeneration.from_pretrained(
        folder, quantization_config=config, dtype=getattr(torch, dtype), device_map="cpu"
    )
    model.save_pretrained(out)


def dequantize(folder: str, out: str) -> None:
    from bitsandbytes import functional

    tensors: dict[str, torch.Tensor] = {}
    for path in Path(folder).glob("*.safetensors"):
        tensors |= load_file(path)
    weights = {}
    for name, tensor in tensors.items():
        state = {
            key.removeprefix(name + "."): value
            for key, value in tensors.items()
            if key.startswith(name + ".")
        }
        scales = tensors.get(name.removesuffix("weight") + "SCB")
        if state:
            state = functional.QuantState.from_dict(state, device=torch.device("cpu"))
            weights[name] = functional.dequantize_4bit(tensor, state).contiguous()
        elif scales is not None and name.endswith(".weight"):
            weights[name] = functional.int8_vectorwise_dequant(tensor, scales)
    save_file(weights, out)


if __name__ == "__main__":
    tools: dict[str, Callable[..., None]] = {"quantize": quantize, "dequantize": dequantize}
    tools[sys.argv[1]](*sys.argv[2:])
