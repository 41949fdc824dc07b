"""Keys and values of past tokens, in memory that is allocated once.

`KVCache` is for a fixed batch: in each step all rows write to slot `length`, and the slots of pads
are never valid.

`SlotCache` is for rows that come and go: every running row has one slot and its own length.
Positions 0 to length - 1 of a slot are the row's real tokens, without pads or gaps; everything
beyond is stale and never read.

    slot 0   a a a a a . . .     lengths   5 3 6 0     num_rows  3
    slot 1   b b b . . . . .                               length    6
    slot 2   c c c c c c . .
    slot 3   . . . . . . . .     free

Rows occupy slots 0 to num_rows - 1, so a decode step reads a view: these slots up to `length`, the
length of the longest row. Nothing is gathered; when a row is removed, the last row takes its slot.
Fast attention may rely on this: `keys[layer]` and `values[layer]` are contiguous [R, K, S, H] and
never move, `lengths` is int64[R] on the same device, slot b belongs to row b of the step, and all
values beyond a row's length are finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from paligemma.config import DecoderConfig

# L layers, B batch, K key/value heads, S slots, H head dim


class Cache(Protocol):
    """The interface of a cache that the model uses."""

    @property
    def valid(self) -> Tensor:
        """bool[B, at least `length`]: True where a slot contains a real token."""

    @property
    def positions(self) -> Tensor:
        """int64[B, at least `length`]: the position of the token in a valid slot."""

    @property
    def next_position(self) -> Tensor:
        """int64[B]: the position of each row's next token."""

    @property
    def length(self) -> int:
        """Number of slots that the tokens claimed last can see."""

    def claim(self, input_mask: Tensor, positions: Tensor) -> None:
        """Reserve slots for T tokens per row, bool[B, T] real or pad, at int64[B, T] positions."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, K, T, H] of the tokens claimed last; return all visible [B, K, S, H]."""

    keys: list[Tensor]
    """[B, K, S, H] per layer, for kernels that write to the memory directly."""
    values: list[Tensor]

    @property
    def claimed(self) -> Tensor:
        """int64[B, T]: the slots of the tokens claimed last."""


class KVCache:
    """A cache of `num_slots` positions for each of `batch_size` rows."""

    def __init__(
        self,
        config: DecoderConfig,
        batch_size: int,
        num_slots: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch_size, config.num_kv_heads, num_slots, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.depth)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.depth)]
        self.valid = torch.zeros(batch_size, num_slots, dtype=torch.bool, device=device)
        self.positions = torch.zeros(batch_size, num_slots, dtype=torch.long, device=device)
        self.next_position = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.length = 0
        self._claimed_from = 0

    @property
    def num_slots(self) -> int:
        return self.valid.shape[1]

    def claim(self, input_mask: Tensor, positions: Tensor) -> None:
        """Reserve the next T slots for tokens, bool[B, T] real or pad, at int64[B, T] positions.

        Raises IndexError when the cache is too small.
        """
        num_new = input_mask.shape[1]
        end = self.length + num_new
        if end > self.num_slots:
            raise IndexError(f"The cache has {self.num_slots} slots; {end} are needed.")
        self.valid[:, self.length : end] = input_mask
        self.positions[:, self.length : end] = positions
        self.next_position = self.next_position + input_mask.sum(dim=1)
        self._claimed_from, self.length = self.length, end

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, K, T, H] in the slots claimed last; return all slots up to there."""
        start = self.length - keys.shape[2]
        self.keys[layer][:, :, start : self.length] = keys
        self.values[layer][:, :, start : self.length] = values
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]

    @property
    def claimed(self) -> Tensor:
        """int64[B, T]: the slots of the tokens claimed last; the same in every row."""
        return torch.arange(self._claimed_from, self.length).expand(self.valid.shape[0], -1)

    def truncate(self, length: int) -> None:
        """Drop the slots from `length` on, in every row."""
        assert 0 <= length <= self.length
        self.next_position = self.next_position - self.valid[:, length:].sum(dim=1)
        self.valid[:, length:] = False
        self.length = length

    def select_rows(self, rows: Tensor) -> None:
        """Keep the rows int64[B'], which may repeat: to reorder beams and to drop ended rows."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.valid = self.valid[rows]
        self.positions = self.positions[rows]
        self.next_position = self.next_position[rows]


# R slots, B running rows, T tokens in this call, K key/value heads, S positions, H head dim,
# L layers


class FreshSlots(KVCache):
    """The next free slots of a `SlotCache` as a `KVCache`, for `PaliGemma.prefill`.

    The slots stay free until `SlotCache.admit`, so a prefill that fails changes nothing that is
    visible.
    """

    def __init__(self, slots: SlotCache, num_rows: int) -> None:
        rows = slice(slots.num_rows, slots.num_rows + num_rows)
        self.keys = [keys[rows] for keys in slots.keys]
        self.values = [values[rows] for values in slots.values]
        device = slots.lengths.device
        self.valid = torch.zeros(num_rows, slots.num_positions, dtype=torch.bool, device=device)
        self.positions = torch.zeros_like(self.valid, dtype=torch.long)
        self.next_position = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.length = 0
        self._claimed_from = 0


class SlotCache:
    """A cache for up to `num_slots` rows of `num_positions` each, which may come and go.

    `PaliGemma.decode_step` and `PaliGemma.extend` use it for the running rows: one step adds T
    positions to every row, at the row's end. Most systems allocate its zeros lazily, on the first
    write.
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_slots: int,
        num_positions: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_slots, config.num_kv_heads, num_positions, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.depth)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.depth)]
        self.lengths = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.num_slots = num_slots
        self.num_positions = num_positions
        # A copy of the lengths on the host, so that no step has to wait for the device.
        self.row_lengths: list[int] = []
        self._slot_numbers = torch.arange(num_slots, device=device)[:, None]
        self._steps = torch.arange(num_positions, device=device)[None]
        self.claimed = torch.zeros(0, 0, dtype=torch.long, device=device)

    @staticmethod
    def bytes_per_position(config: DecoderConfig, dtype: torch.dtype) -> int:
        """Return the bytes per position in all layers: 26,624 for Gemma 2 2B in bfloat16."""
        return 2 * config.depth * config.num_kv_heads * config.head_dim * dtype.itemsize

    # Adding and removing rows

    @property
    def num_rows(self) -> int:
        return len(self.row_lengths)

    def fresh(self, num_rows: int) -> FreshSlots:
        """Return a cache for the prefill of `num_rows` rows, padded on the right, in free slots.

        Raises IndexError when there are too few free slots.
        """
        if self.num_rows + num_rows > self.num_slots:
            raise IndexError(
                f"The cache has {self.num_slots} slots, {self.num_rows} of them taken; "
                f"{num_rows} more are needed."
            )
        return FreshSlots(self, num_rows)

    def admit(self, lengths: Sequence[int]) -> None:
        """Occupy the slots that were just prefilled; `lengths` are the rows' real tokens."""
        start = self.num_rows
        self.row_lengths.extend(lengths)
        self.lengths[start : self.num_rows] = torch.tensor(
            list(lengths), device=self.lengths.device
        )

    def remove(self, row: int) -> None:
        """Free a row's slot; the last row moves into it and takes its index."""
        last = self.num_rows - 1
        length = self.row_lengths.pop()
        if row != last:
            for memory in (*self.keys, *self.values):
                memory[row, :, :length] = memory[last, :, :length]
            self.lengths[row] = self.lengths[last]
            self.row_lengths[row] = length
        self.lengths[last] = 0

    def truncate(self, row: int, length: int) -> None:
        """Drop the last tokens of a row, so that `length` remain."""
        assert 0 <= length <= self.row_lengths[row]
        self.lengths[row] = length
        self.row_lengths[row] = length

    def copy_of(self, slot: int, length: int) -> Tensor:
        """Return the keys, then the values, of all layers: [2L, K, length, H], for `restore`."""
        return torch.stack([memory[slot, :, :length] for memory in (*self.keys, *self.values)])

    def restore(self, slot: int, copy: Tensor) -> None:
        """Fill a free slot with the result of `copy_of`, before it is admitted."""
        for memory, values in zip((*self.keys, *self.values), copy, strict=True):
            memory[slot, :, : values.shape[1]] = values

    def wipe(self, row: int) -> None:
        """Zero a slot that may contain NaN or infinity: masked values are multiplied by 0."""
        for memory in (*self.keys, *self.values):
            memory[row].zero_()

    # The interface of `Cache`, for decode steps

    @property
    def length(self) -> int:
        """The length of the longest row."""
        return max(self.row_lengths, default=0)

    @property
    def next_position(self) -> Tensor:
        """int64[B]: the position of each row's next token."""
        return self.lengths[: self.num_rows].clone()

    @property
    def positions(self) -> Tensor:
        """int64[B, S]: the index itself, because slots contain no pads."""
        return self._steps.expand(self.num_rows, -1)

    @property
    def valid(self) -> Tensor:
        """bool[B, length]: True where a row has a token."""
        return self._steps[:, : self.length] < self.lengths[: self.num_rows, None]

    def claim(self, input_mask: Tensor, positions: Tensor) -> None:
        """Add T positions to every row, at int64[B, T]; all tokens must be real.

        Raises IndexError, without any change, when a row would outgrow its slot.
        """
        num_new = positions.shape[1]
        if (end := self.length + num_new) > self.num_positions:
            raise IndexError(f"The cache has {self.num_positions} positions; {end} are needed.")
        self.claimed = positions
        self.lengths[: self.num_rows] += num_new
        self.row_lengths = [length + num_new for length in self.row_lengths]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, K, T, H] in the positions claimed last; return all rows up to `length`."""
        rows = slice(self.num_rows)
        index = (self._slot_numbers[rows], slice(None), self.claimed)
        self.keys[layer][index] = keys.transpose(1, 2)
        self.values[layer][index] = values.transpose(1, 2)
        visible = slice(self.length)
        return self.keys[layer][rows, :, visible], self.values[layer][rows, :, visible]
