"""Processor: images and prompts to one `ModelInputs`, for inference and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paligemma.errors import OptionError, counted
from paligemma.inputs import ModelInputs
from paligemma.processor.image import (
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
    """A prompt and the images it is about, as indices into the batch's list of images."""

    prompt: str
    images: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class ExampleRow:
    """A prompt with its suffix: one text, or parts of which some do not count in the loss."""

    prompt: str
    suffix: str | tuple[SuffixPart, ...]
    images: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Turns images and rows of text into a batch.

    Two prompts about one image make 2 rows and 1 image. With `num_image_tokens` 256, "caption en"
    makes a row of 260 positions (256, BOS, caption, en, newline), and "ocr" one of 259 after a pad.
    """

    tokenizer: Tokenizer
    resolution: int
    num_image_tokens: int
    """Number of positions per image: 256 at 224 pixels."""
    resize: Resize = "squash"

    def load(
        self,
        source: ImageSource,
        *,
        allow_urls: bool = False,
        max_pixels: int | None = None,
        strict: bool = False,
    ) -> LoadedImage:
        """Load an image; see `load_image`."""
        return load_image(source, allow_urls=allow_urls, max_pixels=max_pixels, strict=strict)

    def transform(self, image: LoadedImage) -> ImageTransform:
        """Return how this image is fitted to the model's square input; it maps boxes back."""
        return ImageTransform(
            source_wh=image.size_wh, resolution=self.resolution, resize=self.resize
        )

    def pixel_values(self, images: Sequence[LoadedImage]) -> Tensor:
        """Return I images as float32[I, 3, R, R] in [-1, 1], with R the resolution."""
        pixels = np.empty((len(images), 3, self.resolution, self.resolution), dtype=np.float32)
        for i, image in enumerate(images):
            pixels[i] = pixel_array(image.rgb, self.transform(image))
        return torch.from_numpy(pixels)

    def prefix_inputs(
        self, rows: Sequence[PromptRow], images: Sequence[LoadedImage]
    ) -> ModelInputs:
        """Build the inputs for generation, padded on the left so that new tokens line up.

        Raises PromptError for text that cannot be tokenized, and OptionError for an empty batch or
        an image index out of range.
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
        """Build the inputs for training or scoring, with a `loss_mask`, padded on the right.

        Raises PromptError for text that cannot be tokenized, and OptionError for an empty batch or
        an image index out of range.
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
                    f"Row {row} refers to image {missing[0]}, but the batch has "
                    f"{counted(len(images), 'image')}. Indices start at 0."
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
    """Pad sequences of different lengths to one batch, without pixel values.

    `image_index` has, for each row, the indices of the images that fill its image tokens.
    """
    longest = max(map(len, sequences))
    starts = [longest - len(s) if pad == "left" else 0 for s in sequences]

    def padded(rows: Sequence[Sequence[int]], fill: int, dtype: torch.dtype) -> Tensor:
        table = torch.full((len(rows), longest), fill, dtype=dtype)
        for padded_row, row, start in zip(table, rows, starts, strict=True):
            padded_row[start : start + len(row)] = torch.tensor(row, dtype=dtype)
        return table

    return ModelInputs(
        token_ids=padded([s.token_ids for s in sequences], pad_id, torch.int64),
        input_mask=padded([[True] * len(s) for s in sequences], False, torch.bool),
        # Pads on the right are causal, as in big_vision. Pads on the left must not be, because
        # everything after the first True belongs to the suffix.
        mask_ar=padded([s.mask_ar for s in sequences], pad == "right", torch.bool),
        image_mask=padded([s.image_mask for s in sequences], False, torch.bool),
        loss_mask=padded([s.loss_mask for s in sequences], False, torch.bool),
        pixel_values=None,
        image_index=tuple(image_index),
    )
