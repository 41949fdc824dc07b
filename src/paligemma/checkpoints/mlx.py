"""MLX folders (mlx-vlm): released names, with the patch kernel as (d, 14, 14, 3).

A quantized weight [N, K] of the module `X` is affine in groups of inputs: weight = q * scale + bias

    X.weight   uint32[N, K * bits / 32], q with the first value in the lowest bits
    X.scales   [N, K / group size], in the dtype of the model
    X.biases   [N, K / group size]; X's own bias is X.bias

The formulas are those of MLX (`mlx/backend/cpu/quantized.cpp`), so values are equal in every bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from paligemma.checkpoints.reader import DTYPE_CODES, WeightFiles
from paligemma.checkpoints.rows import StoredRows
from paligemma.errors import CheckpointError

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)

_SMALLEST_SCALE = 1e-7


@dataclass(frozen=True)
class GroupFormat:
    """`group_size` inputs share a scale and a bias."""

    bits: int
    group_size: int


@runtime_checkable
class AffineRows(StoredRows, Protocol):
    """A weight [N, K] that is stored as integers, affine in groups of inputs."""

    @property
    def groups(self) -> GroupFormat: ...

    def read_groups(self, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return q uint8[n, K], scales and biases [n, K / group size]."""


class GroupRows:
    """A weight in an MLX folder. Raises CheckpointError if its tensors do not fit together."""

    def __init__(
        self, files: WeightFiles, names: Mapping[str, str], shape: tuple[int, ...]
    ) -> None:
        """`names` are those of the tensors by what follows the module, with "" for the weight.

        `shape` may have fewer rows than are stored.
        """
        self._files, self._names = files, dict(names)
        self.name, self.shape = names.get("", ""), shape
        for role in ("", ".scales", ".biases"):
            if role not in names:
                known = next(iter(names.values()))
                what = role.removeprefix(".") or "weight"
                raise CheckpointError(f"{known} has no {what} next to it")
        words, scales, biases = (files.tensors[names[role]] for role in ("", ".scales", ".biases"))
        if len(shape) != 2 or words.dtype_code != "U32" or len(words.shape) != 2:
            raise CheckpointError(
                f"{names['']} is {words.dtype_code} {words.shape}, expected U32 of two dimensions"
            )
        num_rows, num_inputs = words.shape[0], shape[1]
        num_groups = scales.shape[1] if len(scales.shape) == 2 else 0
        for name, tensor in ((names[".scales"], scales), (names[".biases"], biases)):
            if tensor.shape != (num_rows, num_groups) or tensor.dtype_code not in DTYPE_CODES:
                raise CheckpointError(
                    f"{name} is {tensor.dtype_code} {tensor.shape}, expected floating point with "
                    f"{num_rows} rows, as the scales and the weight {names['']}"
                )
        if scales.dtype_code != biases.dtype_code:
            raise CheckpointError(f"{names['.scales']} and {names['.biases']} differ in dtype")
        self.groups = next(
            (
                GroupFormat(bits, group_size)
                for bits in BITS
                for group_size in GROUP_SIZES
                if words.shape[1] * 32 == num_inputs * bits
                and num_groups * group_size == num_inputs
            ),
            GroupFormat(0, 0),
        )
        if not self.groups.bits:
            raise CheckpointError(
                f"{names['']} is {words.shape} with {num_groups} groups, which is not a packing of "
                f"{num_inputs} inputs with {', '.join(map(str, BITS))} bits in groups of 32, 64 or "
                "128"
            )
        self.num_rows = num_rows
        self.dtype = DTYPE_CODES[scales.dtype_code]

    @property
    def scheme(self) -> str:
        return f"MLX {self.groups.bits} bits in groups of {self.groups.group_size}"

    def read(self, start: int, end: int) -> Tensor:
        q, scales, biases = self.read_groups(start, end)
        values = q.to(self.dtype).view(*scales.shape, -1)
        return (values * scales[..., None] + biases[..., None]).flatten(1)

    def read_groups(self, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        row_size = self.shape[1] * self.groups.bits // 8
        packed = self._files.read_bytes(self.name, start * row_size, end * row_size)
        scales = self._files.read_rows(self._names[".scales"], start, end)
        biases = self._files.read_rows(self._names[".biases"], start, end)
        return unpack(packed.view(end - start, -1), self.groups.bits), scales, biases


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Unpack the bytes of rows: uint8[n, K * bits / 8] -> uint8[n, K].

    >>> unpack(torch.tensor([[0b11_10_01_00]], dtype=torch.uint8), 2)
    tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    """
    if bits == 8:
        return packed
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return (packed[..., None] >> shifts & (1 << bits) - 1).flatten(1)
    eights = packed.view(packed.shape[0], -1, bits).long()  # eight values in `bits` bytes
    words = (eights << torch.arange(0, 8 * bits, 8)).sum(dim=2)
    values = words[..., None] >> torch.arange(0, 8 * bits, bits) & (1 << bits) - 1
    return values.to(torch.uint8).flatten(1)


def pack(q: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack`."""
    if bits == 8:
        return q.contiguous()
    if 8 % bits:
        eights = q.view(q.shape[0], -1, 8).long()
        words = (eights << torch.arange(0, 8 * bits, bits)).sum(dim=2)
        parts = words[..., None] >> torch.arange(0, 8 * bits, 8) & 255
        return parts.to(torch.uint8).flatten(1)
    parts = q.view(q.shape[0], -1, 8 // bits)
    packed = torch.zeros_like(parts[..., 0])
    for i in range(parts.shape[2]):
        packed |= parts[..., i] << bits * i
    return packed


def quantize_groups(rows: Tensor, groups: GroupFormat) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize float32[n, K] as MLX does: q uint8[n, K], float32 scales and biases [n, G].

    The end of the range that is further from zero is hit exactly, and so is zero.
    """
    parts = rows.float().unflatten(1, (-1, groups.group_size))
    lowest, highest = parts.aminmax(dim=2)
    steps = (1 << groups.bits) - 1
    from_below = lowest.abs() > highest.abs()
    scales = ((highest - lowest) / steps).clamp_min(_SMALLEST_SCALE)
    scales = torch.where(from_below, scales, -scales)
    edges = torch.where(from_below, lowest, highest)
    zero = (edges / scales).round()
    scales = torch.where(zero == 0, scales, edges / zero)
    biases = torch.where(zero == 0, 0.0, edges)
    q = ((parts - biases[..., None]) / scales[..., None]).round_().clamp_(0, steps)
    return q.to(torch.uint8).flatten(1), scales, biases
