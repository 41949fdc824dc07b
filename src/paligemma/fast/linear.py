"""Linear layers on packed weights: what `accelerate` puts in the place of `nn.Linear`.

A layer may hold several weights side by side (query, key and value; gate and up), so that one
pass over the input serves all. Weights come and go in rows, a few at a time: neither packing nor
quantizing needs room for a second copy.
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
    """[..., K] -> [..., N]; from several weights side by side to as many slices, by `split`.

    Each weight is padded to a multiple of 16 outputs. With the activation "geglu" there are two
    weights of N outputs, gate and up, whose panels take turns; the result is gelu(gate) * up.
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
        dtype = torch.bfloat16 if weight_format.name == "bfloat16" else torch.uint8
        shape = weight_format.values_shape(total, num_inputs)
        self.register_buffer("values", torch.empty(shape, dtype=dtype, device=device))
        scales = None
        if weight_format.name != "bfloat16":
            shape = weight_format.scales_shape(total, num_inputs)
            scales = torch.empty(shape, dtype=torch.bfloat16, device=device)
        self.register_buffer("scales", scales)
        self.bias: Tensor | None
        wide = torch.zeros(total * LANES, dtype=torch.float32, device=device) if bias else None
        self.register_buffer("bias", wide)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of a single weight (or of gate and up together), dense."""
        return self.padded(x)[..., : self.num_outputs[0]].contiguous()

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of each weight: slices of one tensor."""
        parts = self.padded(x).split([panels * LANES for panels in self.panels], dim=-1)
        return tuple(part[..., :n] for part, n in zip(parts, self.num_outputs, strict=True))

    def padded(self, x: Tensor) -> Tensor:
        return packed_linear(
            x,
            self.values,
            self.scales,
            self.weight_format,
            bias=self.bias,
            activation=self.activation,
        )

    def described(self) -> Projection:
        """For kernels that do more than one product in a call."""
        return projection(
            self.values, self.scales, self.weight_format, self.num_inputs, self.activation
        )


class Rows(Protocol):
    """A parameter of the plain model, wherever it is kept: written and read in blocks of rows."""

    shape: tuple[int, ...]

    def write(self, start: int, rows: Tensor) -> None:
        """Into the rows from `start` on, which is a multiple of 16."""

    def read(self, start: int, end: int) -> Tensor:
        """The rows from `start`, a multiple of 16, up to `end`."""


class ParameterRows:
    """A parameter that is kept as it is."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.shape = tuple(parameter.shape)

    def write(self, start: int, rows: Tensor) -> None:
        with torch.no_grad():  # raises the version counter, which `.data` would not
            self.parameter[start : start + rows.shape[0]] = rows

    def read(self, start: int, end: int) -> Tensor:
        return self.parameter.detach()[start:end]


class BiasRows:
    """A bias [N] inside a packed layer, where it is float32."""

    def __init__(self, layer: PackedLinear, number: int = 0) -> None:
        self.shape: tuple[int, ...] = (layer.num_outputs[number],)
        self._layer = layer
        self._offset = sum(layer.panels[:number]) * LANES

    def write(self, start: int, rows: Tensor) -> None:
        assert self._layer.bias is not None
        self._layer.bias[self._offset + start : self._offset + start + rows.shape[0]] = rows

    def read(self, start: int, end: int) -> Tensor:
        assert self._layer.bias is not None
        return self._layer.bias[self._offset + start : self._offset + end].to(torch.bfloat16)


class WeightRows:
    """One plain weight [N, K] inside a packed layer, written and read in blocks of rows.

    Blocks begin at multiples of 16.
    """

    def __init__(self, layer: PackedLinear, number: int = 0) -> None:
        self.layer = layer
        self.number = number
        self.shape: tuple[int, ...] = (layer.num_outputs[number], layer.num_inputs)

    def write(self, start: int, rows: Tensor) -> None:
        """float[n, K] into the rows from `start` on, quantized if the layer is."""
        weight_format = self.layer.weight_format
        if weight_format.name == "bfloat16":
            self._put(start, to_stored(rows.to(torch.bfloat16), weight_format))
            return
        q, scales = quantize(rows, weight_format.bits, weight_format.group_size)
        self.write_stored(start, to_stored(q, weight_format), scales)

    def write_stored(self, start: int, stored: Tensor, scales: Tensor) -> None:
        """Bytes of n quantized rows, as `to_stored` gives them, and bfloat16[n, K / group]."""
        assert self.layer.scales is not None
        self._put(start, stored)
        self.layer.scales[self._places(start, start + scales.shape[0])] = pack_scales(scales)

    def read(self, start: int, end: int) -> Tensor:
        """bfloat16[end - start, K], or float32 from a quantized layer."""
        weight_format = self.layer.weight_format
        places = self._places(start, end)
        stored = unpack_stored(self.layer.values[places])[: end - start]
        rows = from_stored(stored, weight_format)[:, : self.shape[1]]
        if self.layer.scales is None:
            return rows
        scales = unpack_scales(self.layer.scales[places])[: end - start]
        return dequantize(rows, scales, weight_format.group_size)

    def read_stored(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """What `write_stored` takes."""
        assert self.layer.scales is not None
        places = self._places(start, end)
        stored = unpack_stored(self.layer.values[places])
        return stored[: end - start], unpack_scales(self.layer.scales[places])[: end - start]

    def _put(self, start: int, stored: Tensor) -> None:
        places = self._places(start, start + stored.shape[0])
        words_of_values(self.layer.values)[places] = words_of_rows(stored, self.layer.weight_format)

    def _places(self, start: int, end: int) -> slice:
        """The panels of rows `start` to `end`; those of gate and up take turns."""
        assert start % LANES == 0
        first, last = start // LANES, count_panels(end)
        if self.layer.activation == "geglu":
            return slice(2 * first + self.number, 2 * last + self.number - 1, 2)
        offset = sum(self.layer.panels[: self.number])
        return slice(offset + first, offset + last)


class PackedEmbedding(nn.Module):
    """Ids to vectors, and vectors to logits over the ids, by one table [V, D]."""

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
        """int64[B, T] -> bfloat16[B, T, D], times sqrt(D) rounded to bfloat16 as Gemma does."""
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
            vectors = vectors.flatten(1)[:, :width].to(torch.bfloat16)
        scale = torch.tensor(width**0.5, dtype=torch.bfloat16, device=vectors.device)
        return vectors.view(*token_ids.shape, width) * scale

    def logits(self, hidden: Tensor, vocab_range: range | None = None) -> Tensor:
        """[R, D] -> float32[R, V]; of the ids in `vocab_range` only, when one is given."""
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
