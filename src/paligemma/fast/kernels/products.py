"""Linear layers on packed weights, by the kernels or in plain torch.

    out = activation(x W^T + bias)

With a quantized weight, the rows are quantized too, in the same groups of inputs, with a scale per
row and group, and multiplied as integers. `packed_linear_reference` is the same in torch, and runs
where no kernel can.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from paligemma.fast.kernels.library import LinearArguments, kernels
from paligemma.fast.quantization import LANES, WeightFormat, unpack_scales, unpack_values

# M rows, K inputs, P panels of 16 outputs

Activation = Literal["none", "gelu", "geglu"]

ACTIVATION_CODES = {"none": 0, "gelu": 1, "geglu": 2}


def packed_linear(
    x: Tensor,
    values: Tensor,
    scales: Tensor | None,
    weight_format: WeightFormat,
    *,
    bias: Tensor | None = None,
    activation: Activation = "none",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """[..., K] -> [..., P * 16]; with "geglu", gate and up panels alternate, for half the outputs.

    x is float32 for float32 weights, else bfloat16. `out_dtype` is that of x, or float32. The
    bias is float32[P * 16].
    """
    compiled = kernels()
    out_dtype = out_dtype or x.dtype
    if compiled is None or x.dtype != weight_format.row_dtype or values.device.type != "cpu":
        return packed_linear_reference(
            x, values, scales, weight_format,
            bias=bias, activation=activation, out_dtype=out_dtype,
        )  # fmt: skip
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    num_panels = values.shape[0]
    num_outputs = num_panels * LANES // (2 if activation == "geglu" else 1)
    out = torch.empty(rows.shape[0], num_outputs, dtype=out_dtype)
    compiled.linear(
        LinearArguments(
            format=weight_format.code,
            values=values.data_ptr(),
            scales=None if scales is None else scales.data_ptr(),
            group=weight_format.group_size,
            panels=num_panels,
            k=weight_format.padded_inputs(x.shape[-1]),
            bias=None if bias is None else bias.data_ptr(),
            epilogue=ACTIVATION_CODES[activation],
            x=rows.data_ptr(),
            x_stride=rows.stride(0),
            rows=rows.shape[0],
            inputs=rows.shape[1],
            out=out.data_ptr(),
            out_stride=num_outputs,
            out_is_float=out_dtype == torch.float32,
            threads=torch.get_num_threads(),
        )
    )
    return out.view(*x.shape[:-1], num_outputs)


def packed_linear_reference(
    x: Tensor,
    values: Tensor,
    scales: Tensor | None,
    weight_format: WeightFormat,
    *,
    bias: Tensor | None = None,
    activation: Activation = "none",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`packed_linear` in plain torch; products are summed in float32."""
    rows = x.reshape(-1, x.shape[-1]).float()
    weight = unpack_values(values, weight_format).float()
    rows = F.pad(rows, (0, weight.shape[1] - rows.shape[1]))
    if scales is not None:
        group_size = weight_format.group_size
        groups = weight.view(weight.shape[0], -1, group_size)
        groups = groups * unpack_scales(scales).float()[..., None]
        weight = groups.flatten(1)
        rows = quantized_rows(rows, group_size)
    sums = rows @ weight.T
    if bias is not None:
        sums = sums + bias
    if activation == "gelu":
        sums = F.gelu(sums, approximate="tanh")
    elif activation == "geglu":
        gate, up = sums.view(rows.shape[0], -1, 2, LANES).unbind(2)
        sums = (F.gelu(gate, approximate="tanh") * up).flatten(1)
    return sums.to(out_dtype or x.dtype).view(*x.shape[:-1], -1)


def quantized_rows(rows: Tensor, group_size: int) -> Tensor:
    """Round float32[M, K], per row and group, to 255 steps between -max and max."""
    groups = rows.reshape(rows.shape[0], -1, group_size)
    largest = groups.abs().amax(dim=2, keepdim=True)
    # Dividing a tensor, because torch computes `number / tensor` as a rounded reciprocal times it.
    inverse = torch.where(largest > 0, largest.new_tensor(127.0) / largest, 0.0)
    return ((groups * inverse).round() * (largest / 127.0)).flatten(1)
