"""A decoder block on packed weights: `DecoderBlock` with fewer, larger steps.

x -> norm -> query, key, value in one product -> rotary positions -> attention -> product
  -> sum and two norms in one step -> gate and up in one product, GeGLU at its end -> product
  -> sum and norm
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paligemma.config import DecoderConfig
from paligemma.fused.linear import PackedLinear, Rows, WeightRows
from paligemma.model import attention
from paligemma.model.gemma import DecoderBlock, RMSNorm
from paligemma.model.kv_cache import Cache
from paligemma.native.layers import add_rms_norm, attend, split_heads
from paligemma.native.packing import WeightFormat

# B batch, T tokens in this call, S tokens in reach, D width, N query heads, H head dim


class FusedDecoderBlock(nn.Module):
    """Stands in for a `DecoderBlock`, whose norms it takes over."""

    def __init__(
        self,
        block: DecoderBlock,
        config: DecoderConfig,
        attention_format: WeightFormat,
        mlp_format: WeightFormat,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.layer = block.attention.layer
        self.head_dim = config.head_dim
        self.query_scale = config.query_scale
        self.logit_softcap = config.attn_logit_softcap
        self.eps = config.rms_norm_eps
        width, queries = config.width, config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim

        self.pre_attention_norm = block.pre_attention_norm
        self.qkv = PackedLinear(width, (queries, keys, keys), attention_format, device=device)
        self.out = PackedLinear(queries, (width,), attention_format, device=device)
        self.post_attention_norm = block.post_attention_norm
        self.pre_mlp_norm = block.pre_mlp_norm
        self.gate_up = PackedLinear(
            width, (config.mlp_dim,) * 2, mlp_format, activation="geglu", device=device
        )
        self.down = PackedLinear(config.mlp_dim, (width,), mlp_format, device=device)
        self.post_mlp_norm = block.post_mlp_norm

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], bias: Tensor, kv_cache: Cache | None
    ) -> Tensor:
        """As `DecoderBlock.forward`. From the second layer on x is changed in place."""
        if self.layer == 0:
            x = x.clone(memory_format=torch.contiguous_format)
        normed = add_rms_norm(x, None, None, self.pre_attention_norm.weight, self.eps)
        assert normed is not None
        attended = self.out(self._attention(normed, angles, bias, kv_cache))
        normed = add_rms_norm(
            x, attended, _weight(self.post_attention_norm), self.pre_mlp_norm.weight, self.eps
        )
        transformed = self.down(self.gate_up(normed))
        add_rms_norm(x, transformed, _weight(self.post_mlp_norm), None, self.eps)
        return x

    def _attention(
        self, x: Tensor, angles: tuple[Tensor, Tensor], bias: Tensor, kv_cache: Cache | None
    ) -> Tensor:
        queries, keys, values = self.qkv.split(x)
        queries = split_heads(queries, self.head_dim, angles, self.query_scale)
        keys = split_heads(keys, self.head_dim, angles)
        values = split_heads(values, self.head_dim)
        if kv_cache is not None:
            keys, values = kv_cache.write(self.layer, keys, values)
        mixed = attend(queries, keys, values, bias, self.logit_softcap)
        if mixed is None:
            mixed = attention.attend(queries, keys, values, bias, self.logit_softcap)
            mixed = mixed.transpose(1, 2).flatten(2)
        return mixed

    def weight_rows(self) -> dict[str, Rows]:
        return {
            "attention.q_proj.weight": WeightRows(self.qkv, 0),
            "attention.k_proj.weight": WeightRows(self.qkv, 1),
            "attention.v_proj.weight": WeightRows(self.qkv, 2),
            "attention.o_proj.weight": WeightRows(self.out),
            "mlp.gate_proj.weight": WeightRows(self.gate_up, 0),
            "mlp.up_proj.weight": WeightRows(self.gate_up, 1),
            "mlp.down_proj.weight": WeightRows(self.down),
        }


def _weight(norm: RMSNorm | None) -> Tensor | None:
    return None if norm is None else norm.weight
