"""The format of quantized checkpoints: which weights are quantized, and the entry in the config.

    language_model.model.layers.0.mlp.up_proj.weight_q       uint8, see `quantization.to_stored`
                                             .weight_scales  bfloat16[N, groups]: weight = q * scale

Rows have the order of the plain weight, independent of the layout in memory.
"""

from __future__ import annotations

from typing import Any, cast, get_args

from paligemma.errors import CheckpointError
from paligemma.fast.quantization import LAYER_FORMATS, WeightFormat
from paligemma.fast.weights import Quantization

Q_SUFFIX, SCALES_SUFFIX = "_q", "_scales"

_VERSION = 1
_METHOD = "round to nearest; int4: of several scales the one with the least squared error"


def format_of(parameter: str, quantization: Quantization | None) -> WeightFormat | None:
    """Return the format of a parameter of the plain model; None if it is not quantized.

    >>> format_of("decoder.blocks.0.mlp.up_proj.weight", "int4").name
    'int4'
    """
    if quantization is None:
        return None
    formats = LAYER_FORMATS[quantization]
    if parameter == "decoder.embedding.weight":
        return formats.table
    is_linear = parameter.startswith("decoder.blocks.") and parameter.endswith("_proj.weight")
    if not is_linear:
        return None
    return formats.attention if ".attention." in parameter else formats.mlp


def q_shape(shape: tuple[int, ...], weight_format: WeightFormat) -> tuple[int, int]:
    """Return the shape of the stored bytes of a weight [N, K]."""
    num_rows, num_inputs = shape
    return num_rows, weight_format.padded_inputs(num_inputs) * weight_format.bits // 8


def scales_shape(shape: tuple[int, ...], weight_format: WeightFormat) -> tuple[int, int]:
    num_rows, num_inputs = shape
    return num_rows, weight_format.padded_inputs(num_inputs) // weight_format.group_size


def describe(quantization: Quantization) -> dict[str, Any]:
    """Return the entry "quantization" of `config.json`."""
    formats = LAYER_FORMATS[quantization]
    return {
        "version": _VERSION,
        "format": quantization,
        "attention": _size_of(formats.attention),
        "mlp": _size_of(formats.mlp),
        "embedding": _size_of(formats.table),
        "method": _METHOD,
    }


def _size_of(weight_format: WeightFormat) -> dict[str, int]:
    return {"bits": weight_format.bits, "group_size": weight_format.group_size}


def read_description(path: object, content: object) -> Quantization | None:
    """The inverse of `describe`; None means that the checkpoint is not quantized.

    Raises CheckpointError, which names the file, for anything that `describe` does not write,
    except for another "method".
    """
    if content is None:
        return None
    quantizations = get_args(Quantization)
    for quantization in quantizations:
        expected = describe(quantization)
        if isinstance(content, dict) and {**content, "method": _METHOD} == expected:
            return cast("Quantization", quantization)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "method"}
    shown = repr(content)
    kinds = " and ".join(
        f"{name} in groups of {LAYER_FORMATS[name].mlp.group_size}" for name in quantizations
    )
    raise CheckpointError(
        f"{path}: quantization is {shown if len(shown) <= 200 else shown[:197] + '...'}; expected "
        f"version {_VERSION} of {kinds}, with an int8 embedding table. Quantize the original "
        "again: paligemma quantize MODEL OUT --to int8."
    )
