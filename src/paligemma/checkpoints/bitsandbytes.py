"""Read weights that bitsandbytes quantized: NF4, FP4 and int8, as transformers stores them.

Next to the weight [N, K] of a 4-bit layer `X`:

    X.weight                               two values per byte, the first in the high half
    X.weight.absmax                        a scale per block of 64 values
    X.weight.quant_map                     float32[16], the codebook
    X.weight.quant_state.bitsandbytes__nf4 JSON: block size, dtype and shape of the weight

With double quantization, scales are bytes, with `nested_quant_map` float32[256] and a scale per
256 of them in `nested_absmax`. An 8-bit layer has `X.weight` int8[N, K] and `X.SCB` float32[N]:
the largest absolute value of each row, which is 127.

Values are computed in the order of bitsandbytes' own operations, so they are equal in every bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, TypeGuard

import torch
from torch import Tensor

from paligemma.checkpoints.reader import STORED_DTYPES, WeightFiles
from paligemma.errors import CheckpointError
from paligemma.fast.frozen_linear import NF4_BLOCK, nf4_codebook

STATE = ".quant_state.bitsandbytes__"
"""The name of a weight's state, without the type, follows that of the weight."""

_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_STATE_BYTES = 4096
_INT8_STEP = 7.874015718698502e-3  # 1 / 127


@dataclass(frozen=True, kw_only=True)
class _State:
    quant_type: str
    block_size: int
    dtype: torch.dtype
    nested_block_size: int | None  # with double quantization
    nested_offset: float


class FourBitRows:
    """A 4-bit weight. Raises CheckpointError if its tensors do not fit together."""

    def __init__(
        self, files: WeightFiles, names: Mapping[str, str], shape: tuple[int, ...]
    ) -> None:
        """`names` are those of the tensors, by what follows the weight's name."""
        self._files, self._names = files, dict(names)
        self.name, self.shape = names[""], shape
        self.scales_name = names.get(".absmax", "")
        self._state = state = self._read_state()
        self.dtype = state.dtype
        count = prod(shape)
        num_blocks = -(-count // state.block_size)
        _check_bytes(files, names[""], (count + 1) // 2)
        codebook = self._read_table(".quant_map", 16)
        codes = torch.arange(256)
        pairs = codebook[torch.stack([codes >> 4, codes & 15], dim=1)]
        self._pairs = pairs.view(torch.float64)[:, 0]
        if state.nested_block_size is None:
            self._check_tensor(".absmax", "F32", num_blocks)
        else:
            self._check_tensor(".absmax", "U8", num_blocks)
            num_scales = -(-num_blocks // state.nested_block_size)
            self._check_tensor(".nested_absmax", "F32", num_scales)
            self._scale_codebook = self._read_table(".nested_quant_map", 256)
        is_nf4 = state.quant_type == "nf4" and torch.equal(codebook, nf4_codebook())
        self.is_nf4 = is_nf4 and state.block_size == NF4_BLOCK and shape[-1] % NF4_BLOCK == 0
        """Whether `read_nf4` works: the codebook and blocks are those of `FrozenLinear`."""

    @property
    def scheme(self) -> str:
        nested = "" if self._state.nested_block_size is None else ", double-quantized"
        return f"bitsandbytes {self._state.quant_type}{nested}"

    def read(self, start: int, end: int) -> Tensor:
        size, row_size = self._state.block_size, prod(self.shape[1:])
        first, last = start * row_size, end * row_size
        blocks = first // size, -(-last // size)
        count = min(blocks[1] * size, prod(self.shape)) - blocks[0] * size
        first_byte = blocks[0] * size // 2
        content = self._files.read_bytes(self.name, first_byte, first_byte + (count + 1) // 2)
        values = self._pairs.index_select(0, content.int()).view(torch.float32)
        padded = values.new_zeros((blocks[1] - blocks[0]) * size)
        padded[: values.shape[0]] = values
        scaled = (padded.view(-1, size) * self._read_scales(*blocks)[:, None]).flatten()
        rows = scaled[first - blocks[0] * size :][: last - first]
        return rows.to(self.dtype).view(end - start, *self.shape[1:])

    def read_nf4(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Read rows as `FrozenLinear` stores them: codes uint8[n, K / 2], float32[n, K / 64]."""
        num_inputs = self.shape[1]
        content = self._files.read_bytes(self.name, start * num_inputs // 2, end * num_inputs // 2)
        codes = (content >> 4 | content << 4).view(end - start, -1)
        num_blocks = num_inputs // NF4_BLOCK
        return codes, self._read_scales(start * num_blocks, end * num_blocks).view(
            end - start, num_blocks
        )

    def _read_scales(self, start: int, end: int) -> Tensor:
        """Read the scales of the blocks from `start` up to `end`: float32."""
        if self._state.nested_block_size is None:
            content = self._files.read_bytes(self._names[".absmax"], start * 4, end * 4)
            return content.view(torch.float32)
        codes = self._files.read_bytes(self._names[".absmax"], start, end)
        size = self._state.nested_block_size
        first, last = start // size, -(-end // size)
        content = self._files.read_bytes(self._names[".nested_absmax"], first * 4, last * 4)
        index = torch.arange(start, end) // size - first
        scales = self._scale_codebook[codes.int()] * content.view(torch.float32)[index]
        return scales + self._state.nested_offset

    def _read_state(self) -> _State:
        role = next((role for role in self._names if role.startswith(STATE)), None)
        if role is None:
            raise CheckpointError(
                f"{self.name} has no {STATE.strip('.')}... tensor next to it, which describes it"
            )
        name, quant_type = self._names[role], role.removeprefix(STATE)
        stored = self._files.tensors[name]
        if stored.dtype_code != "U8" or not 2 <= stored.num_bytes <= _MAX_STATE_BYTES:
            raise CheckpointError(
                f"{name} is {stored.dtype_code} of {stored.num_bytes} bytes, expected U8 of up to "
                f"{_MAX_STATE_BYTES}"
            )
        content = self._files.read_bytes(name, 0, stored.num_bytes)
        try:
            state = json.loads(bytes(content.numpy()))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{name} is not valid JSON") from error
        return _checked_state(name, state, quant_type, self.shape, self._names)

    def _read_table(self, role: str, size: int) -> Tensor:
        self._check_tensor(role, "F32", size)
        table = self._files.read_bytes(self._names[role], 0, 4 * size).view(torch.float32)
        if not bool((table.abs() <= 1).all()):  # false for NaN, too
            raise CheckpointError(f"{self._names[role]} has values beyond -1 to 1")
        return table

    def _check_tensor(self, role: str, dtype_code: str, size: int) -> None:
        if role not in self._names:
            raise CheckpointError(f"{self.name} has no {role} next to it")
        stored = self._files.tensors[self._names[role]]
        if stored.dtype_code != dtype_code or prod(stored.shape) != size:
            raise CheckpointError(
                f"{self._names[role]} is {stored.dtype_code} {stored.shape}, expected "
                f"{dtype_code} ({size},)"
            )


def is_nf4(rows: object) -> TypeGuard[FourBitRows]:
    """Return whether `FrozenLinear` can hold the bits of a weight."""
    return isinstance(rows, FourBitRows) and rows.is_nf4


class EightBitRows:
    """An int8 weight with a scale per row. Raises CheckpointError as `FourBitRows` does."""

    scheme = "bitsandbytes int8"

    def __init__(
        self,
        files: WeightFiles,
        names: Mapping[str, str],
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        self.name, self.shape, self.dtype = names[""], shape, dtype
        self._files, self._scales = files, names.get(".SCB", "")
        if not self._scales:
            raise CheckpointError(f"{self.name} has no scales SCB next to it")
        for name, code, expected in ((self.name, "I8", shape), (self._scales, "F32", shape[:1])):
            stored = files.tensors[name]
            if (stored.dtype_code, stored.shape) != (code, expected):
                raise CheckpointError(
                    f"{name} is {stored.dtype_code} {stored.shape}, expected {code} {expected}"
                )
        if "_format" in names:
            order = names["_format"]
            stored = files.tensors[order]
            if stored.num_bytes != 1 or files.read_bytes(order, 0, 1).item() != 0:
                raise CheckpointError(
                    f"{order} names an order of weights other than rows (0), which only old "
                    "versions of bitsandbytes wrote; load and save the model with a new one"
                )

    def read(self, start: int, end: int) -> Tensor:
        q = self._files.read_rows(self.name, start, end)
        scales = self._files.read_rows(self._scales, start, end)
        return (q * scales[:, None] * _INT8_STEP).to(self.dtype)


def _checked_state(
    name: str, state: Any, quant_type: str, shape: tuple[int, ...], names: Mapping[str, str]
) -> _State:
    if not isinstance(state, dict):
        raise CheckpointError(f"{name} is not a JSON object")
    is_nested = ".nested_absmax" in names or ".nested_quant_map" in names
    expected: dict[str, tuple[object, ...]] = {
        "quant_type": ({"nf4": "nf4", "fp4": "fp4"}.get(quant_type),),
        "shape": (list(shape),),
        "dtype": tuple(_DTYPES),
        "blocksize": _BLOCK_SIZES,
    }
    if is_nested:
        expected |= {"nested_blocksize": _BLOCK_SIZES, "nested_dtype": ("float32",)}
    for key, values in expected.items():
        value = state.get(key)
        if isinstance(value, bool) or value is None or value not in values:
            raise CheckpointError(
                f"{name} says {key} {_shown(value)}, expected {' or '.join(map(str, values))}"
            )
    offset = state.get("nested_offset", None if is_nested else 0.0)
    if not isinstance(offset, int | float) or not isfinite(offset):
        raise CheckpointError(f"{name} says nested_offset {_shown(offset)}, expected a number")
    return _State(
        quant_type=quant_type,
        block_size=state["blocksize"],
        dtype=_DTYPES[state["dtype"]],
        nested_block_size=state["nested_blocksize"] if is_nested else None,
        nested_offset=offset,
    )


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _check_bytes(files: WeightFiles, name: str, num_bytes: int) -> None:
    """Raise unless a packed weight, of whichever dtype, has this many bytes."""
    stored = files.tensors[name]
    if stored.num_bytes != num_bytes or stored.dtype_code not in STORED_DTYPES:
        raise CheckpointError(
            f"{name} is {stored.dtype_code} with {stored.num_bytes} bytes, expected {num_bytes} "
            "bytes of two values each"
        )
