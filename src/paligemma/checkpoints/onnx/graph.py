"""Build an ONNX graph node by node, and write it to a file with its weights.

A protocol buffer may have at most 2 GB. Below that, the weights are inside the file; otherwise they
are next to it, in `NAME.onnx_data`, `NAME.onnx_data_1` and so on, as transformers.js expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, helper

OPSET = 17
"""The oldest with LayerNormalization. GPU backends know operators of newer sets less often."""
_IR_VERSION = 10  # the first with 4-bit tensors
_DOMAIN = "com.microsoft"  # of operators that onnxruntime adds

MAX_FILE_BYTES = 2_000_000_000
_ALIGNMENT = 4096  # of weights in data files, so that they can be mapped into memory

Block = NDArray[Any]
Dims = Sequence[int | str]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor that is written block by block. `dtype` is one of TensorProto.DataType."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Block]]

    @property
    def num_bytes(self) -> int:
        bits = 4 if self.dtype == TensorProto.INT4 else 8 * _item_size(self.dtype)
        return (prod(self.shape) * bits + 7) // 8

    def header(self) -> TensorProto:
        return TensorProto(name=self.name, data_type=self.dtype, dims=self.shape)


class Graph:
    """A graph in the making. Values are represented by their names.

    >>> graph = Graph("double")
    >>> x = graph.input("x", TensorProto.FLOAT, ["n"])
    >>> graph.output("y", graph.op("Mul", x, graph.constant(np.float32(2))), ["n"])
    >>> graph.write(Path("double.onnx"))  # doctest: +SKIP
    0
    """

    def __init__(self, name: str) -> None:
        self._proto = GraphProto(name=name)
        self._weights: dict[str, Weight] = {}
        self._outputs: dict[object, tuple[str, ...]] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def input(self, name: str, dtype: int, dims: Dims) -> str:
        self._proto.input.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def output(self, name: str, value: str, dims: Dims) -> None:
        """Declare a float32 output and its shape."""
        self._proto.node.append(helper.make_node("Identity", [value], [name]))
        self._proto.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return its output; for equal nodes, the output of the first."""
        return self.ops(op_type, *inputs, num_outputs=1, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str, num_outputs: int, **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs."""
        key = (op_type, inputs, num_outputs, repr(sorted(attributes.items())))
        if key not in self._outputs:
            name = f"{op_type}_{len(self._proto.node)}"
            outputs = (name,) if num_outputs == 1 else tuple(f"{name}_{i}" for i in range(3))
            domain = _DOMAIN if op_type in ("MatMulNBits", "GatherBlockQuantized") else ""
            node: NodeProto = helper.make_node(
                op_type, inputs, outputs[:num_outputs], name=name, domain=domain, **attributes
            )
            self._proto.node.append(node)
            self._outputs[key] = outputs[:num_outputs]
        return self._outputs[key]

    def constant(self, values: NDArray[Any] | np.generic | Sequence[int], name: str = "") -> str:
        """Add a small tensor: an array, or int64 for a list of Python ints."""
        array = np.asarray(values)
        key = (str(array.dtype), array.shape, array.tobytes())
        if name or key not in self._constants:
            name = name or f"constant_{len(self._constants)}"
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
            self._proto.initializer.append(
                TensorProto(name=name, data_type=dtype, dims=array.shape, raw_data=array.tobytes())
            )
            self._constants[key] = name
        return name or self._constants[key]

    def weight(self, weight: Weight) -> str:
        """Add a large tensor, which is read when the graph is written."""
        self._weights[weight.name] = weight
        return weight.name

    def write(self, path: Path) -> int:
        """Write the graph to `path`; return the number of data files that its weights need."""
        model = helper.make_model(
            GraphProto(),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(_DOMAIN, 1)],
            ir_version=_IR_VERSION,
            producer_name="paligemma",
        )
        num_bytes = sum(weight.num_bytes + 1024 for weight in self._weights.values())
        if num_bytes + self._proto.ByteSize() > MAX_FILE_BYTES:
            return self._write_with_data_files(path, model)
        self._write_one_file(path, model)
        return 0

    def _write_one_file(self, path: Path, model: ModelProto) -> None:
        """Serialize the model by hand, because protobuf would need all weights in memory.

        A message is the concatenation of its fields in any order: here the graph is the model's
        last field, the weights the graph's last, and the raw data each weight's last.
        """
        headers = {
            name: _field_header(GraphProto, "initializer", len(header) + weight.num_bytes) + header
            for name, weight in self._weights.items()
            for header in (
                weight.header().SerializeToString()
                + _field_header(TensorProto, "raw_data", weight.num_bytes),
            )
        }
        size = self._proto.ByteSize()
        size += sum(len(headers[w.name]) + w.num_bytes for w in self._weights.values())
        model.ClearField("graph")
        with path.open("xb") as file:
            file.write(model.SerializeToString() + _field_header(ModelProto, "graph", size))
            file.write(self._proto.SerializeToString())
            for name, weight in self._weights.items():
                file.write(headers[name])
                _write_blocks(file, weight)

    def _write_with_data_files(self, path: Path, model: ModelProto) -> int:
        files: list[list[Weight]] = [[]]
        size = 0
        for weight in self._weights.values():
            if files[-1] and size + weight.num_bytes > MAX_FILE_BYTES:
                files.append([])
                size = 0
            files[-1].append(weight)
            size += _aligned(weight.num_bytes)
        model.graph.CopyFrom(self._proto)
        for number, weights in enumerate(files):
            data_path = path.with_name(f"{path.name}_data{f'_{number}' if number else ''}")
            with data_path.open("xb") as file:
                for weight in weights:
                    file.write(bytes(_aligned(file.tell()) - file.tell()))
                    location = {
                        "location": data_path.name,
                        "offset": str(file.tell()),
                        "length": str(weight.num_bytes),
                    }
                    header = weight.header()
                    header.data_location = TensorProto.EXTERNAL
                    header.external_data.extend(
                        StringStringEntryProto(key=key, value=value)
                        for key, value in location.items()
                    )
                    model.graph.initializer.append(header)
                    _write_blocks(file, weight)
        path.write_bytes(model.SerializeToString())
        return len(files)


def _write_blocks(file: BinaryIO, weight: Weight) -> None:
    start = file.tell()
    for block in weight.blocks():
        file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    assert file.tell() - start == weight.num_bytes, weight.name


def _item_size(dtype: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(dtype).itemsize)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _field_header(message: Any, field: str, num_bytes: int) -> bytes:
    """Return the tag and the length that precede a field of bytes or a nested message."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | 2) + _varint(num_bytes)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
