"""SigLIP's vision transformer (arXiv 2303.15343) without its pooling head: pixels to features.

Pre-norm blocks with biases, tanh GELU, learned positions added after the patch projection, no
class token, one norm after the last block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from paligemma.config import VisionConfig

# I images, P patches (image tokens), W width, N heads, H head dim


class VisionAttention(nn.Module):
    """Full attention between patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (I, N, P, H)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values)  # scale H^-0.5
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layer_norm1(x))
        x = x + self.mlp(self.layer_norm2(x))
        return x


class VisionEncoder(nn.Module):
    """float[I, 3, resolution, resolution] in [-1, 1] -> float[I, P, W], patches in raster order."""

    checkpoint_activations = False
    """As in `Decoder.checkpoint_activations`."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.position_embedding = nn.Embedding(config.num_image_tokens, config.width)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # (I, P, W)
        x = patches + self.position_embedding.weight
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        out: Tensor = self.post_layernorm(x)
        return out


def resample_positions(table: Tensor, num_positions: int) -> Tensor:
    """Resample a position table [P, W] to another square grid, bilinear with aligned corners.

    Equals big_vision's `vit.resample_posemb` (scipy zoom of order 1). Used to continue training at
    a higher resolution.
    """
    old, new = round(table.shape[0] ** 0.5), round(num_positions**0.5)
    grid = table.T.reshape(1, -1, old, old).float()
    grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=True)
    return grid.reshape(table.shape[1], new * new).T.to(table.dtype).contiguous()
