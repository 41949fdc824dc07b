"""Keys and values of rows that come and go, in memory that is allocated once.

Every row in flight owns one slot and has its own length. Positions 0 to length - 1 of a slot are
the row's real tokens: no pads and no holes; what lies beyond is left over and never seen.

    slot 0   a a a a a . . .     lengths   5 3 6 0     num_rows  3
    slot 1   b b b . . . . .                               length    6
    slot 2   c c c c c c . .
    slot 3   . . . . . . . .     free

Rows stand in slots 0 to num_rows - 1, so that what a decode step sees is a view: those slots up to
`length`, the longest row's. Nothing is gathered; a row that leaves is replaced by the last one.
Fast attention may rely on this: `keys[layer]` and `values[layer]` are contiguous [R, K, S, H] and
stay where they are, `lengths` is int64[R] on the same device, slot b belongs to row b of the step,
and all numbers beyond a row's length are finite.

Knows nothing of what the tokens mean, nor whose rows they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paligemma.config import DecoderConfig
from paligemma.model.kv_cache import KVCache

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
