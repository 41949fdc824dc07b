"""Which weights of a quantized checkpoint are quantized, and what its config says about it.

    language_model.model.layers.0.mlp.up_proj.weight_q       uint8, see `native.packing.to_stored`
                                             .weight_scales  bfloat16[N, groups]: weight = q * scale

Rows stand as in the plain weight, whatever the kernels make of them. Knows no files.
"""

from __future__ import annotations

from typing import Any

from paligemma.errors import CheckpointError
from paligemma.fast.packing import INT4, INT8, WeightFormat
from paligemma.fast.quantization import Quantization

Q_SUFFIX, SCALES_SUFFIX = "_q", "_scales"

_VERSION = 1
_METHOD = "round to nearest; int4: of several scales the one with the least squared error"
_MLP: dict[Quantization, WeightFormat] = {"int8": INT8, "int4": INT4}
_ATTENTION = _TABLE = INT8


def format_of(parameter: str, quantization: Quantization | None) -> WeightFormat | None:
    """The format of a parameter of the plain model, or None for one that is not quantized.

    >>> format_of("decoder.blocks.0.mlp.up_proj.weight", "int4").name
    'int4'
    """
    if quantization is None:
        return None
    if parameter == "decoder.embedding.weight":
        return _TABLE
    is_linear = parameter.startswith("decoder.blocks.") and parameter.endswith("_proj.weight")
    if not is_linear:
        return None
    return _ATTENTION if ".attention." in parameter else _MLP[quantization]


def q_shape(shape: tuple[int, ...], weight_format: WeightFormat) -> tuple[int, int]:
    """Of the stored bytes of a weight [N, K]."""
    num_rows, num_inputs = shape
    return num_rows, weight_format.padded_inputs(num_inputs) * weight_format.bits // 8


def scales_shape(shape: tuple[int, ...], weight_format: WeightFormat) -> tuple[int, int]:
    num_rows, num_inputs = shape
    return num_rows, weight_format.padded_inputs(num_inputs) // weight_format.group_size


def describe(quantization: Quantization) -> dict[str, Any]:
    """What `config.json` says about it, under "quantization"."""
    mlp = _MLP[quantization]
    return {
        "version": _VERSION,
        "format": quantization,
        "attention": {"bits": _ATTENTION.bits, "group_size": _ATTENTION.group_size},
        "mlp": {"bits": mlp.bits, "group_size": mlp.group_size},
        "embedding": {"bits": _TABLE.bits, "group_size": _TABLE.group_size},
        "method": _METHOD,
    }


def read_description(path: object, content: object) -> Quantization | None:
    """The inverse of `describe`; None stands for a checkpoint that is not quantized.

    Raises CheckpointError, naming the file, for anything that `describe` does not write; the
    method alone may be another.
    """
    if content is None:
        return None
    for quantization in _MLP:
        expected = describe(quantization)
        if isinstance(content, dict) and {**content, "method": _METHOD} == expected:
            return quantization
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "method"}
    found = repr(content)
    kinds = " and ".join(f"{name} in groups of {f.group_size}" for name, f in _MLP.items())
    raise CheckpointError(
        f"{path}: quantization is {found if len(found) <= 200 else found[:197] + '...'}. This "
        f"package reads version {_VERSION} of {kinds}, with a table of {_TABLE.name}. Quantize the "
        "original again: paligemma quantize MODEL OUT --to int8."
    )
