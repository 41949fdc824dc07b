"""A predictor around a tiny random model, and pictures for it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from paligemma.config import MaskCodecConfig
from paligemma.predictor import Predictor
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.seg_codec import MaskCodec
from tests.tiny import tiny_model


def build_predictor(tokenizer: Tokenizer, *, with_codec: bool = True) -> Predictor:
    model = tiny_model("paligemma2", vocab_size=tokenizer.vocab_size)
    with torch.no_grad():  # lest a model whose output layer is its embedding repeat itself
        model.decoder.embedding.weight.mul_(0.1)
    torch.manual_seed(0)
    codec = MaskCodec(MaskCodecConfig(code_dim=7, width=6, stem_widths=(2, 3, 4, 5)))
    return Predictor(
        model=model,
        processor=Processor(
            tokenizer=tokenizer,
            resolution=model.config.vision.resolution,
            num_image_tokens=model.config.vision.num_image_tokens,
        ),
        mask_codec=codec if with_codec else None,
        name="tiny",
    )


def picture(seed: int, size_wh: tuple[int, int] = (40, 20)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8))
