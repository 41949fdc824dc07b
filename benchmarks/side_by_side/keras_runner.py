"""keras-hub on its torch backend as a runner: whole answers only, from `generate`."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from PIL import Image

from paligemma.bench.workload import IMAGE_SIZE_WH, fill_with_noise, noise_image, prompt_ids
from paligemma.config import PaliGemmaConfig
from paligemma.processor.image import ImageTransform, pixel_array


class KerasRunner:
    """`PaliGemmaCausalLM` without a preprocessor, in bfloat16."""

    def __init__(self, model: Any, moments: list[float], config: PaliGemmaConfig) -> None:
        self.model = model
        self.config = config
        self._moments = moments
        self._image = Image.fromarray(noise_image())
        self._transform = ImageTransform(
            source_wh=IMAGE_SIZE_WH, resolution=config.vision.resolution
        )

    def answer(self, num_tokens: int, num_rows: int) -> list[float]:
        prompts = prompt_ids(self.config, num_rows).numpy()
        room = np.zeros((num_rows, num_tokens), prompts.dtype)
        token_ids = np.concatenate([prompts, room], axis=1)
        is_prompt = np.arange(token_ids.shape[1]) < prompts.shape[1]
        self._moments.clear()
        start = time.perf_counter()
        pixels = pixel_array(self._image, self._transform).transpose(1, 2, 0)
        inputs = {
            "images": np.stack([pixels] * num_rows),
            "token_ids": token_ids,
            "padding_mask": np.broadcast_to(is_prompt, token_ids.shape),
            "response_mask": np.zeros_like(token_ids, dtype=bool),
        }
        self.model.generate(inputs, stop_token_ids=None)
        return [moment - start for moment in self._moments]


def build(config: PaliGemmaConfig) -> KerasRunner:
    """A model with random weights. keras is imported here because few have it installed."""
    os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported
    import keras
    import keras_hub

    moments: list[float] = []

    class Clock(keras_hub.samplers.Sampler):  # type: ignore[misc]
        """Greedy; records the time of each token."""

        def get_next_token(self, probabilities: Any) -> Any:
            token_ids = keras.ops.argmax(probabilities, axis=-1)
            moments.append(time.perf_counter())
            return token_ids

    vision, decoder = config.vision, config.decoder
    backbone = keras_hub.models.PaliGemmaBackbone(
        vocabulary_size=decoder.vocab_size,
        image_size=vision.resolution,
        num_layers=decoder.depth,
        num_query_heads=decoder.num_heads,
        num_key_value_heads=decoder.num_kv_heads,
        hidden_dim=decoder.width,
        # keras-hub counts both halves of the gated MLP.
        intermediate_dim=2 * decoder.mlp_dim,
        head_dim=decoder.head_dim,
        vit_patch_size=vision.patch_size,
        vit_num_heads=vision.num_heads,
        vit_hidden_dim=vision.width,
        vit_num_layers=vision.depth,
        vit_intermediate_dim=vision.mlp_dim,
        use_post_ffw_norm=decoder.post_norms,
        use_post_attention_norm=decoder.post_norms,
        attention_logit_soft_cap=decoder.attn_logit_softcap,
        final_logit_soft_cap=decoder.final_logit_softcap,
        dtype="bfloat16",
    )
    fill_with_noise(weight.value for weight in backbone.weights)
    model = keras_hub.models.PaliGemmaCausalLM(backbone=backbone, preprocessor=None)
    model.compile(sampler=Clock())
    return KerasRunner(model, moments, config)
