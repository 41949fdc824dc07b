"""A model with random weights, run stage by stage; every method returns seconds."""

from __future__ import annotations

import time

import torch
from PIL import Image
from torch import Tensor

from paligemma.bench.workload import (
    IMAGE_SIZE_WH,
    PROMPT_LENGTH,
    fill_with_noise,
    noise_image,
    prompt_ids,
)
from paligemma.config import PaliGemmaConfig
from paligemma.fast.accelerate import accelerate
from paligemma.fast.float32 import runs_packed, use_tiles
from paligemma.fast.weights import Packed, Plain
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import SlotCache
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.image import ImageTransform, load_image, pixel_array

# B rows, T positions, P image tokens, D width


class ModelRunner:
    """`PaliGemma` and a plain greedy loop: token ids in, token ids out."""

    def __init__(self, model: PaliGemma) -> None:
        self.model = model
        vision = model.config.vision
        self._image = Image.fromarray(noise_image())
        self._transform = ImageTransform(source_wh=IMAGE_SIZE_WH, resolution=vision.resolution)
        self._pixel_values = self._read_image()
        self._image_tokens = torch.zeros(
            1, vision.num_image_tokens, model.config.decoder.width, dtype=model.dtype
        )

    @torch.inference_mode()
    def image(self) -> float:
        """An image in memory to pixel values."""
        start = time.perf_counter()
        self._read_image()
        return time.perf_counter() - start

    @torch.inference_mode()
    def vision(self) -> float:
        """Pixel values to image tokens."""
        start = time.perf_counter()
        self.model.embed_images(self._pixel_values)
        return time.perf_counter() - start

    @torch.inference_mode()
    def prefill(self) -> float:
        """Image tokens and a prompt to the logits after the last position."""
        inputs, cache = self._inputs(1), self._new_cache(1, 0)
        start = time.perf_counter()
        self._prefill(inputs, cache, self._image_tokens).argmax(dim=1).tolist()
        return time.perf_counter() - start

    @torch.inference_mode()
    def answer(self, num_tokens: int, num_rows: int) -> list[float]:
        """From an image in memory: when each token of all rows was available."""
        inputs = self._inputs(num_rows)
        start = time.perf_counter()
        cache = self._new_cache(num_rows, num_tokens)
        image_tokens = self.model.embed_images(self._read_image())
        token_ids = self._prefill(inputs, cache, image_tokens).argmax(dim=1)
        available_after = []
        for _ in range(num_tokens - 1):
            token_ids.tolist()  # as a program does that streams its text
            available_after.append(time.perf_counter() - start)
            token_ids = self.model.decode_step(token_ids, cache).argmax(dim=1)
        token_ids.tolist()
        available_after.append(time.perf_counter() - start)
        return available_after

    @torch.inference_mode()
    def steps(self, num_tokens: int, num_rows: int) -> list[float]:
        """The duration of each decode step after a prefill of all rows."""
        cache = self._new_cache(num_rows, num_tokens)
        logits = self._prefill(self._inputs(1), cache, self._image_tokens)
        for rows in (*cache.keys, *cache.values):
            rows[1:] = rows[:1]
        cache.admit([cache.row_lengths[0]] * (num_rows - 1))
        token_ids = logits.argmax(dim=1).expand(num_rows)
        seconds = []
        for _ in range(num_tokens):
            start = time.perf_counter()
            token_ids = self.model.decode_step(token_ids, cache).argmax(dim=1)
            token_ids.tolist()
            seconds.append(time.perf_counter() - start)
        return seconds

    def _read_image(self) -> Tensor:
        rgb = load_image(self._image).rgb
        return torch.from_numpy(pixel_array(rgb, self._transform))[None]

    def _new_cache(self, num_rows: int, num_tokens: int) -> SlotCache:
        vision = self.model.config.vision
        num_positions = vision.num_image_tokens + PROMPT_LENGTH + num_tokens
        return SlotCache(self.model.config.decoder, num_rows, num_positions, dtype=self.model.dtype)

    def _prefill(self, inputs: ModelInputs, cache: SlotCache, image_tokens: Tensor) -> Tensor:
        num_rows, length = inputs.token_ids.shape
        logits = self.model.prefill(inputs, cache.fresh(num_rows), image_tokens)
        cache.admit([length] * num_rows)
        return logits

    def _inputs(self, num_rows: int) -> ModelInputs:
        """All rows ask about the same image."""
        num_image_tokens = self.model.config.vision.num_image_tokens
        prompts = prompt_ids(self.model.config, num_rows)
        token_ids = torch.cat([prompts.new_zeros(num_rows, num_image_tokens), prompts], dim=1)
        return ModelInputs(
            token_ids=token_ids,
            input_mask=torch.ones_like(token_ids, dtype=torch.bool),
            mask_ar=torch.zeros_like(token_ids, dtype=torch.bool),
            image_mask=(torch.arange(token_ids.shape[1]) < num_image_tokens).expand_as(token_ids),
            pixel_values=self._pixel_values,
            image_index=((0,),) * num_rows,
        )


def build_runner(config: PaliGemmaConfig, weights: Plain | Packed) -> ModelRunner:
    """A model with random weights, plain or packed."""
    with torch.device("meta"):
        if isinstance(weights, Packed):
            model = accelerate(PaliGemma(config).to(torch.bfloat16), weights.quantization)
        else:
            model = PaliGemma(config).to(getattr(torch, weights.dtype))
            if model.dtype == torch.float32:  # as `load` does
                model = accelerate(model) if runs_packed(config) else use_tiles(model)
    model = model.to_empty(device="cpu").eval()
    # Packed weights are filled in their packed form: packing plain ones takes twice the memory.
    fill_with_noise([*model.parameters(), *model.buffers()])
    return ModelRunner(model)
