"""Recognize weights that are never read, and say why and what to do instead."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

_QUANTIZE_HERE = (
    "Load the original model, quantized here with weights='int8' or 'int4' (paligemma quantize "
    "MODEL OUT --to int4 saves it)"
)
_DEQUANTIZE = "or call dequantize() and save_pretrained() in transformers and load that folder."

_METHODS = {
    "gptq": "GPTQ, whose integers depend on an order of inputs of their own",
    "awq": "AWQ, whose integers are interleaved for certain GPU kernels",
    "compressed-tensors": "compressed-tensors (llm-compressor, vLLM), a family of many layouts",
    "torchao": "torchao, whose tensors are objects of Python classes that differ by version",
    "quanto": "quanto, whose layout depends on its version",
    "fp8": "scaled float8, which has one scale per block or tensor",
    "hqq": "HQQ, whose layout depends on its version",
}
"""Quantization methods by their name in `quantization_config.quant_method`."""

_TENSOR_SIGNS = (
    (".g_idx", "gptq"),
    (".qweight", "awq"),
    (".weight_packed", "compressed-tensors"),
    (".weight_shape", "compressed-tensors"),
    (".weight_zero_point", "compressed-tensors"),
    (".weight_qdata", "torchao"),
    (".weight:_data", "torchao"),
    (".weight._data", "quanto"),
    (".weight._scale", "quanto"),
    (".weight_scale_inv", "fp8"),
    (".weight_scale", "compressed-tensors"),
    (".W_q", "hqq"),
)
_ALIASES = {
    "fbgemm_fp8": "fp8",
    "finegrained_fp8": "fp8",
    "auto-round": "gptq",
    "gptqmodel": "gptq",
}


def why_method(where: object, method: object) -> str:
    """Return the message for weights that another tool quantized."""
    name = str(method).lower()
    what = _METHODS.get(_ALIASES.get(name, name), f"{str(method)[:40]!r}")
    return (
        f"{where}: these weights are quantized by {what}. Only bitsandbytes (nf4, fp4, int8), MLX "
        f"(affine groups) and this package's own formats are read. {_QUANTIZE_HERE}, {_DEQUANTIZE}"
    )


def method_of(dtype_codes: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the method that quantized tensors, and a tensor that shows it; None if none did.

    `dtype_codes` maps the names of all tensors to their dtypes.

    >>> method_of({"layers.0.mlp.up_proj.qweight": "I32"})
    ('awq', 'layers.0.mlp.up_proj.qweight')
    """
    for sign, method in _TENSOR_SIGNS:
        for name in dtype_codes:
            if name.endswith(sign):
                return method, name
    return next(
        (("fp8", name) for name, code in dtype_codes.items() if code.startswith("F8_")), None
    )


def why_file(path: Path) -> str | None:
    """Return the message for a file that is never read, by its content; None for other files."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
        has_pickle = start[:2] == b"PK" and _contains_pickle(path)
    except OSError:
        return None
    if start == b"GGUF":
        return (
            f"{path} is a GGUF file. llama.cpp, whose format it is, does not support PaliGemma, "
            "and files of its forks differ in names and norms, so they are not read. Use the model "
            "that it was converted from, quantized here with weights='int4'."
        )
    is_pickle = len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5
    if is_pickle or has_pickle:
        return (
            f"{path} is a pickle, as torch.save writes. Pickles can run code when opened, so they "
            "are never read. If you trust the file, load it in the library that wrote it and save "
            "it as safetensors, for example with transformers' save_pretrained."
        )
    return None


def _contains_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
