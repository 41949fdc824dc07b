"""Keys and values of past tokens, in memory that is allocated once.

`KVCache` is the plain form: the batch shares its slots, every row writes slot `length` in the same
step, and a row's pads are slots that are never valid.

`SlotCache` is for rows that come and go: every row in flight owns one slot and has its own length.
Positions 0 to length - 1 of a slot are the row's real tokens, without pads or holes; whatever lies
beyond is stale and never seen.

    slot 0   a a a a a . . .     lengths   5 3 6 0     num_rows  3
    slot 1   b b b . . . . .                               length    6
    slot 2   c c c c c c . .
    slot 3   . . . . . . . .     free

Rows stand in slots 0 to num_rows - 1, so a decode step sees a view: those slots up to `length`, the
longest row's. Nothing is gathered; a row that leaves is replaced by the last one. Fast attention
may rely on this: `keys[layer]` and `values[layer]` are contiguous [R, K, S, H] and never move,
`lengths` is int64[R] on the same device, slot b belongs to row b of the step, and all numbers
beyond a row's length are finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from paligemma.config import DecoderConfig

# L layers, B batch, K key/value heads, S slots, H head dim


class Cache(Protocol):
    """What the model asks of a cache; `KVCache` is the plain one."""

    @property
    def valid(self) -> Tensor:
        """bool[B, at least `length`]: True where a slot holds a real token."""

    @property
    def positions(self) -> Tensor:
        """int64[B, at least `length`]: the token's position, where there is one."""

    @property
    def next_position(self) -> Tensor:
        """int64[B]: the position of each row's next token."""

    @property
    def length(self) -> int:
        """Slots in reach of the tokens claimed last."""

    def claim(self, input_mask: Tensor, positions: Tensor) -> None:
        """Make room for bool[B, T] real tokens at int64[B, T] positions."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep [B, K, T, H] of the tokens claimed last; give back all in reach."""

    keys: list[Tensor]
    """[B, K, S, H] a layer, for what writes by itself."""
    values: list[Tensor]

    @property
    def claimed(self) -> Tensor:
        """int64[B, T]: the slots of the tokens claimed last."""


class KVCache:
    """Room for `num_slots` positions of `batch_size` rows."""

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
        """Reserve the next T slots for bool[B, T] real tokens at int64[B, T] positions."""
        num_new = input_mask.shape[1]
        end = self.length + num_new
        if end > self.num_slots:
            raise IndexError(f"The cache has {self.num_slots} slots; {end} are needed.")
        self.valid[:, self.length : end] = input_mask
        self.positions[:, self.length : end] = positions
        self.next_position = self.next_position + input_mask.sum(dim=1)
        self._claimed_from, self.length = self.length, end

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put [B, K, T, H] into the slots claimed last; give back all up to there."""
        start = self.length - keys.shape[2]
        self.keys[layer][:, :, start : self.length] = keys
        self.values[layer][:, :, start : self.length] = values
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]

    @property
    def claimed(self) -> Tensor:
        """int64[B, T]: the slots of the tokens claimed last; the same in every row."""
        return torch.arange(self._claimed_from, self.length).expand(self.valid.shape[0], -1)

    def truncate(self, length: int) -> None:
        """Take back the slots from `length` on, of every row."""
        assert 0 <= length <= self.length
        self.next_position = self.next_position - self.valid[:, length:].sum(dim=1)
        self.valid[:, length:] = False
        self.length = length

    def select_rows(self, rows: Tensor) -> None:
        """Keep int64[B'] rows in that order, with repeats: for beams, and to drop ended rows."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.valid = self.valid[rows]
        self.positions = self.positions[rows]
        self.next_position = self.next_position[rows]


# R slots, B rows in flight, T tokens in this call, K key/value heads, S positions, H head dim,
# L layers


class FreshSlots(KVCache):
    """The next free slots, for `PaliGemma.prefill`: a `KVCache` in memory that is there already.

    Nothing is taken until `SlotCache.admit`: a prefill that fails leaves no trace but numbers
    that nobody sees.
    """

    def __init__(self, slots: SlotCache, num_rows: int) -> None:
        here = slice(slots.num_rows, slots.num_rows + num_rows)
        self.keys = [keys[here] for keys in slots.keys]
        self.values = [values[here] for values in slots.values]
        device = slots.lengths.device
        self.valid = torch.zeros(num_rows, slots.num_positions, dtype=torch.bool, device=device)
        self.positions = torch.zeros_like(self.valid, dtype=torch.long)
        self.next_position = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.length = 0
        self._claimed_from = 0


class SlotCache:
    """Room for `num_slots` rows of `num_positions` each.

    It is what `PaliGemma.decode_step` and `PaliGemma.extend` ask of a cache, for the rows in
    flight: one step adds T positions to every row, each at the row's own end. Memory comes as
    zeros that most systems provide when they are first written to.
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
        # The same lengths once more, so that no step waits for the device to tell them.
        self.row_lengths: list[int] = []
        self._slot_numbers = torch.arange(num_slots, device=device)[:, None]
        self._steps = torch.arange(num_positions, device=device)[None]
        self.claimed = torch.zeros(0, 0, dtype=torch.long, device=device)

    @staticmethod
    def bytes_per_position(config: DecoderConfig, dtype: torch.dtype) -> int:
        """Keys and values of one position in all layers: 26624 bytes for Gemma 2B in bfloat16."""
        return 2 * config.depth * config.num_kv_heads * config.head_dim * dtype.itemsize

    # Rows come and go

    @property
    def num_rows(self) -> int:
        return len(self.row_lengths)

    def fresh(self, num_rows: int) -> FreshSlots:
        """A cache for the prefill of `num_rows` rows, with pads on the right, into free slots."""
        if self.num_rows + num_rows > self.num_slots:
            raise IndexError(
                f"The cache has {self.num_slots} slots, {self.num_rows} of them taken; "
                f"{num_rows} more are needed."
            )
        return FreshSlots(self, num_rows)

    def admit(self, lengths: Sequence[int]) -> None:
        """Take the slots that were just prefilled; `lengths` count each row's real tokens."""
        start = self.num_rows
        self.row_lengths.extend(lengths)
        self.lengths[start : self.num_rows] = torch.tensor(
            list(lengths), device=self.lengths.device
        )

    def remove(self, row: int) -> None:
        """Free a row's slot; the last row moves there and takes its number."""
        last = self.num_rows - 1
        length = self.row_lengths.pop()
        if row != last:
            for memory in (*self.keys, *self.values):
                memory[row, :, :length] = memory[last, :, :length]
            self.lengths[row] = self.lengths[last]
            self.row_lengths[row] = length
        self.lengths[last] = 0

    def truncate(self, row: int, length: int) -> None:
        """Take back a row's last tokens, so that `length` are left."""
        assert 0 <= length <= self.row_lengths[row]
        self.lengths[row] = length
        self.row_lengths[row] = length

    def copy_of(self, slot: int, length: int) -> Tensor:
        """Keys, then values, of all layers: [2L, K, length, H], for `put_back`."""
        return torch.stack([memory[slot, :, :length] for memory in (*self.keys, *self.values)])

    def put_back(self, slot: int, copy: Tensor) -> None:
        """Fill a free slot with what `copy_of` gave, before it is admitted."""
        for memory, own in zip((*self.keys, *self.values), copy, strict=True):
            memory[slot, :, : own.shape[1]] = own

    def wipe(self, row: int) -> None:
        """Zero a slot that may hold NaN or infinity: hidden numbers are multiplied by 0."""
        for memory in (*self.keys, *self.values):
            memory[row].zero_()

    # What the model asks for in a decode step

    @property
    def length(self) -> int:
        """The reach of a step: positions of the longest row."""
        return max(self.row_lengths, default=0)

    @property
    def next_position(self) -> Tensor:
        """int64[B]: where each row goes on."""
        return self.lengths[: self.num_rows].clone()

    @property
    def positions(self) -> Tensor:
        """int64[B, S]: a slot's positions are the tokens' own, as there are no pads."""
        return self._steps.expand(self.num_rows, -1)

    @property
    def valid(self) -> Tensor:
        """bool[B, length]: True where a row has a token."""
        return self._steps[:, : self.length] < self.lengths[: self.num_rows, None]

    def claim(self, input_mask: Tensor, positions: Tensor) -> None:
        """Add T positions to every row, at int64[B, T]; all tokens are real.

        Raises IndexError when a row would grow beyond the slot, and takes none then.
        """
        num_new = positions.shape[1]
        if (end := self.length + num_new) > self.num_positions:
            raise IndexError(f"The cache has {self.num_positions} positions; {end} are needed.")
        self.claimed = positions
        self.lengths[: self.num_rows] += num_new
        self.row_lengths = [length + num_new for length in self.row_lengths]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put [B, K, T, H] where it was claimed; give back every row up to the longest."""
        rows = slice(self.num_rows)
        at = (self._slot_numbers[rows], slice(None), self.claimed)
        self.keys[layer][at] = keys.transpose(1, 2)
        self.values[layer][at] = values.transpose(1, 2)
        reach = slice(self.length)
        return self.keys[layer][rows, :, reach], self.values[layer][rows, :, reach]
