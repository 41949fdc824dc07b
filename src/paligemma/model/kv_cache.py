"""Keys and values of the past, in memory that is allocated once.

Slots are shared by the batch: every row writes slot `length` in the same step, and a row's pads
are slots that are never valid. Knows nothing of what the tokens mean.
"""

from __future__ import annotations

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
