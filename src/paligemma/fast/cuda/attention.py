"""Attention that does not store the matrix of scores; matches `model.attention.attend`.

Uses torch's flash attention where there is neither mask nor soft cap, and FlexAttention elsewhere.
The callers are compiled; if they are not, FlexAttention is correct but slow, and warns about it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

# B batch, T tokens, S positions of a slot, N query heads, K key/value heads, H head dim

# Finite as in the reference, so that a row that sees nothing stays finite.
_HIDDEN = -1e30
_PAD_BLOCK = 2**30
_POSITIONS_PER_BLOCK = 128  # blocks entirely beyond a row's end are skipped
# Long slots are split into parts that are read in parallel and then combined.
_POSITIONS_PER_PART = 512
_PROGRAMS = 256  # how many a large device runs at the same time


def prefix_blocks(input_mask: Tensor, mask_ar: Tensor) -> tuple[Tensor, Tensor]:
    """Turn `input_mask` and `mask_ar`, bool[B, T], into blocks of queries and keys, int64[B, T].

    A query sees the keys of its own and earlier blocks, see `model/attention.py`. Pads are in a
    block that no query sees.
    """
    blocks = (mask_ar & input_mask).long().cumsum(dim=1)
    return blocks, blocks.masked_fill(~input_mask, _PAD_BLOCK)


def attend_prefix(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: tuple[Tensor, Tensor] | None,
    logit_softcap: float | None,
) -> Tensor:
    """Scaled queries [B, N, T, H], keys and values [B, K, T, H] -> [B, N, T, H].

    `blocks` are those of `prefix_blocks`; None where every token sees every other.
    """
    if blocks is None and logit_softcap is None:
        return F.scaled_dot_product_attention(queries, keys, values, scale=1.0, enable_gqa=True)

    def score(logit: Tensor, row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if logit_softcap is not None:
            logit = logit_softcap * torch.tanh(logit / logit_softcap)
        if blocks is not None:
            of_queries, of_keys = blocks
            logit = torch.where(of_keys[row, key] <= of_queries[row, query], logit, _HIDDEN)
        return logit

    return flex_attention(queries, keys, values, score, scale=1.0, enable_gqa=True)


def slots_in_reach(lengths: Tensor, num_positions: int) -> BlockMask:
    """Return the mask of one query per row, which sees the first int64[B] positions of its slot.

    Lengths must be at least 1.
    """
    num_rows, num_blocks = len(lengths), -(-num_positions // _POSITIONS_PER_BLOCK)
    in_reach = (lengths + _POSITIONS_PER_BLOCK - 1) // _POSITIONS_PER_BLOCK
    order = torch.arange(num_blocks, dtype=torch.int32, device=lengths.device)

    def is_real(row: Tensor, _: Tensor, __: Tensor, key: Tensor) -> Tensor:
        return key < lengths[row]

    return BlockMask.from_kv_blocks(
        in_reach.int()[:, None, None],
        order.repeat(num_rows, 1, 1, 1),
        BLOCK_SIZE=_POSITIONS_PER_BLOCK,
        mask_mod=is_real,
        seq_lengths=(1, num_positions),
        compute_q_blocks=False,
    )


def attend_slots(
    queries: Tensor, keys: Tensor, values: Tensor, reach: BlockMask, logit_softcap: float | None
) -> Tensor:
    """Scaled queries [B, N, 1, H], slots [B, K, S, H] -> [B, N, 1, H]."""

    def score(logit: Tensor, _: Tensor, __: Tensor, ___: Tensor, ____: Tensor) -> Tensor:
        if logit_softcap is not None:
            logit = logit_softcap * torch.tanh(logit / logit_softcap)
        return logit

    num_rows, num_kv_heads, num_positions, _ = keys.shape
    num_parts = min(num_positions // _POSITIONS_PER_PART, _PROGRAMS // (num_rows * num_kv_heads))
    options: Any = {"SPLIT_KV": max(1, num_parts)}
    return flex_attention(
        queries, keys, values, score, reach, scale=1.0, enable_gqa=True, kernel_options=options
    )
