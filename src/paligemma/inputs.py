"""ModelInputs: the batch that a processor builds for the model and the trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paligemma.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """A batch of B sequences of T positions that refer to I images.

    A row consists of the image tokens of its images, BOS, prefix and separator, then in training
    suffix and EOS. The model derives positions and the attention mask from `input_mask` and
    `mask_ar`, so rows may be padded on the left (inference) or on the right (training).

        row          <img> <img> BOS  cap  en   \\n   a    dog  EOS  PAD
        image_mask   1     1     0    0    0    0    0    0    0    0
        input_mask   1     1     1    1    1    1    1    1    1    0
        mask_ar      0     0     0    0    0    0    1    1    1    1
        loss_mask    0     0     0    0    0    0    1    1    1    0

    An image that several rows refer to occurs once in `pixel_values` and is encoded once.
    """

    token_ids: Tensor
    """int64[B, T]; 0 at image tokens and pads."""
    input_mask: Tensor
    """bool[B, T]; True at tokens and image tokens, False at pads."""
    mask_ar: Tensor
    """bool[B, T]; True at causal positions, which only they themselves and later ones may see."""
    image_mask: Tensor
    """bool[B, T]; True at image tokens."""
    pixel_values: Tensor | None
    """float32[I, 3, H, W] in [-1, 1]; None where image tokens are passed to the model instead."""
    image_index: tuple[tuple[int, ...], ...]
    """For each row, indices into `pixel_values` of the images that fill its image tokens."""
    loss_mask: Tensor | None = None
    """bool[B, T]; True where the token counts in the loss or in a score."""

    @property
    def required_pixel_values(self) -> Tensor:
        """Return `pixel_values`. Raises OptionError if there are none."""
        if self.pixel_values is None:
            raise OptionError("The inputs have no pixel_values. Pass image_tokens to the model.")
        return self.pixel_values

    def row(self, row: int) -> ModelInputs:
        """Return one row as a batch of size 1, without its pads and without `loss_mask`."""
        rows = slice(row, row + 1)
        is_real = self.input_mask[row]
        return replace(
            self,
            token_ids=self.token_ids[rows, is_real],
            input_mask=self.input_mask[rows, is_real],
            mask_ar=self.mask_ar[rows, is_real],
            image_mask=self.image_mask[rows, is_real],
            image_index=(self.image_index[row],),
            loss_mask=None,
        )

    def to(self, device: torch.device | str) -> ModelInputs:
        """Return the batch on another device."""
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            input_mask=self.input_mask.to(device),
            mask_ar=self.mask_ar.to(device),
            image_mask=self.image_mask.to(device),
            pixel_values=None if self.pixel_values is None else self.pixel_values.to(device),
            loss_mask=None if self.loss_mask is None else self.loss_mask.to(device),
        )
