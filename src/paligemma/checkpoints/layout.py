"""Where our parameters are in the tensors of another format: one description for both directions.

big_vision, for example, stores the key and value weights of all layers in one tensor
[L, 2, K, D, H]. In our model each is a matrix [K * H, D]:

    parts["decoder.blocks.3.attention.v_proj.weight"] = Part(
        "params/llm/layers/attn/kv_einsum/w", "k d h -> (k h) d", index=(3, 1)
    )

Reading takes the block `tensor[3, 1]` and rearranges it; writing rearranges in the opposite
direction; and the shape of the stored tensor follows from the shapes of our parameters. Patterns
are in the notation of einops (Rogozhnikov, ICLR 2022): axes in parentheses are joined.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from paligemma.checkpoints.reader import row_blocks, shorten
from paligemma.checkpoints.rows import StoredRows, parameter_shapes, read_all
from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError


@dataclass(frozen=True)
class Part:
    """Where one of our parameters is: `rearrange(tensor[index][rows], pattern)[pick]`."""

    tensor: str
    """The name of the stored tensor."""
    pattern: str = ""
    """The axes of the block and of our parameter, as in "n d h -> (n h) d". Empty: the same."""
    index: tuple[int, ...] = ()
    """The block's place along the first axes of the tensor, such as the layer."""
    rows: tuple[int, int] | None = None
    """The rows of the block that are used. None: all."""
    pick: int | None = None
    """Which entry along the first axis of the rearranged block, where parameters alternate."""


class TensorStore(Protocol):
    """The tensors in the files of another format, by name, decoded to floating point."""

    @property
    def path(self) -> Path:
        """The file or folder, for errors."""

    @property
    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that `read` returns."""

    def read(self, name: str, index: tuple[int, ...], start: int, end: int) -> Tensor:
        """Read rows `start` to `end` of the block `tensor[index]`."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parts of all parameters, and the sizes of the axes that patterns join or split."""

    parts: Mapping[str, Part]
    sizes: Mapping[str, int]

    @cached_property
    def tensors(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the stored tensors, with our parameters in them in order."""
        by_tensor: dict[str, list[str]] = {}
        for name in sorted(self.parts, key=self._position):
            by_tensor.setdefault(self.parts[name].tensor, []).append(name)
        return {tensor: tuple(names) for tensor, names in by_tensor.items()}

    def shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the stored tensors, given those of our parameters."""
        stored = {}
        for tensor, names in self.tensors.items():
            part = self.parts[names[-1]]
            block = self._block_shape(part, shapes[names[-1]])
            if part.rows is not None:
                block = (part.rows[1], *block[1:])
            stored[tensor] = (*(i + 1 for i in part.index), *block)
        return stored

    def to_ours(self, parameter: str, block: Tensor) -> Tensor:
        """Return our parameter from its block `tensor[index][rows]`, as a view if possible."""
        part = self.parts[parameter]
        values = rearrange(block, part.pattern, **self._sizes(part)) if part.pattern else block
        return values if part.pick is None else values[part.pick]

    def blocks(
        self, tensor: str, parameters: Mapping[str, StoredRows], dtype: torch.dtype
    ) -> Iterator[Tensor]:
        """Yield the values of a stored tensor in order, in pieces of at most one matrix."""
        groups: dict[object, list[str]] = {}
        for name in self.tensors[tensor]:
            groups.setdefault((self.parts[name].index, self.parts[name].rows), []).append(name)
        for names in groups.values():
            part = self.parts[names[0]]
            if not part.pattern:
                rows = parameters[names[0]]
                for start, end in row_blocks(rows.shape):
                    yield rows.read(start, end).to(dtype)
                continue
            picks = [read_all(parameters[name]).to(dtype) for name in names]
            values = picks[0] if part.pick is None else torch.stack(picks)
            yield rearrange(values, _reversed(part.pattern), **self._sizes(part))

    def _block_shape(self, part: Part, shape: Sequence[int]) -> tuple[int, ...]:
        if not part.pattern:
            return tuple(shape)
        values = torch.empty(shape if part.pick is None else (part.pick + 1, *shape), device="meta")
        return tuple(rearrange(values, _reversed(part.pattern), **self._sizes(part)).shape)

    def _sizes(self, part: Part) -> dict[str, int]:
        axes = re.findall(r"\w+", part.pattern)
        return {axis: self.sizes[axis] for axis in axes if axis in self.sizes}

    def _position(self, name: str) -> tuple[object, ...]:
        part = self.parts[name]
        return part.tensor, part.index, part.rows or (0, 0), part.pick or 0


class PartRows:
    """A parameter of ours, read from the tensors of another format."""

    def __init__(
        self, parameter: str, shape: tuple[int, ...], layout: Layout, store: TensorStore
    ) -> None:
        part = layout.parts[parameter]
        self.name = part.tensor + "".join(f"[{i}]" for i in part.index)
        self.shape = shape
        self.dtype = store.dtype(part.tensor)
        self._parameter, self._part, self._layout, self._store = parameter, part, layout, store
        self._whole: Tensor | None = None

    def read(self, start: int, end: int) -> Tensor:
        part = self._part
        first, last = part.rows or (0, self._store.shape(part.tensor)[len(part.index)])
        if not part.pattern:
            return self._store.read(part.tensor, part.index, first + start, first + end)
        if self._whole is None:
            block = self._store.read(part.tensor, part.index, first, last)
            # Rearranged at once: rows of a transposed matrix, one block at a time, take six times
            # as long.
            self._whole = self._layout.to_ours(self._parameter, block).contiguous()
        rows = self._whole[start:end]
        if end == self.shape[0]:
            self._whole = None  # blocks are read in order; the next parameter needs the memory
        return rows


def open_parameters(
    layout: Layout, config: PaliGemmaConfig, store: TensorStore
) -> dict[str, StoredRows]:
    """Return all parameters of the model in a store.

    Raises CheckpointError, which names the tensors, if one is missing, unknown or of the wrong
    shape.
    """
    shapes = parameter_shapes(config)
    check_tensors(store, layout.shapes(shapes))
    return {name: PartRows(name, shape, layout, store) for name, shape in shapes.items()}


def check_tensors(store: TensorStore, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless a store has exactly these tensors, in these shapes."""
    names = set(store.names)
    problems = []
    if missing := sorted(expected.keys() - names):
        problems.append(f"missing: {shorten(missing)}")
    if unknown := sorted(names - expected.keys()):
        problems.append(f"unknown: {shorten(unknown)}")
    wrong = [
        f"{name} is {store.shape(name)}, expected {shape}"
        for name, shape in expected.items()
        if name in names and store.shape(name) != shape
    ]
    if wrong:
        problems.append(shorten(wrong))
    if problems:
        raise CheckpointError(
            f"The tensors in {store.path} are not those of a PaliGemma with its config. "
            + ". ".join(problems)
            + ". Download or convert the checkpoint again."
        )


def _reversed(pattern: str) -> str:
    """
    >>> _reversed("n d h -> (n h) d")
    '(n h) d -> n d h'
    """
    stored, ours = pattern.split(" -> ")
    return f"{ours} -> {stored}"
