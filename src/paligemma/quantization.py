"""Weights -> small whole numbers with a scale for each group of inputs, and back.

Weight-only and symmetric: weight = q * scale. The scale is rounded to bfloat16 before q is
computed, so that its rounding costs nothing. Knows no layout and no layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# N outputs, K inputs, G groups of inputs

_LARGEST = {8: 127, 4: 7}


def quantize(rows: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """float[N, K] -> q int8[N, K] and scales bfloat16[N, G]; the last group may be short."""
    largest = _LARGEST[bits]
    groups = _grouped(rows.float(), group_size)
    scales = (groups.abs().amax(dim=2) / largest).to(torch.bfloat16)
    divisor = scales.float().masked_fill(scales == 0, 1.0)[..., None]
    q = (groups / divisor).round_().clamp_(-largest, largest).to(torch.int8)
    return q.flatten(1)[:, : rows.shape[1]].contiguous(), scales


def dequantize(q: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """int8[N, K], bfloat16[N, G] -> float32[N, K]."""
    groups = _grouped(q.float(), group_size) * scales.float()[..., None]
    return groups.flatten(1)[:, : q.shape[1]]


def _grouped(rows: Tensor, group_size: int) -> Tensor:
    padding = -rows.shape[1] % group_size
    return F.pad(rows, (0, padding)).unflatten(1, (-1, group_size))
