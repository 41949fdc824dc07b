"""Write safetensors files, a block of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paligemma.checkpoints.reader import STORED_DTYPES, is_finite

_CODES = {dtype: code for code, dtype in STORED_DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorToWrite:
    """A tensor to write. `blocks` are its rows in order, computed while they are written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Iterable[Tensor]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_weight_file(
    path: Path, tensors: Sequence[TensorToWrite], metadata: Mapping[str, str] | None = None
) -> list[str]:
    """Write a safetensors file, block by block; return the names of tensors that are not finite.

    Unlike the library's own writer, it needs no second copy of the weights to change dtypes, and
    the mode of the file follows the umask.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # values start at a multiple of 8 bytes
    not_finite = []
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            finite, start = True, file.tell()
            for block in tensor.blocks:
                values = block.to(device="cpu", dtype=tensor.dtype).contiguous()
                finite &= is_finite(values)
                file.write(values.view(-1).view(torch.uint8).numpy().data)
            assert file.tell() - start == tensor.num_bytes, tensor.name
            if not finite:
                not_finite.append(tensor.name)
    return not_finite
