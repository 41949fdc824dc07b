"""Who may see whom: the prefix-LM mask and the sliding window.

Knows masks and positions only. The rule is big_vision's `make_attn_mask`
(`models/proj/paligemma/paligemma.py`): a key is visible when it is real and its block does not
come after the query's block, where a block starts at every True of `mask_ar`.

    row        img  BOS  cap  \\n  | a    dog  PAD
    mask_ar    0    0    0    0   | 1    1    1
    block      0    0    0    0   | 1    2    3
    "cap"      sees img BOS cap \\n          (two-way prefix)
    "dog"      sees img BOS cap \\n a dog    (causal suffix)
    nobody     sees PAD                     (input_mask)
"""

from __future__ import annotations

import torch
from torch import Tensor

# B batch, T query positions, S key positions


def positions_of(input_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that pads on the left shift nothing.

    bool[B, T] -> int64[B, T]:  0 0 1 1 1  ->  0 0 0 1 2
    """
    return (input_mask.long().cumsum(dim=1) - 1).clamp_min(0)


def prefix_lm_mask(input_mask: Tensor, mask_ar: Tensor) -> Tensor:
    """The mask of a whole sequence: bool[B, T], bool[B, T] -> bool[B, T, T], True may attend."""
    block = _blocks(input_mask, mask_ar)
    visible = block[:, None, :] <= block[:, :, None]
    return visible & input_mask[:, None, :]


def _blocks(input_mask: Tensor, mask_ar: Tensor) -> Tensor:
    # Pads start no block, wherever they stand: the prefix is always block 0.
    return (mask_ar & input_mask).long().cumsum(dim=1)


def in_window(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """True where a key is among the last `window` positions, the query's own included.

    int64[B, T], int64[B, S] -> bool[B, T, S]
    """
    return query_positions[:, :, None] - key_positions[:, None, :] < window


def sliding_prefix_lm_mask(
    attn_mask: Tensor, input_mask: Tensor, mask_ar: Tensor, positions: Tensor, window: int
) -> Tensor:
    """Narrow a prefix-LM mask for a sliding-window layer: bool[B, T, T] -> bool[B, T, T].

    The prefix stays two-way at any distance and the suffix loses what is `window` or more
    positions behind: what transformers 5 does. big_vision, which trained the released weights,
    has no window, hence `DecoderConfig.sliding_window` is None by default.
    """
    in_prefix = _blocks(input_mask, mask_ar) == 0
    both_in_prefix = in_prefix[:, :, None] & in_prefix[:, None, :]
    return attn_mask & (both_in_prefix | in_window(positions, positions, window))


def as_bias(attn_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """True -> 0, False -> the most negative finite number: a row that sees nothing stays finite."""
    bias = torch.zeros(attn_mask.shape, dtype=dtype, device=attn_mask.device)
    return bias.masked_fill(~attn_mask, torch.finfo(dtype).min)
