"""The vision encoder's order of patches and the stretching of its position table."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
import torch

from paligemma.model.siglip import VisionEncoder, resample_positions
from tests.tiny import tiny_config


def test_patches_go_row_by_row() -> None:
    encoder = VisionEncoder(tiny_config().vision)
    pixels = torch.zeros(1, 3, 30, 30)
    pixels[:, :, 6:12, 18:24] = 1.0  # the patch in row 1, column 3 of a grid of 5
    with torch.inference_mode():
        patches = encoder.patch_embedding(pixels).flatten(2).transpose(1, 2)
        blank = encoder.patch_embedding(torch.zeros_like(pixels)).flatten(2).transpose(1, 2)
    changed = (patches - blank).abs().amax(dim=-1)[0] > 0
    assert changed.nonzero().flatten().tolist() == [1 * 5 + 3]


def test_positions_are_stretched_as_big_vision_does() -> None:
    table = torch.randn(16, 7, generator=torch.Generator().manual_seed(0))
    for side in (4, 6, 9):
        ours = resample_positions(table, side**2)
        grid = table.numpy().reshape(4, 4, 7)
        theirs = scipy.ndimage.zoom(grid, (side / 4, side / 4, 1), order=1)
        np.testing.assert_allclose(ours.numpy(), theirs.reshape(-1, 7), atol=1e-5)
    assert resample_positions(table.bfloat16(), 36).dtype == torch.bfloat16
