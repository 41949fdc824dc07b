"""Decide in which form and dtype a model's weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from paligemma.checkpoints.bitsandbytes import is_nf4
from paligemma.checkpoints.opened import OpenCheckpoint
from paligemma.checkpoints.rows import StoredRows
from paligemma.config import count_parameters
from paligemma.errors import OptionError, counted
from paligemma.fast.device import computes_correctly
from paligemma.fast.float32 import runs_packed
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
    is_small,
)

_NO_KERNELS_NOTE = (
    "Packed bfloat16 weights need compiled kernels, and there are none for {}. The model runs as "
    "plain bfloat16 modules, with the same results but slower. `paligemma doctor` says why."
)


@dataclass(frozen=True, kw_only=True)
class WeightForm:
    """The form of a model's weights, chosen from the option, the files and the device."""

    dtype: torch.dtype
    is_packed: bool = False
    uses_tiles: bool = False  # plain float32 parameters, which AMX tiles multiply if there are any
    quantization: Quantization | None = None  # the format of packed weights
    frozen_base: FrozenFormat | None = None
    keeps_nf4: bool = False  # a frozen base in "nf4" holds the bits of the files
    merges_adapter: bool = True
    compiles_for_cuda: bool = False  # load plain modules and compile them on the device
    note: str | None = None


def choose_form(weights: Weights, stored: OpenCheckpoint, device: torch.device) -> WeightForm:
    """Return the form for the option `weights=`.

    Raises OptionError for unknown names and for a quantization that the files do not support.
    """
    form = _choose_form(checked_weights(weights), stored, device)
    note = _note_on_other_schemes(stored, form)
    return form if note is None else replace(form, note=" ".join(filter(None, (note, form.note))))


def _choose_form(weights: Weights, stored: OpenCheckpoint, device: torch.device) -> WeightForm:
    has_nf4 = any(is_nf4(rows) for rows in _decoder_linears(stored))
    if weights == "stored" and has_nf4:
        weights = Trainable("nf4", dtype="stored")
    takes_fastest = weights in ("auto", "float32")
    if isinstance(weights, str):
        weights = _named_form(weights, stored, device)
    if isinstance(weights, Plain):
        dtype = choose_dtype(weights.dtype, stored, device)
        is_fast = takes_fastest and dtype == torch.float32 and device.type == "cpu"
        is_packed = is_fast and runs_packed(stored.contents.config)
        return WeightForm(dtype=dtype, is_packed=is_packed, uses_tiles=is_fast and not is_packed)
    if isinstance(weights, Trainable):
        return WeightForm(
            dtype=choose_dtype(weights.dtype, stored, device),
            frozen_base=weights.base,
            keeps_nf4=weights.base == "nf4" and has_nf4,
            merges_adapter=weights.merge_adapter,
        )
    return _packed_form(weights, stored, device)


def _decoder_linears(stored: OpenCheckpoint) -> Iterator[StoredRows]:
    for name, rows in stored.contents.parameters.items():
        if name.startswith("decoder.blocks.") and name.endswith("_proj.weight"):
            yield rows


def _note_on_other_schemes(stored: OpenCheckpoint, form: WeightForm) -> str | None:
    """Say what becomes of weights that another tool quantized."""
    schemes = stored.schemes
    if not schemes:
        return None
    names = " and ".join(f"{scheme} ({counted(n, 'weight')})" for scheme, n in schemes.items())
    if form.keeps_nf4:
        return (
            f"Stored as {names}: the decoder keeps these bits, and each weight is dequantized "
            "for every product, which needs little memory but is slow. The others are dequantized."
        )
    format_name = form.frozen_base or form.quantization
    if format_name is not None:
        return (
            f"Stored as {names}, and quantized again to {format_name}, which rounds twice. The "
            "original model quantized once is more accurate."
        )
    num_bytes = count_parameters(stored.contents.config) * form.dtype.itemsize
    on_disk = sum(path.stat().st_size for path in stored.weight_files)
    return (
        f"Stored as {names}, and dequantized to {str(form.dtype).removeprefix('torch.')}: "
        f"{num_bytes / 1e9:.2g} GB in memory instead of {on_disk / 1e9:.2g} GB in the files. "
        "weights='int8' or 'int4' (--quantization) needs less memory, and rounds twice."
    )


def choose_dtype(name: DtypeName, stored: OpenCheckpoint, device: torch.device) -> torch.dtype:
    """Return the dtype of plain weights."""
    if name == "stored":
        return stored.dtype
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if stored.contents.quantization is not None:  # the weights that are not quantized are bfloat16
        return torch.bfloat16
    if is_small(stored.contents.config):
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
