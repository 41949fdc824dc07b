"""Shapes by name, random weights and random inputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paligemma.checkpoints.hf_config import read_config
from paligemma.config import RELEASES, PaliGemmaConfig
from paligemma.errors import OptionError

MINI = "mini"
PROMPT_LENGTH = 16  # BOS, a short question and the separator
IMAGE_SIZE_WH = (640, 480)


def named_config(name: str) -> PaliGemmaConfig:
    """The shapes of "mini", of a release, or of a size and resolution ("paligemma2-3b-224").

    >>> named_config("paligemma2-10b-448").decoder.width
    3584
    """
    if name == MINI:
        return read_config(Path(__file__).parents[1] / "mini" / "model").config
    for release in RELEASES:
        shape = f"{release.family}-{release.size}-{release.resolution}"
        if name in (shape, release.variant, release.hub_id):
            return release.config
    raise OptionError(
        f"Unknown shape {name!r}. Pass {MINI!r}, a release such as 'paligemma2-3b-mix-448' "
        "(`paligemma models` lists them), or a size and resolution such as 'paligemma2-3b-224'."
    )


def fill_with_noise(weights: Iterable[Tensor], seed: int = 0) -> None:
    """Fill tensors with small random numbers, byte tensors with random bytes.

    The same shapes get the same numbers. One block is repeated: drawing three billion numbers
    would take a minute.
    """
    generator = torch.Generator().manual_seed(seed)
    block = torch.rand(2**22 + 1, generator=generator) * 0.04 - 0.02
    random_bytes = torch.randint(0, 256, block.shape, dtype=torch.uint8, generator=generator)
    for weight in weights:
        values = random_bytes if weight.dtype == torch.uint8 else block.to(weight.dtype)
        for piece in weight.detach().view(-1).split(len(values)):
            piece.copy_(values[: len(piece)])


def noise_image() -> NDArray[np.uint8]:
    """uint8[480, 640, 3]."""
    width, height = IMAGE_SIZE_WH
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def prompt_ids(config: PaliGemmaConfig, num_rows: int) -> Tensor:
    """int64[B, 16]: prompts of the same length and different tokens."""
    generator = torch.Generator().manual_seed(1)
    shape = (num_rows, PROMPT_LENGTH)
    return torch.randint(5, config.decoder.vocab_size, shape, generator=generator)
