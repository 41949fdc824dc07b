"""Grouped-query attention with an optional soft cap, and the decoder layer's attention block.

The plain form: two matrix products and a softmax in float32. Faster forms must equal it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paligemma.config import DecoderConfig
from paligemma.model.kv_cache import Cache
from paligemma.model.rope import rotate

# B batch, T tokens in this call, S tokens in reach, D width,
# N query heads, K key/value heads, G = N // K, H head dim


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """Bend x smoothly into (-cap, cap): cap * tanh(x / cap), arXiv 2408.00118 section 2."""
    return cap * torch.tanh(x / cap)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, logit_softcap: float | None
) -> Tensor:
    """Scaled queries [B, N, T, H], keys and values [B, K, S, H], bias [B, 1, T, S] -> [B, N, T, H].

    Query head n reads key/value head n // G.
    """
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
    """Gemma's attention: projections without biases, rotary positions, fewer key/value heads."""

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
        self, x: Tensor, angles: tuple[Tensor, Tensor], bias: Tensor, kv_cache: Cache | None
    ) -> Tensor:
        queries = rotate(self._split_heads(self.q_proj(x)), angles) * self.query_scale
        keys = rotate(self._split_heads(self.k_proj(x)), angles)
        values = self._split_heads(self.v_proj(x))
        if kv_cache is not None:
            keys, values = kv_cache.write(self.layer, keys, values)
        mixed = attend(queries, keys, values, bias, self.logit_softcap)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _split_heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads.transpose(1, 2)  # (B, N or K, T, H)
