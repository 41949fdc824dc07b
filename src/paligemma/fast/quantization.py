"""How int8 and int4 are done: weights -> small integers with scales -> packed bytes, and back.

1. `quantize`: weight = q * scale, symmetric, one scale per group of inputs. The scale is rounded
   to bfloat16 before q is computed, so that its rounding costs nothing.
2. `to_stored`: the bytes of quantized rows, as checkpoints keep them.
3. `pack_values`: the same bytes in the order in which the kernels read them.

Outputs stand in panels of 16, so that one register holds one input's weight for 16 outputs, and
inputs in twos (bfloat16) or fours (integers), as the processor's dot products need them:

    bfloat16   values bfloat16[P, K / 2, 16, 2]   [p, i, o, j] is the weight of output 16 p + o
                                                  for input 2 i + j
    int8       values uint8[P, K / 4, 16, 4]      q + 128, q from -127 to 127
    int4       values uint8[P, K / 8, 16, 4]      low half: q + 8 of input 8 i + j, q from -8 to 7;
                                                  high half: of input 8 i + 4 + j
    integers   scales bfloat16[P, K / group, 16]  weight = q * scale

K is padded with zeros to whole groups (bfloat16: to a multiple of 32). A panel's rows are
neighbors in the plain weight, so a file can be packed a few rows at a time.

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

FormatName = Literal["bfloat16", "int8", "int4"]

LANES = 16
_LOW_HALVES = 0x0F0F0F0F


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How weights are kept. `group_size` inputs share a scale; bfloat16 has no scales."""

    name: FormatName
    group_size: int = 32

    @property
    def code(self) -> int:
        """The kernels' number for it."""
        return ("bfloat16", "int8", "int4").index(self.name)

    @property
    def bits(self) -> int:
        return {"bfloat16": 16, "int8": 8, "int4": 4}[self.name]

    @property
    def offset(self) -> int:
        """What is added to a quantized weight so that it is stored without sign."""
        return {"bfloat16": 0, "int8": 128, "int4": 8}[self.name]

    @property
    def stored_zero(self) -> int:
        """A byte of zeros."""
        return {"bfloat16": 0, "int8": 0x80, "int4": 0x88}[self.name]

    def padded_inputs(self, num_inputs: int) -> int:
        return -(-num_inputs // self.group_size) * self.group_size

    def values_shape(self, num_panels: int, num_inputs: int) -> tuple[int, ...]:
        """Of one layer's packed values.

        >>> INT4.values_shape(2, 2304)
        (2, 288, 16, 4)
        """
        padded = self.padded_inputs(num_inputs)
        if self.name == "bfloat16":
            return (num_panels, padded // 2, LANES, 2)
        return (num_panels, padded // (32 // self.bits), LANES, 4)

    def scales_shape(self, num_panels: int, num_inputs: int) -> tuple[int, ...]:
        return (num_panels, self.padded_inputs(num_inputs) // self.group_size, LANES)


BFLOAT16 = WeightFormat(name="bfloat16")
INT8 = WeightFormat(name="int8", group_size=128)
INT4 = WeightFormat(name="int4", group_size=32)


@dataclass(frozen=True, kw_only=True)
class LayerFormats:
    """Which format each kind of weight in the decoder has."""

    attention: WeightFormat
    mlp: WeightFormat
    table: WeightFormat


# Attention is a fifth of a layer's weights and the more sensitive part. The table of embeddings is
# looked up and it is the output layer: errors in it count twice.
LAYER_FORMATS: dict[Quantization | None, LayerFormats] = {
    None: LayerFormats(attention=BFLOAT16, mlp=BFLOAT16, table=BFLOAT16),
    "int8": LayerFormats(attention=INT8, mlp=INT8, table=INT8),
    "int4": LayerFormats(attention=INT8, mlp=INT4, table=INT8),
}


# Quantizing

_BLOCK = 2**18  # weights at once: what is computed from them stays in the processor's cache

# Where the largest weight of a group may come to lie, on a scale that ends at -8: below, every
# step is coarser than it must be; above, the largest weight is cut, and the others gain.
_INT4_TRIALS = (6.6, 7.2, 7.8, 8.4)


def quantize(rows: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """float[N, K] -> q int8[N, K] and scales bfloat16[N, G]; the last group may be short.

    8 bits: q from -127 to 127, the largest weight of a group at one of the ends. 4 bits: q from
    -8 to 7, and of several scales, of either sign, the one with the least squared error.
    """
    num_inputs = rows.shape[1]
    q = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    scales = rows.new_empty(rows.shape[0], -(-num_inputs // group_size), dtype=torch.bfloat16)
    num_rows = max(1, _BLOCK // num_inputs)
    for block, block_q, block_scales in zip(
        rows.split(num_rows), q.split(num_rows), scales.split(num_rows), strict=True
    ):
        groups = _grouped(block.float(), group_size)
        found = _scales_of_int8(groups) if bits == 8 else _scales_of_int4(groups)
        block_scales.copy_(found)
        divisor = block_scales.float().masked_fill_(block_scales == 0, 1.0)[..., None]
        lowest, highest = (-127, 127) if bits == 8 else (-8, 7)
        whole = groups.div_(divisor).round_().clamp_(lowest, highest)
        block_q.copy_(whole.flatten(1)[:, :num_inputs])
    return q, scales


def dequantize(q: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """int8[N, K], bfloat16[N, G] -> float32[N, K]."""
    groups = _grouped(q.float(), group_size) * scales.float()[..., None]
    return groups.flatten(1)[:, : q.shape[1]]


def _scales_of_int8(groups: Tensor) -> Tensor:
    return groups.abs().amax(dim=2) / 127


def _scales_of_int4(groups: Tensor) -> Tensor:
    """float[N, G, group size] -> float[N, G].

    A trial fixes q; the best scale for it is the one of least squares, sum(x q) / sum(q q), which
    takes sum(x q)^2 / sum(q q) off the squared error. The largest weight lands on -8 and not on 7,
    where there is more room: the scale has the other sign when it is positive.
    """
    place = groups.abs().argmax(dim=2, keepdim=True)
    largest = groups.gather(2, place)
    inverse = torch.where(largest == 0, 0.0, -1.0 / largest)
    best_gain = torch.full_like(largest[..., 0], -1.0)
    best_scale = torch.zeros_like(best_gain) * largest[..., 0]  # NaN where a weight is
    for end in _INT4_TRIALS:
        q = (groups * (end * inverse)).round_().clamp_(-8, 7)
        fit = torch.linalg.vecdot(groups, q)
        size = torch.linalg.vecdot(q, q)
        gain = fit.square() / size
        scale = fit / size
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


def pack_values(rows: Tensor, weight_format: WeightFormat) -> Tensor:
    """Weights bfloat16[N, K], or quantized int8[N, K] -> values of ceil(N / 16) panels."""
    stored = to_stored(rows, weight_format)
    values = torch.empty(
        weight_format.values_shape(count_panels(rows.shape[0]), rows.shape[1]),
        dtype=stored.dtype,
        device=rows.device,
    )
    words_of_values(values).copy_(words_of_rows(stored, weight_format))
    return values


def unpack_values(values: Tensor, weight_format: WeightFormat) -> Tensor:
    """The inverse of `pack_values`, padding included: [P * 16, padded inputs]."""
    return from_stored(unpack_stored(values), weight_format)


def to_stored(rows: Tensor, weight_format: WeightFormat) -> Tensor:
    """Weights bfloat16[N, K], or quantized int8[N, K] -> the bytes of their rows.

    bfloat16[N, padded K]; int8: uint8[N, padded K], q + 128; int4: uint8[N, padded K / 2], of
    every eight inputs four in the low halves of four bytes, the next four in the high halves.
    """
    if missing := weight_format.padded_inputs(rows.shape[1]) - rows.shape[1]:
        rows = F.pad(rows, (0, missing))
    rows = rows.contiguous()
    if weight_format.name == "bfloat16":
        return rows
    unsigned = rows.view(torch.uint8) + weight_format.offset
    if weight_format.name == "int8":
        return unsigned
    fours = unsigned.view(torch.int32)
    return (fours[:, 0::2] | fours[:, 1::2] << 4).view(torch.uint8)


def from_stored(stored: Tensor, weight_format: WeightFormat) -> Tensor:
    """The inverse of `to_stored`, padding included."""
    if weight_format.name == "bfloat16":
        return stored
    if weight_format.name == "int4":
        fours = stored.view(torch.int32)
        halves = torch.stack([fours & _LOW_HALVES, fours >> 4 & _LOW_HALVES], dim=2)
        stored = halves.flatten(1).view(torch.uint8)
    return (stored - weight_format.offset).view(torch.int8)


def words_of_rows(stored: Tensor, weight_format: WeightFormat) -> Tensor:
    """Bytes of N rows, N padded to panels -> a view of them as values, int32[P, words, 16].

    In every format the weights that stand together in a panel, four bytes, stand together in a
    row: packing moves words and looks into none.
    """
    if missing := -stored.shape[0] % LANES:
        stored = F.pad(stored, (0, 0, 0, missing), value=weight_format.stored_zero)
    words = stored.view(torch.int32)
    panels: Tensor = words.view(-1, LANES, words.shape[1]).transpose(1, 2)
    return panels


def words_of_values(values: Tensor) -> Tensor:
    """Packed values -> the same memory as int32[P, words, 16]."""
    return values.view(torch.int32)[..., 0]


def unpack_stored(values: Tensor) -> Tensor:
    """Packed values -> the bytes of the rows that were packed, padding included."""
    words = words_of_values(values).transpose(1, 2).flatten(0, 1)
    return words.contiguous().view(values.dtype)


def pack_scales(scales: Tensor) -> Tensor:
    """bfloat16[N, G], one for each group of inputs -> bfloat16[ceil(N / 16), G, 16]."""
    rows = count_panels(scales.shape[0]) * LANES
    padded = scales.new_zeros(rows, scales.shape[1])
    padded[: scales.shape[0]] = scales
    return padded.view(-1, LANES, scales.shape[1]).transpose(1, 2).contiguous()


def unpack_scales(scales: Tensor) -> Tensor:
    """The inverse of `pack_scales`, padding included: bfloat16[P * 16, G]."""
    return scales.transpose(1, 2).flatten(0, 1)
