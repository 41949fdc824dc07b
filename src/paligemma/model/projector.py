"""The projector: one linear layer from the vision width to the decoder's.

Its output enters the decoder as it is: no norm, no activation, no scaling. (Text embeddings are
multiplied by sqrt(width); image tokens are not. See `Decoder.embed`.)
"""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Module):
    """float[I, P, vision width] -> float[I, P, decoder width]."""

    def __init__(self, vision_width: int, decoder_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, decoder_width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(features)
        return out
