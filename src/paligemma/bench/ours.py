"""This package as a runner: the plain model, the fast one, and the fast one quantized."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from paligemma.bench.workload import (
    PICTURE_SIZE_WH,
    PROMPT_LENGTH,
    fill_with_noise,
    noise_picture,
    prompt_ids,
    read_every_page,
)
from paligemma.checkpoints.load import load_model
from paligemma.config import PaliGemmaConfig
from paligemma.fast.accelerate import accelerate
from paligemma.fast.weights import Packed, Plain, Quantization
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import SlotCache
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.image import ImageTransform, load_image, pixel_array

# B rows, T positions, P image tokens, D width

_QUANTIZATION: dict[str, Quantization | None] = {
    "ours-bf16": None,
    "ours-int8": "int8",
    "ours-int4": "int4",
}


class OursRunner:
    """`PaliGemma` and the plain greedy loop; token ids in, token ids out."""

    def __init__(self, model: PaliGemma) -> None:
        self.model = model
        vision = model.config.vision
        self._picture = Image.fromarray(noise_picture())
        self._transform = ImageTransform(source_wh=PICTURE_SIZE_WH, resolution=vision.resolution)
        self._pixel_values = self._read_picture()
        self._image_tokens = torch.zeros(
            1, vision.num_image_tokens, model.config.decoder.width, dtype=model.dtype
        )

    @torch.inference_mode()
    def image(self) -> float:
        start = time.perf_counter()
        self._read_picture()
        return time.perf_counter() - start

    @torch.inference_mode()
    def vision(self) -> float:
        start = time.perf_counter()
        self.model.embed_images(self._pixel_values)
        return time.perf_counter() - start

    @torch.inference_mode()
    def prefill(self) -> float:
        inputs, cache = self._inputs(1), self._new_cache(1, 0)
        start = time.perf_counter()
        self._prefill(inputs, cache, self._image_tokens).argmax(dim=1).tolist()
        return time.perf_counter() - start

    @torch.inference_mode()
    def answer(self, num_tokens: int, num_rows: int) -> list[float]:
        inputs = self._inputs(num_rows)
        start = time.perf_counter()
        cache = self._new_cache(num_rows, num_tokens)
        image_tokens = self.model.embed_images(self._read_picture())
        token_ids = self._prefill(inputs, cache, image_tokens).argmax(dim=1)
        known_after = []
        for _ in range(num_tokens - 1):
            token_ids.tolist()  # as a program would that shows the words as they come
            known_after.append(time.perf_counter() - start)
            token_ids = self.model.decode_step(token_ids, cache).argmax(dim=1)
        token_ids.tolist()
        known_after.append(time.perf_counter() - start)
        return known_after

    @torch.inference_mode()
    def steps(self, num_tokens: int, num_rows: int) -> list[float]:
        cache = self._new_cache(num_rows, num_tokens)
        logits = self._prefill(self._inputs(1), cache, self._image_tokens)
        for memory in (*cache.keys, *cache.values):
            memory[1:] = memory[:1]
        cache.admit([cache.row_lengths[0]] * (num_rows - 1))
        token_ids = logits.argmax(dim=1).expand(num_rows)
        seconds = []
        for _ in range(num_tokens):
            start = time.perf_counter()
            token_ids = self.model.decode_step(token_ids, cache).argmax(dim=1)
            token_ids.tolist()
            seconds.append(time.perf_counter() - start)
        return seconds

    def _read_picture(self) -> Tensor:
        rgb = load_image(self._picture).rgb
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
        """All rows ask about the one picture."""
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


def build(name: str, config: PaliGemmaConfig) -> OursRunner:
    """ "ours-plain", "ours-bf16", "ours-int8" or "ours-int4", with random weights."""
    with torch.device("meta"):
        model = _prepared(PaliGemma(config).to(torch.bfloat16), name)
    model = model.to_empty(device="cpu").eval()
    # Packed weights are filled as they lie: packing plain ones would take twice the memory.
    fill_with_noise([*model.parameters(), *model.buffers()])
    return OursRunner(model)


def seconds_to_load(name: str, folder: Path) -> float:
    """From a checkpoint folder to a model whose weights are all in memory."""
    start = time.perf_counter()
    form = Plain("bfloat16") if name == "ours-plain" else Packed(_QUANTIZATION[name])
    read_every_page(load_model(folder, weights=form))
    return time.perf_counter() - start


def _prepared(model: PaliGemma, name: str) -> PaliGemma:
    return model if name == "ours-plain" else accelerate(model, _QUANTIZATION[name])
