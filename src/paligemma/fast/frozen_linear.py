"""Linear layers with frozen, quantized weights: the base for training low-rank adapters (QLoRA).

Weights are NF4 (arXiv 2305.14314, section 3) or int8, and dequantized for one product at a time,
forward and backward. Neither the dequantized weight nor the input is kept for the gradient, which
only flows to the input. Plain torch, on any device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paligemma.errors import check_choice
from paligemma.fast.quantization import dequantize, quantize
from paligemma.fast.weights import FrozenFormat

# N outputs, K inputs, G groups of inputs

NF4_BLOCK = 64
INT8_GROUP = 128

_CHUNK = 2**18  # weights per chunk, so that intermediate results stay in the CPU cache


_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


@cache
def nf4_codebook() -> Tensor:
    """Return float32[16], ascending from -1 to 1: quantiles of a normal distribution and 0.

    Seven values below zero and eight above are quantiles at equal steps of probability, from 1/2
    to the middle of 1 - 1/30 and 1 - 1/32, scaled so that the ends are -1 and 1. These are the
    published digits (arXiv 2305.14314, appendix E), with which files are written everywhere.
    """
    return torch.tensor(_NF4)


@cache
def _nf4_pairs(device: torch.device) -> Tensor:
    """Return float64[256]: for each byte of two codes, the bits of its two float32 values."""
    codes = torch.arange(256)
    pairs = nf4_codebook()[torch.stack([codes & 15, codes >> 4], dim=1)]
    return pairs.view(torch.float64)[:, 0].to(device)


class FrozenLinear(nn.Module):
    """[..., K] -> [..., N], as `nn.Linear` without bias; the weight is uint8 or int8 with scales.

    "nf4": 4 bits per weight, and a scale (the largest absolute value) per 64 inputs of a row.
    Scales are float32, or with `double_quantization` 8 bits each with a step and an offset per
    row: 4.5 bits per weight in all, or 4.15 (K = 2304). The paper quantizes scales in blocks of 256
    over the whole matrix; per row, a weight can be filled while it is read.
    "int8": 8 bits per weight, and a bfloat16 scale per 128 inputs.

    Empty until `write` has filled all rows.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        frozen_format: FrozenFormat,
        *,
        double_quantization: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_choice("frozen_format", frozen_format, FrozenFormat)
        self.in_features = in_features
        self.out_features = out_features
        self.frozen_format = frozen_format
        self.shape: tuple[int, ...] = (out_features, in_features)
        self.codes: Tensor
        self.scales: Tensor
        self.scale_steps: Tensor | None
        self.scale_offsets: Tensor | None
        steps = offsets = None
        if frozen_format == "int8":
            num_groups = -(-in_features // INT8_GROUP)
            codes_shape, codes_dtype, scales_dtype = in_features, torch.int8, torch.bfloat16
        else:
            num_groups = -(-in_features // NF4_BLOCK)
            codes_shape, codes_dtype = num_groups * NF4_BLOCK // 2, torch.uint8
            scales_dtype = torch.uint8 if double_quantization else torch.float32
            if double_quantization:
                steps = torch.empty(out_features, 1, device=device)
                offsets = torch.empty(out_features, 1, device=device)
        shape = (out_features, codes_shape)
        self.register_buffer("codes", torch.empty(shape, dtype=codes_dtype, device=device))
        shape = (out_features, num_groups)
        self.register_buffer("scales", torch.empty(shape, dtype=scales_dtype, device=device))
        self.register_buffer("scale_steps", steps)
        self.register_buffer("scale_offsets", offsets)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return out

    def write(self, start: int, rows: Tensor) -> None:
        """Quantize float[n, K] into the rows from `start` on."""
        target = slice(start, start + rows.shape[0])
        if self.frozen_format == "int8":
            self.codes[target], self.scales[target] = quantize(rows, 8, INT8_GROUP)
            return
        for chunk in _row_chunks(rows.shape[0], self.in_features):
            self._write_nf4(start + chunk.start, rows[chunk])

    @property
    def holds_stored_nf4(self) -> bool:
        """Whether `write_stored` works: in "nf4" without double quantization."""
        return self.frozen_format == "nf4" and self.scale_steps is None

    def write_stored(self, start: int, codes: Tensor, scales: Tensor) -> None:
        """Write rows that are NF4 already: scales float32[n, K / 64] and codes uint8[n, K / 2].

        The first of two values is in the low half of a byte.
        """
        assert self.holds_stored_nf4
        target = slice(start, start + codes.shape[0])
        self.codes[target], self.scales[target] = codes, scales

    def _write_nf4(self, start: int, rows: Tensor) -> None:
        target = slice(start, start + rows.shape[0])
        padding = -self.in_features % NF4_BLOCK
        groups = F.pad(rows.float(), (0, padding)).unflatten(1, (-1, NF4_BLOCK))
        scales = groups.abs().amax(dim=2)
        if self.scale_steps is None or self.scale_offsets is None:
            self.scales[target] = scales
        else:
            lowest, highest = scales.aminmax(dim=1, keepdim=True)
            steps = (highest - lowest) / 255
            divisor = steps.masked_fill(steps == 0, 1.0)
            self.scales[target] = ((scales - lowest) / divisor).round_().to(torch.uint8)
            self.scale_steps[target], self.scale_offsets[target] = steps, lowest
            scales = self._group_scales(target)
        normed = groups / scales.masked_fill(scales == 0, 1.0)[..., None]
        book = nf4_codebook().to(rows.device)
        codes = torch.bucketize(normed, (book[1:] + book[:-1]) / 2).to(torch.uint8)
        low, high = codes.flatten(1).unflatten(1, (-1, 2)).unbind(dim=2)
        self.codes[target] = low | high << 4

    def read(self, start: int, end: int) -> Tensor:
        """Dequantize the rows from `start` up to `end`: float32[end - start, K]."""
        source = slice(start, end)
        if self.frozen_format == "int8":
            return dequantize(self.codes[source], self.scales[source], INT8_GROUP)
        codes = self.codes[source]
        pairs = _nf4_pairs(codes.device).index_select(0, codes.flatten().int())
        groups = pairs.view(torch.float32).view(codes.shape[0], -1, NF4_BLOCK)
        rows = (groups * self._group_scales(source)[..., None]).flatten(1)
        return rows[:, : self.in_features]

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Dequantize the whole weight, [N, K]."""
        weight = torch.empty(self.shape, dtype=dtype, device=self.codes.device)
        for chunk in _row_chunks(*self.shape):
            weight[chunk] = self.read(chunk.start, chunk.stop)
        return weight

    def _group_scales(self, rows: slice) -> Tensor:
        scales = self.scales[rows]
        if self.scale_steps is None or self.scale_offsets is None:
            return scales
        return scales.float() * self.scale_steps[rows] + self.scale_offsets[rows]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.frozen_format}"


class _FrozenProduct(torch.autograd.Function):
    """x W^T. The gradient of x needs only W, which is dequantized again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, layer.weight(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        with torch.autocast(grad.device.type, enabled=False):
            return (grad @ ctx.layer.weight(grad.dtype)).to(ctx.dtype), None


def freeze_linears(
    layers: Iterable[tuple[nn.Module, str]],
    frozen_format: FrozenFormat,
    *,
    double_quantization: bool = True,
) -> None:
    """Replace each `nn.Linear`, given as (parent, name), by a `FrozenLinear`, in place.

    Works layer by layer, so that the weights are never in memory twice. Layers on the meta device
    become empty ones, to be filled by `write`.
    """
    for parent, name in layers:
        layer = getattr(parent, name)
        assert isinstance(layer, nn.Linear)
        assert layer.bias is None  # the decoder's have none
        weight = layer.weight.detach()
        frozen = FrozenLinear(
            layer.in_features,
            layer.out_features,
            frozen_format,
            double_quantization=double_quantization,
            device=weight.device,
        )
        if not weight.is_meta:
            frozen.write(0, weight)
        setattr(parent, name, frozen)


def _row_chunks(num_rows: int, num_inputs: int) -> Iterator[slice]:
    step = max(1, _CHUNK // num_inputs)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
