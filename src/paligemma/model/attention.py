"""Attention: masks, rotary positions, and grouped-query attention with a soft cap.

The mask follows big_vision's `make_attn_mask` (`models/proj/paligemma/paligemma.py`): a key is
visible when it is real and its block does not come after the query's block, where a block starts
at every True of `mask_ar`.

    row        img  BOS  cap  \\n  | a    dog  PAD
    mask_ar    0    0    0    0   | 1    1    1
    block      0    0    0    0   | 1    2    3
    "cap"      sees img BOS cap \\n          (two-way prefix)
    "dog"      sees img BOS cap \\n a dog    (causal suffix)
    nobody     sees PAD                     (input_mask)

Rotary positions (arXiv 2104.09864) use Gemma's half-split layout: feature i of the first half is
paired with feature i of the second half; the pair turns by position / theta^(2i/H).

This is the reference: two matrix products and a softmax in float32. Faster implementations must
match it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paligemma.config import DecoderConfig
from paligemma.model.kv_cache import Cache

# B batch, T query positions, S key positions


def positions_of(input_mask: Tensor) -> Tensor:
    """Return positions that count real tokens only, so that pads on the left shift nothing.

    bool[B, T] -> int64[B, T]:  0 0 1 1 1  ->  0 0 0 1 2
    """
    return (input_mask.long().cumsum(dim=1) - 1).clamp_min(0)


def prefix_lm_mask(input_mask: Tensor, mask_ar: Tensor) -> Tensor:
    """Return the mask of whole sequences: bool[B, T], bool[B, T] -> bool[B, T, T].

    True means that the query (second axis) may attend to the key (third axis).
    """
    block = _blocks(input_mask, mask_ar)
    visible = block[:, None, :] <= block[:, :, None]
    return visible & input_mask[:, None, :]


def _blocks(input_mask: Tensor, mask_ar: Tensor) -> Tensor:
    # Pads never start a block, so the prefix is always block 0.
    return (mask_ar & input_mask).long().cumsum(dim=1)


def in_window(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """True where a key is among the last `window` positions, the query's own included.

    int64[B, T], int64[B, S] -> bool[B, T, S]
    """
    return query_positions[:, :, None] - key_positions[:, None, :] < window


def sliding_prefix_lm_mask(
    attn_mask: Tensor, input_mask: Tensor, mask_ar: Tensor, positions: Tensor, window: int
) -> Tensor:
    """Restrict a prefix-LM mask for a sliding-window layer: bool[B, T, T] -> bool[B, T, T].

    As in transformers 5, the prefix stays bidirectional at any distance, and suffix tokens no
    longer see keys that are `window` or more positions back. big_vision, which trained the
    released weights, has no window, hence `DecoderConfig.sliding_window` is None by default.
    """
    in_prefix = _blocks(input_mask, mask_ar) == 0
    both_in_prefix = in_prefix[:, :, None] & in_prefix[:, None, :]
    return attn_mask & (both_in_prefix | in_window(positions, positions, window))


def as_bias(attn_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Map True to 0, False to the lowest finite number, so that an all-False row stays finite."""
    bias = torch.zeros(attn_mask.shape, dtype=dtype, device=attn_mask.device)
    return bias.masked_fill_(~attn_mask, torch.finfo(dtype).min)


# B batch, T positions, N heads, H head dim


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for int64[B, T] positions: two float32[B, 1, T, H / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = theta ** -(exponents / head_dim)
    # float32 even in a bf16 model: bf16 cannot distinguish positions 257 and 258.
    angles = positions[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate queries or keys [B, N, T, H] by their positions; the dtype is kept."""
    cos, sin = angles
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)


def pick(x: Tensor, at: Tensor, dim: int) -> Tensor:
    """Keep one entry of each batch row: x [B, ...] at int64[B] along `dim`, which becomes 1."""
    return x.take_along_dim(at.view(-1, *[1] * (x.ndim - 1)), dim)


def pick_queries(
    at: Tensor, angles: tuple[Tensor, Tensor], bias: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Keep the angles [B, 1, T, H / 2] and the bias [B, 1, T, S] of one query in each row."""
    cos, sin = angles
    return (pick(cos, at, 2), pick(sin, at, 2)), pick(bias, at, 2)


# B batch, T tokens in this call, S visible positions, D width,
# N query heads, K key/value heads, G = N // K, H head dim


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """Squash x smoothly into (-cap, cap): cap * tanh(x / cap), arXiv 2408.00118 section 2."""
    return cap * torch.tanh(x / cap)


_CHUNK_LOGITS = 2**20
_SMALLEST_CHUNK = 64


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, logit_softcap: float | None
) -> Tensor:
    """Scaled queries [B, N, T, H], keys and values [B, K, S, H], bias [B, 1, T, S] -> [B, N, T, H].

    Query head n uses key/value head n // G. Without gradients, a chunk of queries at a time: the
    logits of 4,112 queries, the prefix of an image of 896 pixels, would take half a gigabyte per
    copy and layer, and those of a chunk mostly stay in the cache.
    """
    batch, num_heads, num_queries, _ = queries.shape
    size = max(_SMALLEST_CHUNK, _CHUNK_LOGITS // (batch * num_heads * keys.shape[2]))
    if torch.is_grad_enabled() or num_queries <= size:
        return _attend_at_once(queries, keys, values, bias, logit_softcap)
    mixed = torch.empty_like(queries)
    for start in range(0, num_queries, size):
        here = (slice(None), slice(None), slice(start, start + size))
        mixed[here] = _attend_at_once(queries[here], keys, values, bias[here], logit_softcap)
    return mixed


def _attend_at_once(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, logit_softcap: float | None
) -> Tensor:
    batch, num_heads, num_queries, head_dim = queries.shape
    num_kv_heads, num_keys = keys.shape[1], keys.shape[2]
    grouped = queries.reshape(batch, num_kv_heads, -1, head_dim)  # (B, K, G * T, H)
    logits = (grouped @ keys.transpose(-1, -2)).float()
    logits = logits.view(batch, num_heads, num_queries, num_keys)
    if logit_softcap is not None:
        logits = soft_cap(logits, logit_softcap)
    weights = torch.softmax(logits + bias, dim=-1).to(values.dtype)
    grouped = weights.view(batch, num_kv_heads, -1, num_keys) @ values  # (B, K, G * T, H)
    return grouped.view(batch, num_heads, num_queries, head_dim)


class Attention(nn.Module):
    """Gemma's attention: projections without bias, rotary positions, grouped-query attention."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.query_scale = config.query_scale
        self.logit_softcap = config.attn_logit_softcap
        queries_dim = config.num_heads * config.head_dim
        keys_dim = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, queries_dim, bias=False)
        self.k_proj = nn.Linear(config.width, keys_dim, bias=False)
        self.v_proj = nn.Linear(config.width, keys_dim, bias=False)
        self.o_proj = nn.Linear(queries_dim, config.width, bias=False)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        bias: Tensor,
        kv_cache: Cache | None,
        at: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, 1, D] for the query `at` int64[B] of each row only."""
        keys = rotate(self._split_heads(self.k_proj(x)), angles)
        values = self._split_heads(self.v_proj(x))
        if kv_cache is not None:
            keys, values = kv_cache.write(self.layer, keys, values)
        if at is not None:
            x = pick(x, at, 1)
            angles, bias = pick_queries(at, angles, bias)
        queries = rotate(self._split_heads(self.q_proj(x)), angles) * self.query_scale
        mixed = attend(queries, keys, values, bias, self.logit_softcap)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _split_heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads.transpose(1, 2)  # (B, N or K, T, H)
