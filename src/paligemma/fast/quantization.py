"""int8 and int4 quantization: weights -> integers with scales -> packed bytes, and back.

1. `quantize`: weight = q * scale, symmetric, one scale per group of inputs. The scale is rounded
   to bfloat16 before q is computed, so that its rounding adds no error.
2. `to_stored`: the bytes of quantized rows, as checkpoints store them.
3. `words_of_rows`: the same bytes in the order in which the kernels read them.

Outputs are grouped in panels of 16, so that a register contains the weights of 16 outputs for one
input. Inputs are grouped in twos (bfloat16) or fours (integers) for the CPU's dot products:

    float32    values float32[P, K, 16, 1]        [p, i, o, 0] is the weight of output 16 p + o for
                                                  input i
    bfloat16   values bfloat16[P, K / 2, 16, 2]   [p, i, o, j] is the weight of output 16 p + o
                                                  for input 2 i + j
    int8       values uint8[P, K / 4, 16, 4]      q + 128, q from -127 to 127
    int4       values uint8[P, K / 8, 16, 4]      low half: q + 8 of input 8 i + j, q from -8 to 7;
                                                  high half: of input 8 i + 4 + j
    integers   scales bfloat16[P, K / group, 16]  weight = q * scale

K is padded with zeros to whole groups (without scales: to a multiple of 32). The rows of a panel
are adjacent in the plain weight, so a file can be packed a few rows at a time.

`fast/linear.py` has the layers on these weights, `fast/kernels` the products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from paligemma.fast.weights import Quantization

# N outputs, K inputs, G groups of inputs, P panels of 16 outputs

FormatName = Literal["bfloat16", "int8", "int4", "float32"]

LANES = 16
_LOW_HALVES = 0x0F0F0F0F


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How weights are stored. In the integer formats, `group_size` inputs share a scale."""

    name: FormatName
    group_size: int = 32

    @property
    def code(self) -> int:
        """The number of the format in the kernels."""
        return ("bfloat16", "int8", "int4", "float32").index(self.name)

    @property
    def bits(self) -> int:
        return {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}[self.name]

    @property
    def is_quantized(self) -> bool:
        return self.name in ("int8", "int4")

    @property
    def row_dtype(self) -> torch.dtype:
        """The dtype of the rows that these weights are multiplied with."""
        return torch.float32 if self.name == "float32" else torch.bfloat16

    @property
    def values_dtype(self) -> torch.dtype:
        return torch.uint8 if self.is_quantized else self.row_dtype

    @property
    def offset(self) -> int:
        """The offset that makes quantized weights unsigned."""
        return {"int8": 128, "int4": 8}.get(self.name, 0)

    @property
    def stored_zero(self) -> int:
        """The byte that represents zeros."""
        return {"int8": 0x80, "int4": 0x88}.get(self.name, 0)

    def padded_inputs(self, num_inputs: int) -> int:
        return -(-num_inputs // self.group_size) * self.group_size

    def values_shape(self, num_panels: int, num_inputs: int) -> tuple[int, ...]:
        """Return the shape of a layer's packed values.

        >>> INT4.values_shape(2, 2304)
        (2, 288, 16, 4)
        """
        padded = self.padded_inputs(num_inputs)
        words = padded * self.bits // 32
        return (num_panels, words, LANES, 4 // self.values_dtype.itemsize)

    def scales_shape(self, num_panels: int, num_inputs: int) -> tuple[int, ...]:
        return (num_panels, self.padded_inputs(num_inputs) // self.group_size, LANES)


FLOAT32 = WeightFormat(name="float32")
BFLOAT16 = WeightFormat(name="bfloat16")
INT8 = WeightFormat(name="int8", group_size=128)
INT4 = WeightFormat(name="int4", group_size=32)


@dataclass(frozen=True, kw_only=True)
class LayerFormats:
    """The formats of the decoder's weights, and of the encoder's and projector's (`vision`)."""

    vision: WeightFormat = BFLOAT16
    attention: WeightFormat
    mlp: WeightFormat
    table: WeightFormat


# Attention has a fifth of a layer's weights and is more sensitive than the MLP. The embedding table
# is also the output layer, so its errors count twice.
LAYER_FORMATS: dict[Quantization | None, LayerFormats] = {
    None: LayerFormats(attention=BFLOAT16, mlp=BFLOAT16, table=BFLOAT16),
    "int8": LayerFormats(attention=INT8, mlp=INT8, table=INT8),
    "int4": LayerFormats(attention=INT8, mlp=INT4, table=INT8),
}
FLOAT32_FORMATS = LayerFormats(vision=FLOAT32, attention=FLOAT32, mlp=FLOAT32, table=FLOAT32)


# Quantizing

_BLOCK = 2**18  # weights per block, so that intermediate results stay in the CPU cache

# Candidates for the value that the largest weight of a group is mapped to, where q ends at -8. With
# smaller values every step is coarser than necessary; with larger ones the largest weight is
# clipped in favor of the others.
_INT4_TRIALS = (6.6, 7.2, 7.8, 8.4)


def quantize(rows: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantize float[N, K] to q int8[N, K] and scales bfloat16[N, G]; the last group may be short.

    8 bits: q from -127 to 127, where the largest weight of a group gets +-127. 4 bits: q from -8
    to 7, with the scale, of either sign, that has the least squared error among several candidates.
    """
    num_inputs = rows.shape[1]
    q = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    scales = rows.new_empty(rows.shape[0], -(-num_inputs // group_size), dtype=torch.bfloat16)
    num_rows = max(1, _BLOCK // num_inputs)
    for block, block_q, block_scales in zip(
        rows.split(num_rows), q.split(num_rows), scales.split(num_rows), strict=True
    ):
        groups = _grouped(block.float(), group_size)
        block_scales.copy_(groups.abs().amax(dim=2) / 127 if bits == 8 else _int4_scales(groups))
        divisor = block_scales.float().masked_fill_(block_scales == 0, 1.0)[..., None]
        lowest, highest = (-127, 127) if bits == 8 else (-8, 7)
        rounded = groups.div_(divisor).round_().clamp_(lowest, highest)
        block_q.copy_(rounded.flatten(1)[:, :num_inputs])
    return q, scales


def dequantize(q: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """int8[N, K], bfloat16[N, G] -> float32[N, K]."""
    groups = _grouped(q.float(), group_size) * scales.float()[..., None]
    return groups.flatten(1)[:, : q.shape[1]]


def _int4_scales(groups: Tensor) -> Tensor:
    """float[N, G, group size] -> float[N, G].

    Each candidate determines q. The best scale for it by least squares is sum(x q) / sum(q q),
    which reduces the squared error by sum(x q)^2 / sum(q q). The largest weight is mapped to -8,
    which is further out than 7, so the scale of a positive one is negative.
    """
    index = groups.abs().argmax(dim=2, keepdim=True)
    largest = groups.gather(2, index)
    inverse = torch.where(largest == 0, 0.0, -1.0 / largest)
    best_gain = torch.full_like(largest[..., 0], -1.0)
    best_scale = torch.zeros_like(best_gain) * largest[..., 0]  # NaN if a weight is
    for end in _INT4_TRIALS:
        q = (groups * (end * inverse)).round_().clamp_(-8, 7)
        xq = torch.linalg.vecdot(groups, q)
        qq = torch.linalg.vecdot(q, q)
        gain = xq.square() / qq
        scale = xq / qq
        better = gain > best_gain
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale


def _grouped(rows: Tensor, group_size: int) -> Tensor:
    padding = -rows.shape[1] % group_size
    groups: Tensor = F.pad(rows, (0, padding)).unflatten(1, (-1, group_size))
    return groups


# Packing


def count_panels(num_outputs: int) -> int:
    """
    >>> count_panels(100)
    7
    """
    return -(-num_outputs // LANES)


def unpack_values(values: Tensor, weight_format: WeightFormat) -> Tensor:
    """Unpack values to weights or q, padding included: [P * 16, padded inputs]."""
    return from_stored(unpack_stored(values), weight_format)


def to_stored(rows: Tensor, weight_format: WeightFormat) -> Tensor:
    """Convert weights float[N, K], or quantized int8[N, K], to the bytes of their rows.

    float32 or bfloat16[N, padded K]; int8: uint8[N, padded K], q + 128; int4:
    uint8[N, padded K / 2], where of every eight inputs four are in the low halves of four bytes,
    the next four in the high ones.
    """
    if missing := weight_format.padded_inputs(rows.shape[1]) - rows.shape[1]:
        rows = F.pad(rows, (0, missing))
    rows = rows.contiguous()
    if not weight_format.is_quantized:
        return rows
    unsigned = rows.view(torch.uint8) + weight_format.offset
    if weight_format.name == "int8":
        return unsigned
    fours = unsigned.view(torch.int32)
    return (fours[:, 0::2] | fours[:, 1::2] << 4).view(torch.uint8)


def from_stored(stored: Tensor, weight_format: WeightFormat) -> Tensor:
    """The inverse of `to_stored`, padding included."""
    if not weight_format.is_quantized:
        return stored
    if weight_format.name == "int4":
        fours = stored.view(torch.int32)
        halves = torch.stack([fours & _LOW_HALVES, fours >> 4 & _LOW_HALVES], dim=2)
        stored = halves.flatten(1).view(torch.uint8)
    return (stored - weight_format.offset).view(torch.int8)


def words_of_rows(stored: Tensor, weight_format: WeightFormat) -> Tensor:
    """View the bytes of N rows, padded to panels, in the order of values: int32[P, words, 16].

    In every format, the four bytes of weights that are adjacent in a panel are also adjacent in a
    row, so packing only moves 32-bit words.
    """
    if missing := -stored.shape[0] % LANES:
        stored = F.pad(stored, (0, 0, 0, missing), value=weight_format.stored_zero)
    words = stored.view(torch.int32)
    panels: Tensor = words.view(-1, LANES, words.shape[1]).transpose(1, 2)
    return panels


def words_of_values(values: Tensor) -> Tensor:
    """View packed values as int32[P, words, 16]."""
    return values.view(torch.int32)[..., 0]


def unpack_stored(values: Tensor) -> Tensor:
    """Convert packed values back to the bytes of their rows, padding included."""
    words = words_of_values(values).transpose(1, 2).flatten(0, 1)
    return words.contiguous().view(values.dtype)


def pack_scales(scales: Tensor) -> Tensor:
    """Pack scales bfloat16[N, G], one per group of inputs, to bfloat16[ceil(N / 16), G, 16]."""
    rows = count_panels(scales.shape[0]) * LANES
    padded = scales.new_zeros(rows, scales.shape[1])
    padded[: scales.shape[0]] = scales
    return padded.view(-1, LANES, scales.shape[1]).transpose(1, 2).contiguous()


def unpack_scales(scales: Tensor) -> Tensor:
    """The inverse of `pack_scales`, padding included: bfloat16[P * 16, G]."""
    return scales.transpose(1, 2).flatten(0, 1)
