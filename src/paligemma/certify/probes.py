"""The fixed questions of a certificate: images drawn here, and a prompt for every task.

Short and long prompts, wide, tall and small images, one image, two and none. The same for every
model, so that two certificates can be compared. A model without tokenizer gets token ids instead
of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from paligemma.config import PaliGemmaConfig
from paligemma.inputs import ModelInputs
from paligemma.processor.image import LoadedImage, load_image
from paligemma.processor.processor import Processor, PromptRow

Task = Literal["caption", "question", "ocr", "detect", "segment", "text", "clip"]

MINI_SAMPLE = Path(__file__).parents[1] / "mini" / "sample.png"
_MAX_PREFIX = 4500  # positions of a prompt with two images: above it, attention needs gigabytes


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One prompt about some of the images."""

    name: str
    task: Task
    prompt: str
    images: tuple[int, ...] = (0,)
    max_new_tokens: int = 12


PROBES = (
    Probe(name="caption", task="caption", prompt="caption en"),
    Probe(name="caption, wide image", task="caption", prompt="caption en", images=(1,)),
    Probe(name="empty prompt, tall image", task="caption", prompt="", images=(2,)),
    Probe(
        name="question",
        task="question",
        prompt="answer en what color is the circle?",
        max_new_tokens=6,
    ),
    Probe(
        name="long question",
        task="question",
        prompt="answer en "
        + "there is a circle and a square and a triangle in the image; " * 6
        + "how many things are there?",
        max_new_tokens=6,
    ),
    Probe(name="ocr", task="ocr", prompt="ocr", images=(3,), max_new_tokens=8),
    Probe(name="detect", task="detect", prompt="detect circle ; square", max_new_tokens=16),
    Probe(
        name="detect in a scene",
        task="detect",
        prompt="detect guitar ; banana",
        images=(4,),
        max_new_tokens=24,
    ),
    Probe(name="segment", task="segment", prompt="segment guitar", images=(4,), max_new_tokens=24),
    Probe(
        name="two images",
        task="clip",
        prompt="answer en what is different?",
        images=(0, 4),
        max_new_tokens=6,
    ),
    Probe(name="no image", task="text", prompt="caption en", images=(), max_new_tokens=6),
)


def probes_for(config: PaliGemmaConfig) -> list[Probe]:
    """The probes that this model has room for."""
    most = _MAX_PREFIX // config.vision.num_image_tokens
    return [probe for probe in PROBES if len(probe.images) <= max(1, most)]


def probe_images(side: int) -> list[LoadedImage]:
    """Four images drawn here, and one of mini's world; `side` is the model's resolution."""
    drawn = (
        ("shapes", _shapes(448, 448)),
        ("wide", _shapes(640, 200)),
        ("tall", _stripes(90, 400)),
        ("letters", _letters(side)),
    )
    images = [LoadedImage(rgb=Image.fromarray(image), name=name) for name, image in drawn]
    return [*images, load_image(MINI_SAMPLE)]


def _shapes(width: int, height: int) -> np.ndarray:
    """A red circle, a blue square and a green triangle on a light gradient."""
    y, x = np.mgrid[0:height, 0:width]
    u, v = (x + 0.5) / width, (y + 0.5) / height
    image = np.stack([225 + 20 * u, 220 + 20 * v, 235 - 20 * u * v], axis=2)
    shorter = min(width, height)
    circle = np.hypot(x - 0.28 * width, y - 0.3 * height) < 0.2 * shorter
    square = (abs(x - 0.7 * width) < 0.17 * shorter) & (abs(y - 0.32 * height) < 0.17 * shorter)
    triangle = (v > 0.6) & (v < 0.95) & (abs(u - 0.5) < (v - 0.6) * 0.5)
    for shape, color in (
        (circle, (200, 30, 40)),
        (square, (30, 60, 200)),
        (triangle, (30, 150, 60)),
    ):
        image[shape] = color
    return image.astype(np.uint8)


def _stripes(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack(
        [(x * 7 + y) % 256, (y * 3) % 256, 128 + 100 * np.sin((x + 2 * y) / 9)], axis=2
    )
    return image.astype(np.uint8)


# Seven rows of five pixels: a 1 is dark.
_GLYPHS = {
    "4": (0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010),
    "7": (0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000),
    "L": (0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111),
    "T": (0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100),
}


def _letters(side: int) -> np.ndarray:
    """The text "TL 47" in large letters."""
    text, unit = "TL 47", max(1, side // 40)
    image = np.full((9 * unit * 2, (6 * len(text) + 2) * unit, 3), 245, dtype=np.uint8)
    for number, letter in enumerate(text):
        for row, bits in enumerate(_GLYPHS.get(letter, ())):
            for column in range(5):
                if bits >> (4 - column) & 1:
                    top, left = (row + 5) * unit, (1 + 6 * number + column) * unit
                    image[top : top + unit, left : left + unit] = (20, 20, 30)
    return image


@dataclass(frozen=True, kw_only=True)
class ProbeInputs:
    """The probes as the model reads them."""

    probes: tuple[Probe, ...]
    prefixes: tuple[ModelInputs, ...]
    """One row per probe; `pixel_values` is None, and `image_index` refers to `pixel_values`
    here."""
    batch: ModelInputs
    """Rows of several lengths, padded on the left."""
    batch_rows: tuple[int, ...]
    """Which probes are the rows of the batch."""
    pixel_values: Tensor
    image_sizes: tuple[tuple[int, int], ...]


_BATCH = ("caption", "long question", "ocr", "detect in a scene")


def build_inputs(config: PaliGemmaConfig, processor: Processor | None) -> ProbeInputs:
    """Turn the probes into token ids and pixels."""
    probes = probes_for(config)
    images = probe_images(config.vision.resolution)
    rows = [PromptRow(prompt=probe.prompt, images=probe.images) for probe in probes]
    batch_rows = tuple(i for i, probe in enumerate(probes) if probe.name in _BATCH)
    if config.vision.num_image_tokens > 1100:
        batch_rows = batch_rows[:2]
    if processor is None:
        pixels = _random_pixels(len(images), config)
        prefixes = [_token_rows(config, [probe]) for probe in probes]
        batch = _token_rows(config, [probes[i] for i in batch_rows])
    else:
        pixels = processor.pixel_values(images)
        prefixes = [processor.prefix_inputs([row], images) for row in rows]
        batch = processor.prefix_inputs([rows[i] for i in batch_rows], images)
    return ProbeInputs(
        probes=tuple(probes),
        prefixes=tuple(without_pixels(prefix) for prefix in prefixes),
        batch=without_pixels(batch),
        batch_rows=batch_rows,
        pixel_values=pixels,
        image_sizes=tuple(image.size_wh for image in images),
    )


def without_pixels(inputs: ModelInputs) -> ModelInputs:
    return ModelInputs(
        token_ids=inputs.token_ids,
        input_mask=inputs.input_mask,
        mask_ar=inputs.mask_ar,
        image_mask=inputs.image_mask,
        pixel_values=None,
        image_index=inputs.image_index,
    )


def _random_pixels(num_images: int, config: PaliGemmaConfig) -> Tensor:
    side = config.vision.resolution
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_images, 3, side, side, generator=generator) * 2 - 1


def _token_rows(config: PaliGemmaConfig, probes: Sequence[Probe]) -> ModelInputs:
    """Rows of arbitrary ids, as long as their prompts have words, padded on the left."""
    lengths = [2 + len(probe.prompt.split()) for probe in probes]
    num_image_tokens = config.vision.num_image_tokens
    totals = [
        len(probe.images) * num_image_tokens + length
        for probe, length in zip(probes, lengths, strict=True)
    ]
    shape = (len(probes), max(totals))
    ids = torch.zeros(shape, dtype=torch.int64)
    is_real, is_image = (torch.zeros(shape, dtype=torch.bool) for _ in range(2))
    for row, (probe, length, total) in enumerate(zip(probes, lengths, totals, strict=True)):
        text = torch.arange(length) * 7919 + 31 * len(probe.name)
        ids[row, shape[1] - length :] = 4 + text % max(1, config.decoder.vocab_size - 4)
        is_real[row, shape[1] - total :] = True
        is_image[row, shape[1] - total : shape[1] - length] = True
    return ModelInputs(
        token_ids=ids,
        input_mask=is_real,
        mask_ar=torch.zeros(shape, dtype=torch.bool),
        image_mask=is_image,
        pixel_values=None,
        image_index=tuple(probe.images for probe in probes),
    )


def with_suffix(prefix: ModelInputs, token_ids: Sequence[int]) -> ModelInputs:
    """One row with tokens that the model wrote after it, which are causal."""
    new = torch.tensor([list(token_ids)], dtype=torch.int64)
    yes = torch.ones_like(new, dtype=torch.bool)
    return ModelInputs(
        token_ids=torch.cat([prefix.token_ids, new], dim=1),
        input_mask=torch.cat([prefix.input_mask, yes], dim=1),
        mask_ar=torch.cat([prefix.mask_ar, yes], dim=1),
        image_mask=torch.cat([prefix.image_mask, ~yes], dim=1),
        pixel_values=None,
        image_index=prefix.image_index,
    )
