"""mini's mask codec: the VQ-VAE of `tasks/seg_codec.py`, small, trained on the world's own shapes.

Straight-through gradients and a codebook kept as running means of what falls on each code
(arXiv 1711.00937, appendix A.1); codes that nothing falls on start again somewhere used.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from mini import assets
from mini.examples import SegCodes
from paligemma.config import NUM_CODES_PER_MASK, MaskCodecConfig
from paligemma.tasks.seg_codec import MASK_SIDE, MaskCodec

MINI_CODEC = MaskCodecConfig(code_dim=16, width=48, stem_widths=(8, 16, 32, 48))
_DECAY = 0.98
_COMMITMENT = 0.25


def world_masks() -> Tensor:
    """The mask of every kind in every pose: float32[64 * 10, 64, 64] in [0, 1]."""
    kinds, poses = range(len(assets.KIND_CODEPOINTS)), range(assets.NUM_POSES)
    masks = [assets.sprite_mask64(kind, pose) for kind in kinds for pose in poses]
    return torch.from_numpy(np.stack(masks))


def train_mask_codec(num_steps: int = 1500, batch_size: int = 64, seed: int = 0) -> MaskCodec:
    """Train a codec; the same arguments give the same codec on the same machine."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    codec = MaskCodec(MINI_CODEC)
    codebook = codec.codebook.requires_grad_(False)
    sums, sizes = codebook.clone(), torch.ones(len(codebook))
    trained = [p for p in codec.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    masks = world_masks()
    for step in range(num_steps):
        batch = masks[torch.from_numpy(rng.integers(len(masks), size=batch_size))]
        shapes = torch.from_numpy(np.stack([_random_shape(rng) for _ in range(batch_size // 4)]))
        batch = torch.cat([batch, shapes])[:, None] * 2 - 1
        features = codec.encoder(batch)  # (N, D, 4, 4)
        flat = features.permute(0, 2, 3, 1).flatten(0, 2)  # (N * 16, D)
        nearest = torch.cdist(flat.detach(), codebook).argmin(1)
        quantized = codebook[nearest].view_as(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        passed = features + (quantized - features).detach()
        loss = F.mse_loss(codec.decoder(passed), batch)
        loss = loss + _COMMITMENT * F.mse_loss(features, quantized)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            hits = F.one_hot(nearest, len(codebook)).float()
            sizes.mul_(_DECAY).add_(hits.sum(0), alpha=1 - _DECAY)
            sums.mul_(_DECAY).add_(hits.T @ flat, alpha=1 - _DECAY)
            if step < num_steps // 2 and step % 20 == 0:
                unused = sizes < 0.05
                fresh = flat[torch.from_numpy(rng.integers(len(flat), size=int(unused.sum())))]
                sums[unused], sizes[unused] = fresh, 1.0
            codebook.copy_(sums / sizes.clamp_min(1e-3)[:, None])
    return codec.eval().requires_grad_(False)


def seg_codes(codec: MaskCodec) -> SegCodes:
    """The 16 codes of every (kind, pose)."""
    codes = codec.encode_masks(world_masks()).view(-1, assets.NUM_POSES, NUM_CODES_PER_MASK)
    return {
        (kind, pose): tuple(row)
        for kind, poses in enumerate(codes.tolist())
        for pose, row in enumerate(poses)
    }


def reconstruction_iou(codec: MaskCodec) -> float:
    """Mean intersection over union of the world's masks and what the codec makes of them."""
    truth = world_masks() > 0.5
    made = codec.decode_masks(codec.encode_masks(world_masks())) > 0
    both, either = (truth & made).sum((1, 2)), (truth | made).sum((1, 2))
    return float((both / either).mean())


def _random_shape(rng: np.random.Generator) -> NDArray[np.float32]:
    """A random blob that touches its box's edges, so that the codec knows more than 64 glyphs."""
    corners = rng.integers(3, 9)
    angles = np.sort(rng.random(corners)) * 2 * np.pi
    radii = rng.uniform(0.5, 1.0, corners)
    points = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], 1)
    low, high = points.min(0), points.max(0)
    points = (points - low) / np.maximum(high - low, 1e-3) * (MASK_SIDE - 1)
    canvas = Image.new("L", (MASK_SIDE, MASK_SIDE))
    if rng.random() < 0.3:
        ImageDraw.Draw(canvas).ellipse((0, 0, MASK_SIDE - 1, MASK_SIDE - 1), fill=255)
    else:
        ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(canvas, dtype=np.float32) / np.float32(255)
