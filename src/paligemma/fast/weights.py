"""How a model's weights are kept in memory: plain, packed for speed, or ready for training.

Small frozen values that `load` and `load_model` take; this module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from paligemma.errors import OptionError

Quantization = Literal["int8", "int4"]
"""The formats that the decoder's large weights can be quantized to."""

FrozenFormat = Literal["nf4", "int8"]
"""The formats of a frozen base that adapters are trained on."""

DtypeName = Literal["auto", "stored", "float32", "bfloat16", "float16"]
"""A dtype of plain weights. "auto": bfloat16 for large models where the device computes it well,
else float32. "stored": the dtype in the files."""

WeightsName = Literal["auto", "stored", "float32", "bfloat16", "float16", "int8", "int4"]
"""Shorthand for the usual choices. A dtype or quantization in its fastest form on the device."""


@dataclass(frozen=True)
class Plain:
    """Ordinary torch modules. Quantized checkpoints are widened."""

    dtype: DtypeName = "auto"

    def __post_init__(self) -> None:
        _check("dtype", self.dtype, DtypeName)


@dataclass(frozen=True)
class Packed:
    """bfloat16 weights laid out for speed; with `quantization` the decoder's are int8 or int4.

    On the CPU they are packed for the compiled kernels. On a CUDA device bfloat16 weights run
    through compiled, recorded steps, after a comparison with the plain modules on that device.
    None keeps the format of the checkpoint. Packed weights cannot be trained.
    """

    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None:
            _check("quantization", self.quantization, Quantization)


@dataclass(frozen=True)
class Trainable:
    """Plain modules for LoRA; a given adapter stays separate from the weights, to be trained.

    `base` keeps the decoder's linear layers frozen in "nf4" or "int8" (QLoRA). With
    `merge_adapter=True` the given adapter becomes part of the base, for a new one on top.
    """

    base: FrozenFormat | None = None
    dtype: DtypeName = "auto"
    merge_adapter: bool = False

    def __post_init__(self) -> None:
        if self.base is not None:
            _check("base", self.base, FrozenFormat)
        _check("dtype", self.dtype, DtypeName)


Weights = Plain | Packed | Trainable | WeightsName
"""What the `weights=` option takes."""


def check_weights(weights: object) -> None:
    """Raise OptionError for anything that `weights=` does not take."""
    if not isinstance(weights, Plain | Packed | Trainable):
        _check("weights", weights, WeightsName)


def weights_name(
    dtype: DtypeName = "auto", quantization: Quantization | None = None
) -> WeightsName:
    """The one choice that a dtype and a quantization make together.

    >>> weights_name("bfloat16", "int4")
    'int4'

    Raises OptionError when they contradict each other.
    """
    _check("dtype", dtype, DtypeName)
    if quantization is None:
        return dtype
    _check("quantization", quantization, Quantization)
    if dtype not in ("auto", "bfloat16"):
        raise OptionError(
            f"quantization is {quantization!r} and dtype is {dtype!r}, but the weights that are "
            "not quantized are always bfloat16. Leave one of the two out."
        )
    return quantization


def _check(name: str, value: object, names: object) -> None:
    if value not in get_args(names):
        choices = ", ".join(repr(choice) for choice in get_args(names))
        raise OptionError(f"{name} is {value!r}; it must be one of {choices}.")
