"""Linear layers on packed weights, with which `accelerate` replaces `nn.Linear`.

A layer may contain several weights (query, key and value; gate and up), so that one pass over the
input serves all of them. Weights are read and written a few rows at a time, so neither packing nor
quantizing needs memory for a second copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from paligemma.fast.kernels.block import Projection, projection
from paligemma.fast.kernels.products import Activation, packed_linear
from paligemma.fast.quantization import (
    LANES,
    WeightFormat,
    count_panels,
    dequantize,
    from_stored,
    pack_scales,
    quantize,
    to_stored,
    unpack_scales,
    unpack_stored,
    words_of_rows,
    words_of_values,
)

# M rows, N outputs, K inputs; B batch, T tokens, V vocabulary, D width, R rows


class PackedLinear(nn.Module):
    """[..., K] -> [..., N]; with several weights, `split` returns an output for each.

    Each weight is padded to a multiple of 16 outputs. With the activation "geglu" there are two
    weights of N outputs, gate and up, whose panels alternate; the result is gelu(gate) * up.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: Sequence[int],
        weight_format: WeightFormat,
        *,
        bias: bool = False,
        activation: Activation = "none",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.num_inputs = num_inputs
        self.num_outputs = tuple(num_outputs)
        self.weight_format = weight_format
        self.activation = activation
        self.panels = tuple(count_panels(n) for n in num_outputs)
        total = sum(self.panels)
        self.values: Tensor
        self.scales: Tensor | None
        dtype = weight_format.values_dtype
        shape = weight_format.values_shape(total, num_inputs)
        self.register_buffer("values", torch.empty(shape, dtype=dtype, device=device))
        scales = None
        if weight_format.is_quantized:
            shape = weight_format.scales_shape(total, num_inputs)
            scales = torch.empty(shape, dtype=torch.bfloat16, device=device)
        self.register_buffer("scales", scales)
        self.bias: Tensor | None
        wide = torch.zeros(total * LANES, dtype=torch.float32, device=device) if bias else None
        self.register_buffer("bias", wide)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of a single weight (or of gate and up together), contiguous."""
        return self.padded(x)[..., : self.num_outputs[0]].contiguous()

    def split(self, x: Tensor, numbers: slice = slice(None)) -> tuple[Tensor, ...]:
        """Return the outputs of each weight, or of those in `numbers`, as slices of one tensor."""
        counts, widths = self.panels[numbers], self.num_outputs[numbers]
        first = sum(self.panels[: numbers.start or 0])
        padded = self.padded(x, range(first, first + sum(counts)))
        parts = padded.split([count * LANES for count in counts], dim=-1)
        return tuple(part[..., :n] for part, n in zip(parts, widths, strict=True))

    def padded(self, x: Tensor, panels: range | None = None) -> Tensor:
        """Return the outputs of all weights, or of some panels, including padding."""
        panels = panels or range(self.values.shape[0])
        here, lanes = (slice(panels.start * n, panels.stop * n) for n in (1, LANES))
        return packed_linear(
            x,
            self.values[here],
            None if self.scales is None else self.scales[here],
            self.weight_format,
            bias=None if self.bias is None else self.bias[lanes],
            activation=self.activation,
        )

    def to_struct(self) -> Projection:
        """Describe the layer for the kernel that runs all blocks."""
        return projection(
            self.values, self.scales, self.weight_format, self.num_inputs, self.activation
        )


class Rows(Protocol):
    """A parameter of the plain model, wherever it is stored, accessed in blocks of rows."""

    shape: tuple[int, ...]

    def write(self, start: int, rows: Tensor) -> None:
        """Write rows from `start` on, a multiple of 16."""

    def read(self, start: int, end: int) -> Tensor:
        """Read the rows from `start`, a multiple of 16, up to `end`."""


class ParameterRows:
    """A parameter that is stored as a plain tensor."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.shape = tuple(parameter.shape)

    def write(self, start: int, rows: Tensor) -> None:
        with torch.no_grad():  # increments the version counter, unlike `.data`
            self.parameter[start : start + rows.shape[0]] = rows

    def read(self, start: int, end: int) -> Tensor:
        return self.parameter.detach()[start:end]


class BiasRows:
    """A bias [N] of a weight in a packed layer, stored as float32."""

    def __init__(self, layer: PackedLinear, number: int = 0) -> None:
        self.shape: tuple[int, ...] = (layer.num_outputs[number],)
        self._layer = layer
        self._offset = sum(layer.panels[:number]) * LANES

    def write(self, start: int, rows: Tensor) -> None:
        assert self._layer.bias is not None
        end = start + rows.shape[0]
        self._layer.bias[self._offset + start : self._offset + end] = rows
        if end == self.shape[0]:
            padded = count_panels(end) * LANES
            self._layer.bias[self._offset + end : self._offset + padded] = 0

    def read(self, start: int, end: int) -> Tensor:
        assert self._layer.bias is not None
        return self._layer.bias[self._offset + start : self._offset + end].to(
            self._layer.weight_format.row_dtype
        )


class WeightRows:
    """One plain weight [N, K] in a packed layer, accessed in blocks of rows.

    Blocks start at multiples of 16.
    """

    def __init__(self, layer: PackedLinear, number: int = 0) -> None:
        self.layer = layer
        self.number = number
        self.shape: tuple[int, ...] = (layer.num_outputs[number], layer.num_inputs)

    def write(self, start: int, rows: Tensor) -> None:
        """Write float[n, K] to the rows from `start` on, quantized if the layer is."""
        weight_format = self.layer.weight_format
        if not weight_format.is_quantized:
            self._put(start, to_stored(rows.to(weight_format.row_dtype), weight_format))
            return
        q, scales = quantize(rows, weight_format.bits, weight_format.group_size)
        self.write_stored(start, to_stored(q, weight_format), scales)

    def write_stored(self, start: int, stored: Tensor, scales: Tensor) -> None:
        """Write n quantized rows: bytes as `to_stored` returns them, and bfloat16[n, K / group]."""
        assert self.layer.scales is not None
        self._put(start, stored)
        self.layer.scales[self._panels(start, start + scales.shape[0])] = pack_scales(scales)

    def read(self, start: int, end: int) -> Tensor:
        """Read rows [end - start, K] as they are stored, or as float32 from a quantized layer."""
        weight_format = self.layer.weight_format
        panels = self._panels(start, end)
        stored = unpack_stored(self.layer.values[panels])[: end - start]
        rows = from_stored(stored, weight_format)[:, : self.shape[1]]
        if self.layer.scales is None:
            return rows
        scales = unpack_scales(self.layer.scales[panels])[: end - start]
        return dequantize(rows, scales, weight_format.group_size)

    def read_stored(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """The inverse of `write_stored`."""
        assert self.layer.scales is not None
        panels = self._panels(start, end)
        stored = unpack_stored(self.layer.values[panels])
        return stored[: end - start], unpack_scales(self.layer.scales[panels])[: end - start]

    def _put(self, start: int, stored: Tensor) -> None:
        panels = self._panels(start, start + stored.shape[0])
        words_of_values(self.layer.values)[panels] = words_of_rows(stored, self.layer.weight_format)

    def _panels(self, start: int, end: int) -> slice:
        """Return the panels of rows `start` to `end`; those of gate and up alternate."""
        assert start % LANES == 0
        first, last = start // LANES, count_panels(end)
        if self.layer.activation == "geglu":
            return slice(2 * first + self.number, 2 * last + self.number - 1, 2)
        offset = sum(self.layer.panels[: self.number])
        return slice(offset + first, offset + last)


class PackedEmbedding(nn.Module):
    """One table [V, D] for both input and output: ids to vectors, and vectors to logits."""

    def __init__(
        self,
        vocab_size: int,
        width: int,
        weight_format: WeightFormat,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.table = PackedLinear(width, (vocab_size,), weight_format, device=device)

    def forward(self, token_ids: Tensor) -> Tensor:
        """int64[B, T] -> [B, T, D] in the dtype of the rows that the table is multiplied with.

        Times sqrt(D), rounded to this dtype as Gemma does.
        """
        values, scales = self.table.values, self.table.scales
        width = self.table.num_inputs
        flat = token_ids.reshape(-1)
        panels, lanes = flat // LANES, flat % LANES
        picked = values[panels, :, lanes]  # (B * T, K / 2 or 4, 2 or 4)
        if scales is None:
            vectors = picked.flatten(1)[:, :width]
        else:
            weight_format = self.table.weight_format
            q = picked.flatten(1).float() - weight_format.offset
            groups = q.unflatten(1, (-1, weight_format.group_size))
            vectors = groups * scales[panels, :, lanes].float()[..., None]
            vectors = vectors.flatten(1)[:, :width].to(self.table.weight_format.row_dtype)
        scale = torch.tensor(width**0.5, dtype=vectors.dtype, device=vectors.device)
        return vectors.view(*token_ids.shape, width) * scale

    def logits(self, hidden: Tensor, vocab_range: range | None = None) -> Tensor:
        """[R, D] -> float32[R, V], or only the logits of the ids in `vocab_range`."""
        ids = vocab_range or range(self.table.num_outputs[0])
        first = ids.start // LANES
        panels = slice(first, -(-ids.stop // LANES))
        scales = self.table.scales
        out = packed_linear(
            hidden,
            self.table.values[panels],
            None if scales is None else scales[panels],
            self.table.weight_format,
            out_dtype=torch.float32,
        )
        start = ids.start - first * LANES
        return out[:, start : start + len(ids)]

    def weight_rows(self) -> dict[str, Rows]:
        return {"weight": WeightRows(self.table)}
