"""Quantized weights on CUDA devices, by torchao and bitsandbytes.

Only the decoder's linear layers are quantized; the embedding table, norms and the vision encoder
stay as they are. `fast/quantization.py` is for the CPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn

from paligemma.errors import MissingExtraError, OptionError
from paligemma.model.paligemma import PaliGemma

CudaQuantization = Literal["int8", "int4", "fp8", "nf4", "int8-outliers"]

_FP8_CAPABILITY = (8, 9)  # Ada and later
_GROUP_SIZE = 128


def quantize_for_cuda(model: PaliGemma, method: CudaQuantization) -> None:
    """Quantize the decoder's linear layers in place.

    torchao: "int8" and "int4" weights, "fp8" weights and inputs; bitsandbytes: "nf4" weights and
    "int8-outliers" (LLM.int8, arXiv 2208.07339).

    Raises OptionError for an unknown method, for a model that is not bfloat16 on a CUDA device, and
    for a device that does not support the format; MissingExtraError without the library.
    """
    if method not in get_args(CudaQuantization):
        raise OptionError(f"method is {method!r}; it must be one of {get_args(CudaQuantization)}.")
    if model.device.type != "cuda" or model.dtype != torch.bfloat16:
        raise OptionError(
            f"The model is {model.dtype} on {model.device}; {method!r} needs bfloat16 on a CUDA "
            "device. Load it with device='cuda' and weights=Plain('bfloat16')."
        )
    capability = torch.cuda.get_device_capability(model.device)
    if method == "fp8" and capability < _FP8_CAPABILITY:
        raise OptionError(
            f"This device has compute capability {capability[0]}.{capability[1]}; 'fp8' needs 8.9 "
            "(Ada, Hopper or later). Use 'int8'."
        )
    if method in ("nf4", "int8-outliers"):
        _replace_linears(model.decoder.blocks, bitsandbytes_layer(method))
    else:
        _library("torchao").quantize_(model.decoder.blocks, torchao_config(method))


def torchao_config(method: CudaQuantization) -> Any:
    """Return the config for torchao's `quantize_`."""
    torchao = _library("torchao")
    plain = {"set_inductor_config": False}  # else it would change the compilation of everything
    if method == "int8":
        return torchao.Int8WeightOnlyConfig(**plain)
    if method == "int4":
        # The format of torch's own kernel; torchao's other formats need another library.
        return torchao.Int4WeightOnlyConfig(
            group_size=_GROUP_SIZE, int4_packing_format="tile_packed_to_4d", **plain
        )
    return torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow(), **plain)


def bitsandbytes_layer(method: CudaQuantization) -> Callable[[nn.Linear], nn.Module]:
    """Return a function that converts a linear layer to bitsandbytes' format on its device."""
    bnb = _library("bitsandbytes")

    def convert(linear: nn.Linear) -> nn.Module:
        # bitsandbytes quantizes weights while copying them from the CPU to the device.
        weight, device = linear.weight.detach().cpu(), linear.weight.device
        sizes = (linear.in_features, linear.out_features)
        layer: nn.Module
        if method == "nf4":
            layer = bnb.nn.Linear4bit(
                *sizes, bias=False, compute_dtype=weight.dtype, quant_type="nf4", device="meta"
            )
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        else:
            layer = bnb.nn.Linear8bitLt(
                *sizes, bias=False, has_fp16_weights=False, threshold=6.0, device="meta"
            )
            layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        return layer.to(device)

    return convert


def _replace_linears(parent: nn.Module, convert: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in parent.named_children():
        if isinstance(child, nn.Linear):
            setattr(parent, name, convert(child))
        else:
            _replace_linears(child, convert)


def _library(name: Literal["torchao", "bitsandbytes"]) -> Any:
    module = "torchao.quantization" if name == "torchao" else name
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(name, name, "This quantization") from error
