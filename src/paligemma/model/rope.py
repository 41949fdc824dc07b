"""Rotary positions (arXiv 2104.09864) in Gemma's half-split layout.

Feature i of the first half is paired with feature i of the second half; the pair turns by
position / theta^(2i/H).
"""

from __future__ import annotations

import torch
from torch import Tensor

# B batch, T positions, N heads, H head dim


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for int64[B, T] positions: two float32[B, 1, T, H / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = theta ** -(exponents / head_dim)
    # float32 even in a bf16 model: bf16 cannot tell position 257 from 258.
    angles = positions[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys [B, N, T, H] by their positions; the dtype is kept."""
    cos, sin = angles
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)
