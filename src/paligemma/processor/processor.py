"""Processor: pictures and prompts to one ModelInputs, for inference and for training alike.

Knows no tasks and no model; its numbers (resolution, image tokens) come from the model's config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paligemma.errors import OptionError
from paligemma.inputs import ModelInputs
from paligemma.processor.image import (
    MAX_PIXELS,
    ImageSource,
    ImageTransform,
    LoadedImage,
    Resize,
    load_image,
    pixel_array,
)
from paligemma.processor.sequence import SuffixPart, TokenSequence, build_example, build_prefix
from paligemma.processor.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt about some of the batch's pictures, named by their place in the list."""

    prompt: str
    images: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class ExampleRow:
    """A prompt with its answer: whole, or in parts of which some do not count in the loss."""

    prompt: str
    suffix: str | tuple[SuffixPart, ...]
    images: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Turns pictures and rows of text into a batch.

    Two questions about one picture: 2 rows, 1 picture; with `num_image_tokens` 256,
    "caption en" makes a row of 260 positions (256, BOS, caption, en, newline), "ocr" one of 259
    behind a pad.
    """

    tokenizer: Tokenizer
    resolution: int
    num_image_tokens: int
    """Positions that one picture takes: 256 at 224 pixels."""
    resize: Resize = "squash"

    def load(
        self, source: ImageSource, *, allow_urls: bool = False, max_pixels: int = MAX_PIXELS
    ) -> LoadedImage:
        """See `load_image`."""
        return load_image(source, allow_urls=allow_urls, max_pixels=max_pixels)

    def transform(self, image: LoadedImage) -> ImageTransform:
        """How this picture is laid into the model's square; maps boxes back."""
        return ImageTransform(
            source_wh=image.size_wh, resolution=self.resolution, resize=self.resize
        )

    def pixel_values(self, images: Sequence[LoadedImage]) -> Tensor:
        """float32[I, 3, R, R] in [-1, 1]."""
        pixels = np.empty((len(images), 3, self.resolution, self.resolution), dtype=np.float32)
        for i, image in enumerate(images):
            pixels[i] = pixel_array(image.rgb, self.transform(image))
        return torch.from_numpy(pixels)

    def prefix_inputs(
        self, rows: Sequence[PromptRow], images: Sequence[LoadedImage]
    ) -> ModelInputs:
        """What the model reads before it answers; pads on the left, so that answers line up.

        Raises PromptError for text that cannot be tokenized, OptionError for a picture that is
        not there.
        """
        sequences = [
            build_prefix(self.tokenizer, row.prompt, len(row.images), self.num_image_tokens)
            for row in rows
        ]
        batch = self._batch(sequences, [row.images for row in rows], images, pad="left")
        return replace(batch, loss_mask=None)  # nothing of a prefix counts

    def example_inputs(
        self, rows: Sequence[ExampleRow], images: Sequence[LoadedImage]
    ) -> ModelInputs:
        """Prompts with their answers, and `loss_mask` on what counts of them; pads on the right.

        Raises PromptError for text that cannot be tokenized, OptionError for a picture that is
        not there.
        """
        sequences = [
            build_example(
                self.tokenizer, row.prompt, row.suffix, len(row.images), self.num_image_tokens
            )
            for row in rows
        ]
        return self._batch(sequences, [row.images for row in rows], images, pad="right")

    def _batch(
        self,
        sequences: Sequence[TokenSequence],
        image_index: Sequence[tuple[int, ...]],
        images: Sequence[LoadedImage],
        pad: Literal["right", "left"],
    ) -> ModelInputs:
        if not sequences:
            raise OptionError("Empty batch. Pass at least one row.")
        for row, indices in enumerate(image_index):
            missing = [i for i in indices if not 0 <= i < len(images)]
            if missing:
                raise OptionError(
                    f"Row {row} refers to image {missing[0]}, but the batch has {len(images)} "
                    "image(s). Indices start at 0."
                )
        return replace(
            pad_batch(sequences, image_index, pad=pad, pad_id=self.tokenizer.pad_id),
            pixel_values=self.pixel_values(images),
        )


def pad_batch(
    sequences: Sequence[TokenSequence],
    image_index: Sequence[tuple[int, ...]],
    *,
    pad: Literal["right", "left"],
    pad_id: int,
) -> ModelInputs:
    """Sequences of different lengths as one batch, without pixel values.

    `image_index` says which of the batch's images fill each row's image tokens.
    """
    longest = max(map(len, sequences))
    starts = [longest - len(s) if pad == "left" else 0 for s in sequences]

    def padded(rows: Sequence[Sequence[int]], fill: int, dtype: torch.dtype) -> Tensor:
        table = torch.full((len(rows), longest), fill, dtype=dtype)
        for line, row, start in zip(table, rows, starts, strict=True):
            line[start : start + len(row)] = torch.tensor(row, dtype=dtype)
        return table

    return ModelInputs(
        token_ids=padded([s.token_ids for s in sequences], pad_id, torch.int64),
        input_mask=padded([[True] * len(s) for s in sequences], False, torch.bool),
        # Pads after a row are causal as in big_vision. Pads before it are not: what follows the
        # first True counts as suffix.
        mask_ar=padded([s.mask_ar for s in sequences], pad == "right", torch.bool),
        image_mask=padded([s.image_mask for s in sequences], False, torch.bool),
        loss_mask=padded([s.loss_mask for s in sequences], False, torch.bool),
        pixel_values=None,
        image_index=tuple(image_index),
    )
