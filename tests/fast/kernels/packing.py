"""Packs whole weights, which the package does a few rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from paligemma.fast.quantization import (
    WeightFormat,
    count_panels,
    to_stored,
    words_of_rows,
    words_of_values,
)


def pack_values(rows: Tensor, weight_format: WeightFormat) -> Tensor:
    """Pack weights float[N, K], or quantized int8[N, K], into ceil(N / 16) panels."""
    stored = to_stored(rows, weight_format)
    shape = weight_format.values_shape(count_panels(rows.shape[0]), rows.shape[1])
    values = torch.empty(shape, dtype=stored.dtype, device=rows.device)
    words_of_values(values).copy_(words_of_rows(stored, weight_format))
    return values
