"""Matrix products and embedding lookups in each variant of an export.

             matrices                                   embedding table
    fp32     Gemm                                       Gather
    fp16     Gemm in float16                            Gather, then a cast
    uint8    8 bits per row, inputs quantized as well   Gather of 8 bits, one scale per row
    q4       MatMulNBits: blocks of 32 inputs           GatherBlockQuantized, the same blocks
    q4f16    the same in float16                        the same

Everything else (norms, biases, positions, the patch kernel, attention and the residual stream) is
float32 in all variants, as are the inputs and outputs of the graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import starmap
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from paligemma.checkpoints.hf import num_table_rows, pad_table
from paligemma.checkpoints.onnx.graph import Block, Graph, Weight
from paligemma.checkpoints.reader import is_finite, row_blocks
from paligemma.checkpoints.rows import StoredRows, read_all
from paligemma.errors import NumericalError

Variant = Literal["fp32", "fp16", "uint8", "q8", "q4", "q4f16"]
"""The names of transformers.js. `q8`, its default in browsers, is `uint8` under another name."""

VARIANTS: tuple[Variant, ...] = get_args(Variant)

_BLOCK = 32  # inputs that share a scale in 4-bit weights
_MIDDLE = 128  # the byte that represents 0

# M rows, N outputs, K inputs, V vocabulary, D width


class Weights:
    """The parameters of a checkpoint, as nodes of a graph."""

    def __init__(
        self, graph: Graph, parameters: Mapping[str, StoredRows], variant: Variant
    ) -> None:
        self.graph = graph
        self.parameters = parameters
        self.bits = {"uint8": 8, "q8": 8, "q4": 4, "q4f16": 4}.get(variant)
        self.is_half = variant in ("fp16", "q4f16")
        self.dtype = TensorProto.FLOAT16 if self.is_half else TensorProto.FLOAT

    def vector(self, name: str, plus: float = 0.0) -> str:
        """Return a bias or the weight of a norm, with a constant added to it."""
        values = read_all(self.parameters[name]).float() + plus
        _check(values, name)
        return self.graph.constant(values.numpy(), name)

    def tensor(self, name: str) -> str:
        """Return a parameter as float32."""
        return self._float_weight(name, TensorProto.FLOAT)

    def linear(self, x: str, name: str, bias: str | None = None) -> str:
        """Multiply float32[M, K] by the transpose of the parameter [N, K], and add a bias [N]."""
        if self.bits is None and not self.is_half:
            arguments = (x, self.tensor(name), *([bias] if bias else []))
            return self.graph.op("Gemm", *arguments, transB=1)
        if self.bits is None:
            out = self.graph.op("Gemm", self._half(x), self._float_weight(name), transB=1)
            out = self._single(out)
        elif self.bits == 8:
            out = self._linear_8_bit(x, name)
        else:
            out = self._linear_4_bit(x, name)
        return self.graph.op("Add", out, bias) if bias else out

    def embedding(self, ids: str, name: str) -> str:
        """Look up rows of a table [V, D]. It gets a row for the id V, which is `<image>`."""
        num_rows = num_table_rows(self.parameters[name].shape[0])
        if self.bits is None:
            table = self._float_weight(name, self.dtype, num_rows)
            return self._single(self.graph.op("Gather", table, ids))
        values, scales = self._quantized_table(name, num_rows)
        if self.bits == 4:
            return self.graph.op(
                "GatherBlockQuantized", values, ids, scales, block_size=_BLOCK, quantize_axis=1
            )
        rows = self.graph.op("Cast", self.graph.op("Gather", values, ids), to=TensorProto.FLOAT)
        rows = self.graph.op("Sub", rows, self.graph.constant(np.float32(_MIDDLE)))
        return self.graph.op("Mul", rows, self.graph.op("Gather", scales, ids))

    def _half(self, x: str) -> str:
        return self.graph.op("Cast", x, to=TensorProto.FLOAT16) if self.is_half else x

    def _single(self, x: str) -> str:
        return self.graph.op("Cast", x, to=TensorProto.FLOAT) if self.is_half else x

    def _float_weight(self, name: str, dtype: int | None = None, num_rows: int = 0) -> str:
        rows = self.parameters[name]
        dtype = dtype or self.dtype
        torch_dtype = torch.float16 if dtype == TensorProto.FLOAT16 else torch.float32

        def blocks() -> Iterator[Block]:
            for block in _table_blocks(rows) if num_rows else _blocks(rows):
                values = block.to(torch_dtype)
                _check(values, name)
                yield values.numpy()

        shape = (num_rows or rows.shape[0], *rows.shape[1:])
        weight = Weight(name=name, dtype=dtype, shape=shape, blocks=blocks)
        return self.graph.weight(weight)

    def _linear_8_bit(self, x: str, name: str) -> str:
        """Each output has a scale; the whole input gets one when the graph runs."""
        rows = self.parameters[name]
        num_outputs, num_inputs = rows.shape

        def transposed() -> Iterator[Block]:
            columns = np.empty((num_inputs, num_outputs), np.uint8)
            for (start, end), block in zip(row_blocks(rows.shape), _blocks(rows), strict=True):
                columns[:, start:end] = _to_8_bit(block, name)[0].T
            yield columns

        values = self.graph.weight(
            Weight(
                name=f"{name}.uint8",
                dtype=TensorProto.UINT8,
                shape=(num_inputs, num_outputs),
                blocks=transposed,
            )
        )
        scales = np.concatenate([_to_8_bit(block, name)[1] for block in _blocks(rows)])
        quantized, x_scale, x_zero = self.graph.ops("DynamicQuantizeLinear", x, num_outputs=3)
        zero = self.graph.constant(np.uint8(_MIDDLE))
        out = self.graph.op("MatMulInteger", quantized, values, x_zero, zero)
        scale = self.graph.op("Mul", x_scale, self.graph.constant(scales, f"{name}.scales"))
        return self.graph.op("Mul", self.graph.op("Cast", out, to=TensorProto.FLOAT), scale)

    def _linear_4_bit(self, x: str, name: str) -> str:
        rows = self.parameters[name]
        num_outputs, num_inputs = rows.shape
        num_blocks = -(-num_inputs // _BLOCK)
        values = Weight(
            name=f"{name}.q4",
            dtype=TensorProto.UINT8,
            shape=(num_outputs, num_blocks, _BLOCK // 2),
            blocks=lambda: (_pack(_to_4_bit(block, name)[0] + 8) for block in _blocks(rows)),
        )
        half = np.float16 if self.is_half else np.float32
        scales = Weight(
            name=f"{name}.scales",
            dtype=self.dtype,
            shape=(num_outputs * num_blocks,),
            blocks=lambda: (_to_4_bit(block, name)[1].astype(half) for block in _blocks(rows)),
        )
        out = self.graph.op(
            "MatMulNBits",
            self._half(x),
            self.graph.weight(values),
            self.graph.weight(scales),
            K=num_inputs,
            N=num_outputs,
            bits=4,
            block_size=_BLOCK,
        )
        return self._single(out)

    def _quantized_table(self, name: str, num_rows: int) -> tuple[str, str]:
        rows = self.parameters[name]
        width = rows.shape[1]
        to_bits = _to_8_bit if self.bits == 8 else _to_4_bit

        def values() -> Iterator[Block]:
            for block in _table_blocks(rows):
                quantized = to_bits(block, name)[0]
                yield quantized if self.bits == 8 else _pack(quantized[:, :width])

        def scales() -> Iterator[Block]:
            return (to_bits(block, name)[1] for block in _table_blocks(rows))

        num_scales = 1 if self.bits == 8 else -(-width // _BLOCK)
        return (
            self.graph.weight(
                Weight(
                    name=f"{name}.quantized",
                    dtype=TensorProto.UINT8 if self.bits == 8 else TensorProto.INT4,
                    shape=(num_rows, width),
                    blocks=values,
                )
            ),
            self.graph.weight(
                Weight(
                    name=f"{name}.scales",
                    dtype=TensorProto.FLOAT,
                    shape=(num_rows, num_scales),
                    blocks=scales,
                )
            ),
        )


def _blocks(rows: StoredRows) -> Iterable[Tensor]:
    return starmap(rows.read, row_blocks(rows.shape))


def _table_blocks(rows: StoredRows) -> Iterator[Tensor]:
    return pad_table(_blocks(rows))


def _check(values: Tensor, name: str) -> None:
    if not is_finite(values):
        raise NumericalError(
            f"{name} contains NaN, infinity, or values too large for {values.dtype}. Export "
            "fp32 if the weights are float32; otherwise they are damaged."
        )


def _to_8_bit(block: Tensor, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return bytes [N, K] and scales [N]: weight = (byte - 128) * scale."""
    values = block.float()
    _check(values, name)
    scales = values.abs().amax(dim=1) / 127
    quantized = (values / _or_one(scales)[:, None]).round() + _MIDDLE
    return quantized.to(torch.uint8).numpy(), scales.numpy()


def _to_4_bit(block: Tensor, name: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return integers from -8 to 7 and scales, each for 32 inputs: weight = integer * scale.

    The value of a block that is farthest from 0 becomes -8, so scales may be negative. The last
    block is filled with zeros.
    """
    values = block.float()
    _check(values, name)
    width = values.shape[1]
    values = torch.nn.functional.pad(values, (0, -width % _BLOCK)).unflatten(1, (-1, _BLOCK))
    farthest = values.gather(2, values.abs().argmax(dim=2, keepdim=True))
    scales = farthest / -8
    quantized = (values / _or_one(scales)).round().clamp(-8, 7)
    return quantized.to(torch.int8).flatten(1).numpy(), scales[:, :, 0].numpy()


def _or_one(scales: Tensor) -> Tensor:
    return scales.where(scales != 0, 1.0)


def _pack(values: NDArray[Any]) -> NDArray[Any]:
    """Two 4-bit integers per byte, the first in the low half."""
    nibbles = values.astype(np.uint8) & 15
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4
