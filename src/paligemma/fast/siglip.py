"""A vision block on packed weights: `VisionBlock` with fewer, larger steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paligemma.config import VisionConfig
from paligemma.fast.kernels.layers import add_layer_norm, split_heads
from paligemma.fast.linear import BiasRows, PackedLinear, Rows, WeightRows
from paligemma.fast.quantization import BFLOAT16
from paligemma.model.siglip import VisionBlock

# I images, P patches, W width


class FusedVisionBlock(nn.Module):
    """A packed replacement for a `VisionBlock`, which reuses its norms."""

    def __init__(
        self, block: VisionBlock, config: VisionConfig, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, mlp_dim = config.width, config.mlp_dim
        self.layer_norm1 = block.layer_norm1
        self.qkv = PackedLinear(width, (width,) * 3, BFLOAT16, bias=True, device=device)
        self.out = PackedLinear(width, (width,), BFLOAT16, bias=True, device=device)
        self.layer_norm2 = block.layer_norm2
        self.fc1 = PackedLinear(
            width, (mlp_dim,), BFLOAT16, bias=True, activation="gelu", device=device
        )
        self.fc2 = PackedLinear(mlp_dim, (width,), BFLOAT16, bias=True, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """As `VisionBlock.forward`."""
        x = x.clone(memory_format=torch.contiguous_format)
        norm1, norm2 = self.layer_norm1, self.layer_norm2
        normed = add_layer_norm(x, None, norm1.weight, norm1.bias, norm1.eps)
        queries, keys, values = (
            split_heads(part, self.head_dim) for part in self.qkv.split(normed)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        attended = self.out(mixed.transpose(1, 2).flatten(2))
        normed = add_layer_norm(x, attended, norm2.weight, norm2.bias, norm2.eps)
        x += self.fc2(self.fc1(normed))
        return x

    def weight_rows(self) -> dict[str, Rows]:
        layers = {
            "attention.q_proj": (self.qkv, 0),
            "attention.k_proj": (self.qkv, 1),
            "attention.v_proj": (self.qkv, 2),
            "attention.out_proj": (self.out, 0),
            "mlp.fc1": (self.fc1, 0),
            "mlp.fc2": (self.fc2, 0),
        }
        rows: dict[str, Rows] = {}
        for name, (layer, number) in layers.items():
            rows[f"{name}.weight"] = WeightRows(layer, number)
            rows[f"{name}.bias"] = BiasRows(layer, number)
        return rows
