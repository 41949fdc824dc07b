"""The whole model: images and tokens to logits.

pixel_values -> vision_encoder -> projector -> image tokens ┐
                                 token_ids -> embed ────────┴-> decoder -> logits
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paligemma.config import PaliGemmaConfig
from paligemma.errors import PromptError
from paligemma.inputs import ModelInputs
from paligemma.model.attention import (
    in_window,
    positions_of,
    prefix_lm_mask,
    sliding_prefix_lm_mask,
)
from paligemma.model.gemma import Decoder
from paligemma.model.kv_cache import Cache
from paligemma.model.siglip import VisionEncoder


class Projector(nn.Module):
    """float[I, P, vision width] -> float[I, P, decoder width]."""

    def __init__(self, vision_width: int, decoder_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, decoder_width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(features)
        return out


# B batch, T tokens, I images, P image tokens per image, D decoder width, V vocabulary


class PaliGemma(nn.Module):
    """PaliGemma 1 and 2 of any size (arXiv 2407.07726, arXiv 2412.03555)."""

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder = VisionEncoder(config.vision)
        self.projector = Projector(config.vision.width, config.decoder.width)
        self.decoder = Decoder(config.decoder)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.final_norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.final_norm.weight.device

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """Encode and project images: float[I, 3, H, W] in [-1, 1] -> image tokens [I, P, D]."""
        image_tokens: Tensor = self.projector(self.vision_encoder(pixel_values.to(self.dtype)))
        return image_tokens

    def embed(self, inputs: ModelInputs, image_tokens: Tensor | None = None) -> Tensor:
        """Return text embeddings with image tokens at their positions: [B, T, D].

        `image_tokens` float[I, P, D] replace encoding `inputs.pixel_values`. Raises PromptError if
        `inputs` does not have the number of image positions that its images need.
        """
        x = self.decoder.embed(inputs.token_ids)
        flat_index = [image for row in inputs.image_index for image in row]
        if image_tokens is None:
            if not flat_index:
                return x
            image_tokens = self.embed_images(inputs.required_pixel_values)
        # The gradient of index_select sums in a fixed order, so a resumed run is bit-identical.
        index = torch.tensor(flat_index, dtype=torch.int64, device=x.device)
        features = image_tokens.index_select(0, index)
        features = features.flatten(0, 1)
        num_positions = int(inputs.image_mask.sum())
        if num_positions != features.shape[0]:
            raise PromptError(
                f"The batch has {num_positions} image token positions, but {len(flat_index)} "
                f"image(s) of {image_tokens.shape[1]} tokens need {features.shape[0]}. "
                "Build the inputs with a processor for the model's resolution."
            )
        return x.masked_scatter(inputs.image_mask[..., None], features.to(x.dtype))

    def hidden_states(
        self,
        inputs: ModelInputs,
        *,
        image_tokens: Tensor | None = None,
        kv_cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Run whole sequences in one pass -> [B, T, D]; fills `kv_cache`, which must be empty.

        With `at` int64[B], returns only that position of each row, [B, 1, D], which saves most of
        the last block.
        """
        x = self.embed(inputs, image_tokens)
        positions = positions_of(inputs.input_mask)
        attn_mask = prefix_lm_mask(inputs.input_mask, inputs.mask_ar)
        sliding_mask = None
        if (window := self.config.decoder.sliding_window) is not None:
            sliding_mask = sliding_prefix_lm_mask(
                attn_mask, inputs.input_mask, inputs.mask_ar, positions, window
            )
        if kv_cache is not None:
            kv_cache.claim(inputs.input_mask, positions)
        hidden: Tensor = self.decoder(x, positions, attn_mask, sliding_mask, kv_cache, at)
        return hidden

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Return the next-token logits at every position: float32[B, T, V]."""
        return self.decoder.logits(self.hidden_states(inputs))

    def prefill(
        self,
        inputs: ModelInputs,
        kv_cache: Cache,
        image_tokens: Tensor | None = None,
        vocab_range: range | None = None,
    ) -> Tensor:
        """Run the prefix in one pass (it is bidirectional) and fill the cache -> float32[B, V].

        The logits are those of each row's last real position, or only those of the ids in
        `vocab_range`.
        """
        hidden = self.prefix_state(inputs, kv_cache, image_tokens)
        return self.decoder.logits(hidden, vocab_range=vocab_range)

    def prefix_state(
        self, inputs: ModelInputs, kv_cache: Cache, image_tokens: Tensor | None = None
    ) -> Tensor:
        """Run the prefix as `prefill` does, but return the last hidden state of each row, [B, D].

        This and the filled cache are the whole state that decoding continues from.
        """
        steps = torch.arange(inputs.input_mask.shape[1], device=inputs.input_mask.device)
        last = (steps * inputs.input_mask).argmax(dim=1)
        hidden = self.hidden_states(inputs, image_tokens=image_tokens, kv_cache=kv_cache, at=last)
        return hidden[:, 0]

    def decode_step(
        self, token_ids: Tensor, kv_cache: Cache, vocab_range: range | None = None
    ) -> Tensor:
        """Add one token per row, int64[B] -> the logits after it, float32[B, V]."""
        return self.extend(token_ids[:, None], kv_cache, vocab_range)[:, 0]

    def extend(
        self, token_ids: Tensor, kv_cache: Cache, vocab_range: range | None = None
    ) -> Tensor:
        """Add T tokens per row at once, int64[B, T] -> the logits after each, float32[B, T, V].

        Equals T decode steps, but reads the weights only once.
        """
        steps = torch.arange(token_ids.shape[1], device=token_ids.device)
        positions = kv_cache.next_position[:, None] + steps
        kv_cache.claim(torch.ones_like(positions, dtype=torch.bool), positions)
        past = kv_cache.positions[:, None, : kv_cache.length]
        attn_mask = kv_cache.valid[:, None, : kv_cache.length] & (past <= positions[:, :, None])
        sliding_mask = None
        if (window := self.config.decoder.sliding_window) is not None:
            near = in_window(positions, kv_cache.positions[:, : kv_cache.length], window)
            sliding_mask = attn_mask & near
        x = self.decoder.embed(token_ids)
        hidden = self.decoder(x, positions, attn_mask, sliding_mask, kv_cache)
        return self.decoder.logits(hidden, vocab_range=vocab_range)
