"""Decide in which form and dtype a model's weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paligemma.checkpoints.opened import OpenCheckpoint
from paligemma.config import count_parameters
from paligemma.errors import OptionError
from paligemma.fast.device import computes_correctly
from paligemma.fast.kernels.library import kernels
from paligemma.fast.weights import (
    DtypeName,
    FrozenFormat,
    Packed,
    Plain,
    Quantization,
    Trainable,
    Weights,
    WeightsName,
    checked_weights,
)

_LARGE = 1_000_000_000  # parameters

_NO_KERNELS_NOTE = (
    "Packed bfloat16 weights need compiled kernels, and there are none for {}. The model runs as "
    "plain bfloat16 modules, with the same results but slower. `paligemma doctor` says why."
)


@dataclass(frozen=True, kw_only=True)
class WeightForm:
    """The form of a model's weights, chosen from the option, the files and the device."""

    dtype: torch.dtype
    is_packed: bool = False
    quantization: Quantization | None = None  # the format of packed weights
    frozen_base: FrozenFormat | None = None
    merges_adapter: bool = True
    compiles_for_cuda: bool = False  # load plain modules and compile them on the device
    note: str | None = None


def choose_form(weights: Weights, stored: OpenCheckpoint, device: torch.device) -> WeightForm:
    """Return the form for the option `weights=`.

    Raises OptionError for unknown names and for a quantization that the files do not support.
    """
    weights = checked_weights(weights)
    if isinstance(weights, str):
        weights = _named_form(weights, stored, device)
    if isinstance(weights, Plain):
        return WeightForm(dtype=choose_dtype(weights.dtype, stored, device))
    if isinstance(weights, Trainable):
        return WeightForm(
            dtype=choose_dtype(weights.dtype, stored, device),
            frozen_base=weights.base,
            merges_adapter=weights.merge_adapter,
        )
    return _packed_form(weights, stored, device)


def choose_dtype(name: DtypeName, stored: OpenCheckpoint, device: torch.device) -> torch.dtype:
    """Return the dtype of plain weights."""
    if name == "stored":
        return stored.dtype
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if stored.contents.quantization is not None:  # the weights that are not quantized are bfloat16
        return torch.bfloat16
    # A small model is fast anyway, and in float32 the tokens do not depend on the batch.
    if count_parameters(stored.contents.config) <= _LARGE:
        return torch.float32
    if device.type == "cuda":
        is_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        is_bfloat16 = computes_correctly(device, torch.bfloat16)
    else:
        is_bfloat16 = stored.is_all_bfloat16
    # Never float16: activations of the released models exceed its range.
    return torch.bfloat16 if is_bfloat16 else torch.float32


def _named_form(name: WeightsName, stored: OpenCheckpoint, device: torch.device) -> Plain | Packed:
    """Return the fastest form for a name. On CUDA only an explicit `Packed()` compiles."""
    if name == "int8" or name == "int4":
        return Packed(name)
    if stored.contents.quantization is not None and name in ("auto", "stored", "bfloat16"):
        return Packed()
    if name == "float32" or name == "float16" or name == "stored":
        return Plain(name)
    dtype = torch.bfloat16 if name == "bfloat16" else choose_dtype("auto", stored, device)
    if dtype == torch.bfloat16 and device.type == "cpu" and kernels() is not None:
        return Packed()
    return Plain("bfloat16" if dtype == torch.bfloat16 else "float32")


def _packed_form(weights: Packed, stored: OpenCheckpoint, device: torch.device) -> WeightForm:
    stored_format = stored.contents.quantization
    if stored_format is not None and weights.quantization not in (None, stored_format):
        raise OptionError(
            f"{stored.path} is quantized to {stored_format} and cannot be converted to "
            f"{weights.quantization}. Load the original checkpoint with "
            f"weights={weights.quantization!r}, or leave weights out."
        )
    quantization = weights.quantization or stored_format
    if quantization is not None:
        return WeightForm(dtype=torch.bfloat16, is_packed=True, quantization=quantization)
    if device.type == "cuda":
        return WeightForm(dtype=torch.bfloat16, compiles_for_cuda=True)
    if device.type != "cpu" or kernels() is None:
        return WeightForm(dtype=torch.bfloat16, note=_NO_KERNELS_NOTE.format(device.type.upper()))
    return WeightForm(dtype=torch.bfloat16, is_packed=True)
