"""ModelInputs: the typed batch that the processor hands to the model and the trainer.

Knows tensors and their shapes; knows no text, no files and no model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paligemma.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """A batch of B sequences of T positions that refer to I pictures.

    A row is: image tokens of its pictures, BOS, prefix, separator (, suffix, EOS), and pads on
    either side. The model derives positions and the attention mask from `input_mask` and
    `mask_ar`, so pads may stand left (inference) or right (training).

        row          <img> <img> BOS  cap  en   \\n   a    dog  EOS  PAD
        image_mask   1     1     0    0    0    0    0    0    0    0
        input_mask   1     1     1    1    1    1    1    1    1    0
        mask_ar      0     0     0    0    0    0    1    1    1    1
        loss_mask    0     0     0    0    0    0    1    1    1    0

    A picture that several rows ask about stands once in `pixel_values` and is encoded once.
    """

    token_ids: Tensor
    """int64[B, T]; 0 where an image token or a pad stands."""
    input_mask: Tensor
    """bool[B, T]; True where a real token or image token stands."""
    mask_ar: Tensor
    """bool[B, T]; True from where a position may be seen only by itself and later ones."""
    image_mask: Tensor
    """bool[B, T]; True where a projected patch stands."""
    pixel_values: Tensor | None
    """float32[I, 3, H, W] in [-1, 1]; None where the model is given image tokens instead."""
    image_index: tuple[tuple[int, ...], ...]
    """For each row, the pictures that fill its image tokens, in order."""
    loss_mask: Tensor | None = None
    """bool[B, T]; True where the token counts in the loss or in a score."""

    @property
    def required_pixel_values(self) -> Tensor:
        """`pixel_values`; raises OptionError where there are none."""
        if self.pixel_values is None:
            raise OptionError("The inputs have no pixel_values. Pass image_tokens to the model.")
        return self.pixel_values

    def row(self, row: int) -> ModelInputs:
        """One row as a batch of its own, without its pads and its `loss_mask`."""
        here = slice(row, row + 1)
        real = self.input_mask[row]
        return replace(
            self,
            token_ids=self.token_ids[here, real],
            input_mask=self.input_mask[here, real],
            mask_ar=self.mask_ar[here, real],
            image_mask=self.image_mask[here, real],
            image_index=(self.image_index[row],),
            loss_mask=None,
        )

    def to(self, device: torch.device | str) -> ModelInputs:
        """The same batch on another device."""
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            input_mask=self.input_mask.to(device),
            mask_ar=self.mask_ar.to(device),
            image_mask=self.image_mask.to(device),
            pixel_values=None if self.pixel_values is None else self.pixel_values.to(device),
            loss_mask=None if self.loss_mask is None else self.loss_mask.to(device),
        )
