"""Match the tensors in a checkpoint's files with the parameters of our model.

Tensors that are missing, unknown, or of the wrong shape or dtype raise an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from paligemma.checkpoints.hf import (
    EMBEDDING,
    OUTPUT_LAYER,
    POSITIONS,
    is_pooling_head,
    to_released_name,
    to_released_names,
)
from paligemma.checkpoints.hf_config import StoredConfig
from paligemma.checkpoints.quantized import (
    Q_SUFFIX,
    SCALES_SUFFIX,
    format_of,
    q_shape,
    scales_shape,
)
from paligemma.checkpoints.reader import DTYPE_CODES, WeightFiles, shorten
from paligemma.checkpoints.rows import StoredRows
from paligemma.errors import CheckpointError
from paligemma.fast.quantization import WeightFormat, dequantize, from_stored

_MAX_LISTED = 10


class FileRows:
    """A parameter in a safetensors file."""

    def __init__(self, files: WeightFiles, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape
        self.dtype = DTYPE_CODES[files.tensors[name].dtype_code]
        self._files = files

    def read(self, start: int, end: int) -> Tensor:
        return self._files.read_rows(self.name, start, end)


class QuantizedFileRows:
    """A weight in one of our own quantized formats: its values and scales are two tensors."""

    dtype = torch.float32

    def __init__(
        self, files: WeightFiles, names: tuple[str, str], shape: tuple[int, ...], form: WeightFormat
    ) -> None:
        self.name, self.scales_name = names
        self.shape, self.weight_format = shape, form
        self._files = files

    def read_stored(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        values = self._files.read_rows(self.name, start, end)
        return values, self._files.read_rows(self.scales_name, start, end)

    def read(self, start: int, end: int) -> Tensor:
        values, scales = self.read_stored(start, end)
        q = from_stored(values, self.weight_format)[:, : self.shape[1]]
        return dequantize(q, scales, self.weight_format.group_size)


@dataclass(frozen=True, kw_only=True)
class _Expected:
    shape: tuple[int, ...]
    dtype_codes: tuple[str, ...]


def match_tensors(
    files: WeightFiles, shapes: Mapping[str, tuple[int, ...]], stored: StoredConfig
) -> dict[str, StoredRows]:
    """Map our parameter names to their rows in the files; checks everything except values.

    `shapes` are those of the plain model's parameters. Raises CheckpointError.
    """
    spellings, repeated = _spellings(files)
    expected = _expected_tensors(shapes, stored)
    output_layer = spellings.pop(OUTPUT_LAYER, None)
    problems = [
        *repeated,
        *_name_problems(spellings, expected),
        *_tensor_problems(files, spellings, expected, stored),
    ]
    if problems:
        raise CheckpointError(
            f"The tensors in {files.folder} do not fit its config.json. "
            + ". ".join(problems)
            + ". Weights and config must come from the same checkpoint."
        )
    if output_layer is not None:
        _check_output_layer(files, output_layer, spellings.get(EMBEDDING))
    parameters: dict[str, StoredRows] = {}
    for ours, released in to_released_names(stored.config, shapes).items():
        weight_format = format_of(ours, stored.quantization)
        if weight_format is None:
            parameters[ours] = FileRows(files, spellings[released], shapes[ours])
        else:
            names = spellings[released + Q_SUFFIX], spellings[released + SCALES_SUFFIX]
            parameters[ours] = QuantizedFileRows(files, names, shapes[ours], weight_format)
    return parameters


def _spellings(files: WeightFiles) -> tuple[dict[str, str], list[str]]:
    """Map released names to names in the files; also return a problem per duplicate tensor."""
    spellings: dict[str, str] = {}
    problems = []
    for name in files.tensors:
        released = to_released_name(name)
        if is_pooling_head(released):
            continue
        if released in spellings:
            problems.append(f"{name} and {spellings[released]} are the same tensor")
        spellings[released] = name
    return spellings, problems


def _expected_tensors(
    shapes: Mapping[str, tuple[int, ...]], stored: StoredConfig
) -> dict[str, _Expected]:
    """Return the tensors that the files must contain, by released name."""
    expected: dict[str, _Expected] = {}
    for ours, released in to_released_names(stored.config, shapes).items():
        shape = shapes[ours]
        weight_format = format_of(ours, stored.quantization)
        if weight_format is not None:
            expected[released + Q_SUFFIX] = _Expected(
                shape=q_shape(shape, weight_format), dtype_codes=("U8",)
            )
            expected[released + SCALES_SUFFIX] = _Expected(
                shape=scales_shape(shape, weight_format), dtype_codes=("BF16",)
            )
            continue
        if released == EMBEDDING:
            shape = (stored.table_rows, *shape[1:])
        expected[released] = _Expected(shape=shape, dtype_codes=tuple(DTYPE_CODES))
    return expected


def _name_problems(spellings: Mapping[str, str], expected: Mapping[str, _Expected]) -> list[str]:
    missing = sorted(expected.keys() - spellings.keys())
    unknown = sorted(spellings[name] for name in spellings.keys() - expected.keys())
    problems = [f"missing: {shorten(missing)}"] if missing else []
    return problems + ([f"unknown: {shorten(unknown)}"] if unknown else [])


def _tensor_problems(
    files: WeightFiles,
    spellings: Mapping[str, str],
    expected: Mapping[str, _Expected],
    stored: StoredConfig,
) -> list[str]:
    problems = []
    for released, tensor in expected.items():
        name = spellings.get(released)
        if name is None:
            continue
        actual = files.tensors[name]
        if actual.shape != tensor.shape:
            problem = f"{name} is {actual.shape}, expected {tensor.shape}"
            if released == POSITIONS and actual.shape[1:] == tensor.shape[1:]:
                problem += _other_resolution(actual.shape[0], stored)
            problems.append(problem)
        elif actual.dtype_code not in tensor.dtype_codes:
            codes = " or ".join(tensor.dtype_codes)
            problems.append(f"{name} has dtype {actual.dtype_code}, expected {codes}")
    return [_listed(problems)] if problems else []


def _listed(problems: Sequence[str]) -> str:
    rest = len(problems) - _MAX_LISTED
    return "; ".join(problems[:_MAX_LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def _other_resolution(num_positions: int, stored: StoredConfig) -> str:
    vision = stored.config.vision
    side = isqrt(num_positions)
    if side**2 != num_positions:
        return ""
    return (
        f" (positions for images of {side * vision.patch_size} pixels, while the config says "
        f"{vision.resolution})"
    )


def _check_output_layer(files: WeightFiles, output_layer: str, embedding: str | None) -> None:
    if embedding is None or not files.hold_the_same(output_layer, embedding):
        raise CheckpointError(
            f"{files.folder} contains an output layer {output_layer} that differs from the "
            f"embedding {EMBEDDING}. PaliGemma uses one table for both."
        )
