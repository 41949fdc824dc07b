"""A decoder block with merged products, and one layer as one function to compile.

A layer starts after its first norm and ends with the first norm of the next layer, so that the
compiler can fuse sums and norms into one kernel. These functions depend on no value that differs
between layers, so one compilation serves all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from paligemma.errors import OptionError
from paligemma.fast.cuda.attention import attend_prefix, attend_slots
from paligemma.fast.linear import ParameterRows, Rows
from paligemma.model.attention import attend, pick, rotate
from paligemma.model.gemma import DecoderBlock
from paligemma.model.kv_cache import Cache

# B batch, T tokens in this call, S positions of a slot, D width,
# N query heads, K key/value heads, H head dim

Angles = tuple[Tensor, Tensor]


class MergedBlock(nn.Module):
    """A replacement for a `DecoderBlock`, which reuses its norms and weights.

    Query, key and value are one product, gate and up another, because larger products use more of
    the memory bandwidth.
    """

    def __init__(self, block: DecoderBlock) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        self.layer = attention.layer
        self.head_dim = attention.head_dim
        self.query_scale = attention.query_scale
        self.logit_softcap = attention.logit_softcap
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.pre_attention_norm = block.pre_attention_norm
        self.qkv_proj = _merged(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = attention.o_proj
        self.post_attention_norm = block.post_attention_norm
        self.pre_mlp_norm = block.pre_mlp_norm
        self.gate_up_proj = _merged(mlp.gate_proj, mlp.up_proj)
        self.down_proj = mlp.down_proj
        self.post_mlp_norm = block.post_mlp_norm

    def forward(
        self,
        x: Tensor,
        angles: Angles,
        bias: Tensor,
        kv_cache: Cache | None,
        at: Tensor | None = None,
    ) -> Tensor:
        """As `DecoderBlock.forward`, with plain attention."""
        queries, keys, values = self.project(self.pre_attention_norm(x), angles)
        if kv_cache is not None:
            keys, values = kv_cache.write(self.layer, keys, values)
        if at is not None:
            x, queries, bias = pick(x, at, 1), pick(queries, at, 2), pick(bias, at, 2)
        return self.finish(x, attend(queries, keys, values, bias, self.logit_softcap))

    def project(self, normed: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> rotated and scaled queries [B, N, T, H], keys and values [B, K, T, H]."""
        heads = self.qkv_proj(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        numbers = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        queries, keys, values = heads.split(numbers, dim=1)
        return rotate(queries, angles) * self.query_scale, rotate(keys, angles), values

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Compute the rest of the block from its input [B, T, D] and attention's [B, N, T, H]."""
        attended: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        if self.post_attention_norm is not None:
            attended = self.post_attention_norm(attended)
        x = x + attended
        gate, up = self.gate_up_proj(self.pre_mlp_norm(x)).chunk(2, dim=-1)
        transformed: Tensor = self.down_proj(F.gelu(gate, approximate="tanh") * up)
        if self.post_mlp_norm is not None:
            transformed = self.post_mlp_norm(transformed)
        return x + transformed

    merged_names = tuple(
        f"{name}.weight" for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    )
    """Names of the weights that the plain block does not have, or has elsewhere."""

    def weight_rows(self) -> dict[str, Rows]:
        """Return the weights by their names in the plain block.

        Raises OptionError for quantized ones.
        """
        layers = (self.qkv_proj, self.o_proj, self.gate_up_proj, self.down_proj)
        if any(type(x.weight) is not nn.Parameter for x in layers):
            raise OptionError(
                "The weights were quantized on a CUDA device and cannot be read back. Load the "
                "model without that quantization."
            )
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        q, k, v = self.qkv_proj.weight.detach().split((queries, keys, keys))
        gate, up = self.gate_up_proj.weight.detach().chunk(2)
        return {
            "attention.q_proj.weight": ParameterRows(q),
            "attention.k_proj.weight": ParameterRows(k),
            "attention.v_proj.weight": ParameterRows(v),
            "attention.o_proj.weight": ParameterRows(self.o_proj.weight),
            "mlp.gate_proj.weight": ParameterRows(gate),
            "mlp.up_proj.weight": ParameterRows(up),
            "mlp.down_proj.weight": ParameterRows(self.down_proj.weight),
        }


def prefix_layer(
    block: MergedBlock,
    next_norm: nn.Module,
    x: Tensor,
    normed: Tensor,
    angles: Angles,
    blocks: tuple[Tensor, Tensor] | None,
    memory: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Run one layer over whole sequences: x [B, T, D] and its norm -> those of the next layer.

    Keys and values are copied to `memory`, two of [B, K, T, H].
    """
    queries, keys, values = block.project(normed, angles)
    if memory is not None:
        memory[0].copy_(keys)
        memory[1].copy_(values)
    x = block.finish(x, attend_prefix(queries, keys, values, blocks, block.logit_softcap))
    return x, next_norm(x)


def slots_layer(
    block: MergedBlock,
    next_norm: nn.Module,
    x: Tensor,
    normed: Tensor,
    angles: Angles,
    positions: Tensor,
    reach: BlockMask,
    memory: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Run one layer of a decode step: x [B, 1, D] and its norm -> those of the next layer.

    Keys and values of row b are written to position int64[B] of slot b in `memory`, two of
    [B, K, S, H].
    """
    queries, keys, values = block.project(normed, angles)
    rows = torch.arange(len(positions), device=positions.device)
    memory[0][rows, :, positions] = keys[:, :, 0]
    memory[1][rows, :, positions] = values[:, :, 0]
    x = block.finish(x, attend_slots(queries, *memory, reach, block.logit_softcap))
    return x, next_norm(x)


@torch.no_grad()
def _merged(*layers: nn.Linear) -> nn.Linear:
    weight = torch.cat([layer.weight for layer in layers])
    merged = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    merged.weight = nn.Parameter(weight, requires_grad=layers[0].weight.requires_grad)
    return merged
