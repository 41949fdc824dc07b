"""The decoder: one module for Gemma 1 and Gemma 2, which differ only in their config.

Gemma 2 adds a norm after attention and after the MLP, soft caps, and optionally a sliding window
on some layers (arXiv 2403.08295, arXiv 2408.00118).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from paligemma.config import DecoderConfig
from paligemma.model.attention import Attention, as_bias, pick, rotary_angles, soft_cap
from paligemma.model.kv_cache import Cache

# B batch, T tokens in this call, S visible positions, D width, F mlp dim, V vocabulary


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), computed in float32 and returned in the dtype of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = 1.0 + self.weight.float()
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)


class GatedMLP(nn.Module):
    """GeGLU (arXiv 2002.05202): down(gelu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_dim, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_dim, bias=False)
        self.down_proj = nn.Linear(config.mlp_dim, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.gelu(self.gate_proj(x), approximate="tanh")
        up = self.up_proj(x)
        # In place where no gradient needs the factors: they are the largest tensors of a prefix.
        out: Tensor = self.down_proj(gate * up if torch.is_grad_enabled() else gate.mul_(up))
        return out


class DecoderBlock(nn.Module):
    """Attention and MLP with their norms. `dropout` is for training and off by default."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.pre_attention_norm = RMSNorm(config.width, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.pre_mlp_norm = RMSNorm(config.width, config.rms_norm_eps)
        self.mlp = GatedMLP(config)
        post = config.post_norms
        self.post_attention_norm = RMSNorm(config.width, config.rms_norm_eps) if post else None
        self.post_mlp_norm = RMSNorm(config.width, config.rms_norm_eps) if post else None
        self.dropout = nn.Dropout(0.0)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        bias: Tensor,
        kv_cache: Cache | None,
        at: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, 1, D] for the position `at` int64[B] of each row only.

        Keys and values of all positions go to the cache in both cases.
        """
        attended: Tensor = self.attention(self.pre_attention_norm(x), angles, bias, kv_cache, at)
        if at is not None:
            x = pick(x, at, 1)
        if self.post_attention_norm is not None:
            attended = self.post_attention_norm(attended)
        x = x + self.dropout(attended)
        transformed: Tensor = self.mlp(self.pre_mlp_norm(x))
        if self.post_mlp_norm is not None:
            transformed = self.post_mlp_norm(transformed)
        out: Tensor = x + self.dropout(transformed)
        return out


class TiedEmbedding(nn.Embedding):
    """One table [V, D] for both input and output: ids to vectors, and vectors to logits."""

    def forward(self, token_ids: Tensor) -> Tensor:
        """int64[B, T] -> [B, T, D], times sqrt(D) rounded to the table's dtype as Gemma does."""
        table = self.weight
        scale = table.new_full((), self.embedding_dim**0.5)
        return F.embedding(token_ids, table) * scale

    def logits(self, hidden: Tensor, vocab_range: range | None = None) -> Tensor:
        """[R, D] -> [R, V], or only the logits of the ids in `vocab_range`."""
        table = self.weight
        if vocab_range is not None:
            table = table[vocab_range.start : vocab_range.stop]
        return F.linear(hidden, table)


class Decoder(nn.Module):
    """Embeddings to hidden states; `embed` and `logits` share one table."""

    checkpoint_activations = False
    """Keep only the inputs of blocks during training and recompute the rest."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TiedEmbedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config, i) for i in range(config.depth))
        self.final_norm = RMSNorm(config.width, config.rms_norm_eps)

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64[B, T] -> [B, T, D], scaled."""
        x: Tensor = self.embedding(token_ids)
        return x

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        attn_mask: Tensor,
        sliding_mask: Tensor | None = None,
        kv_cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Run all blocks and the final norm: [B, T, D] -> [B, T, D].

        `positions` are int64[B, T], the masks bool[B, T, S]. `sliding_mask` replaces `attn_mask`
        on the layers that `config.sliding_layers` marks. With `at` int64[B], only that position of
        each row is returned, [B, 1, D], and the last block computes no other.
        """
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        bias = as_bias(attn_mask, torch.float32)[:, None]  # (B, 1, T, S)
        sliding_bias = bias if sliding_mask is None else as_bias(sliding_mask, bias.dtype)[:, None]
        slides = self.config.sliding_layers or (False,) * self.config.depth
        biases = [sliding_bias if is_sliding else bias for is_sliding in slides]
        out: Tensor = self.final_norm(self.run_blocks(x, angles, biases, kv_cache, at))
        return out

    def run_blocks(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        biases: Sequence[Tensor],
        kv_cache: Cache | None,
        at: Tensor | None = None,
    ) -> Tensor:
        last = len(self.blocks) - 1
        for layer, (block, bias) in enumerate(zip(self.blocks, biases, strict=True)):
            wanted = at if layer == last else None
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, angles, bias, kv_cache, wanted, use_reentrant=False)
            else:
                x = block(x, angles, bias, kv_cache, wanted)
        return x

    def logits(
        self, hidden: Tensor, *, softcap: bool = True, vocab_range: range | None = None
    ) -> Tensor:
        """[..., D] -> float32[..., V]: next-token logits, soft-capped if the config says so.

        With `vocab_range`, only the logits of those ids are computed. In a 3B model, the table is a
        fifth of the bytes that a decode step reads.
        """
        # The left factor must be 2-D and contiguous, or torch copies the whole table.
        flat = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        logits = self.embedding.logits(flat, vocab_range).float()
        if softcap and self.config.final_logit_softcap is not None:
            logits = soft_cap(logits, self.config.final_logit_softcap)
        return logits.view(*hidden.shape[:-1], -1)
