"""Weights -> small whole numbers with a scale for each group of inputs, and back.

Weight-only and symmetric: weight = q * scale. The scale is rounded to bfloat16 before q is
computed, so that its rounding costs nothing. Knows no layout and no layer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# N outputs, K inputs, G groups of inputs

Quantization = Literal["int8", "int4"]
"""What a model's large weights can be turned into."""

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
