"""The forms of a model's weights in memory: plain, packed for speed, or ready for training.

These are the values of the option `weights=`. This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from paligemma.config import PaliGemmaConfig, count_parameters
from paligemma.errors import OptionError, check_choice

Quantization = Literal["int8", "int4"]
"""The formats that the decoder's large weights can be quantized to."""

FrozenFormat = Literal["nf4", "int8"]
"""The formats of a frozen base that adapters are trained on."""

DtypeName = Literal["auto", "stored", "float32", "bfloat16", "float16"]
"""A dtype of plain weights. "auto": bfloat16 for large models where the device computes it well,
else float32. "stored": the dtype in the files."""

WeightsName = Literal["auto", "stored", "float32", "bfloat16", "float16", "int8", "int4"]
"""Shorthands: a dtype or quantization, in its fastest form on the device."""


_OTHER_NAMES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}


def usual_name(value: Any) -> Any:
    """Return the name of a dtype that was given in another way; other values as they are.

    >>> usual_name("bf16"), usual_name("FP16"), usual_name("int4")
    ('bfloat16', 'float16', 'int4')
    """
    is_dtype = type(value).__module__ == "torch" and type(value).__name__ == "dtype"
    if not isinstance(value, str) and not is_dtype:
        return value
    name = str(value).lower().removeprefix("torch.")
    return _OTHER_NAMES.get(name, name)


@dataclass(frozen=True)
class Plain:
    """Plain torch modules. Quantized checkpoints are dequantized."""

    dtype: DtypeName = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", usual_name(self.dtype))
        check_choice("dtype", self.dtype, DtypeName)


@dataclass(frozen=True)
class Packed:
    """bfloat16 weights laid out for speed; `quantization` makes the decoder's int8 or int4.

    On the CPU, weights are packed for the compiled kernels. On a CUDA device, bfloat16 weights run
    in compiled modules and CUDA graphs, after a comparison with the plain modules on that device.
    `quantization=None` keeps the format of the checkpoint. Packed weights cannot be trained.
    """

    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None:
            check_choice("quantization", self.quantization, Quantization)


@dataclass(frozen=True)
class Trainable:
    """Plain modules for training LoRA; a loaded adapter stays separate, to be trained further.

    `base` quantizes the decoder's frozen linear layers to "nf4" or "int8" (QLoRA).
    `merge_adapter=True` merges the loaded adapter into the base, so that a new one can be added.
    """

    base: FrozenFormat | None = None
    dtype: DtypeName = "auto"
    merge_adapter: bool = False

    def __post_init__(self) -> None:
        if self.base is not None:
            check_choice("base", self.base, FrozenFormat)
        object.__setattr__(self, "dtype", usual_name(self.dtype))
        check_choice("dtype", self.dtype, DtypeName)


_LARGE = 1_000_000_000  # parameters


def is_small(config: PaliGemmaConfig) -> bool:
    """Return whether a model is fast in float32, in which tokens do not depend on the batch."""
    return count_parameters(config) <= _LARGE


Weights = Plain | Packed | Trainable | WeightsName
"""What the `weights=` option takes."""


def checked_weights(weights: Any) -> Weights:
    """Return a value of `weights=`, under its usual name. Raises OptionError for an invalid one."""
    if isinstance(weights, Plain | Packed | Trainable):
        return weights
    name: WeightsName = usual_name(weights)
    check_choice("weights", name, WeightsName)
    return name


def weights_name(
    dtype: DtypeName = "auto", quantization: Quantization | None = None
) -> WeightsName:
    """Combine a dtype and a quantization into one name.

    >>> weights_name("bfloat16", "int4")
    'int4'

    Raises OptionError when they contradict each other.
    """
    dtype = usual_name(dtype)
    check_choice("dtype", dtype, DtypeName)
    if quantization is None:
        return dtype
    check_choice("quantization", quantization, Quantization)
    if dtype not in ("auto", "bfloat16"):
        raise OptionError(
            f"quantization is {quantization!r} and dtype is {dtype!r}, but the weights that are "
            "not quantized are always bfloat16. Leave one of the two out."
        )
    return quantization
