"""Small random models and hand-made inputs for the engine, which knows no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma

MadeRows = list[tuple[list[int], list[int], bool]]
"""Prefix ids, suffix ids, and whether an image comes first."""
MakeModel = Callable[..., PaliGemma]
MakeInputs = Callable[..., ModelInputs]


@pytest.fixture
def make_model() -> MakeModel:
    """A model whose sizes all differ; PaliGemma 2 by default."""

    def make(*, vocab_size: int = 37, gemma2: bool = True, sliding_window: int | None = None):
        config = PaliGemmaConfig(
            vision=VisionConfig(
                resolution=6, patch_size=3, width=10, depth=2, mlp_dim=14, num_heads=5
            ),
            decoder=DecoderConfig(
                vocab_size=vocab_size,
                width=24,
                depth=3,
                mlp_dim=40,
                num_heads=4,
                num_kv_heads=2,
                head_dim=8,
                query_scale=8**-0.5,
                post_norms=gemma2,
                attn_logit_softcap=50.0 if gemma2 else None,
                final_logit_softcap=30.0 if gemma2 else None,
                sliding_window=sliding_window,
                sliding_layers=(True, False, True) if sliding_window else (),
            ),
        )
        torch.manual_seed(7)
        model = PaliGemma(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Layers strong against the embedding, lest a tied model repeat its last token.
                parameter.normal_(0.0, 0.12 if "embedding" in name else 0.4)
        return model

    return make


@pytest.fixture
def make_inputs() -> MakeInputs:
    """Rows of (prefix ids, suffix ids, with a picture?) -> ModelInputs, pads left or right."""

    def make(
        rows: Sequence[tuple[Sequence[int], Sequence[int], bool]], *, pad_left: bool = True
    ) -> ModelInputs:
        num_patches = 4
        columns = []
        for prefix, suffix, has_image in rows:
            places = num_patches if has_image else 0
            ids = [0] * places + list(prefix) + list(suffix)
            is_suffix = [False] * (places + len(prefix)) + [True] * len(suffix)
            is_image = [True] * places + [False] * (len(ids) - places)
            columns.append((ids, is_suffix, is_image))
        length = max(len(ids) for ids, _, _ in columns)

        def padded(values: list, pad: object) -> list:
            pads = [pad] * (length - len(values))
            return pads + values if pad_left else values + pads

        real = [padded([True] * len(ids), False) for ids, _, _ in columns]
        in_suffix = [padded(suffix, False) for _, suffix, _ in columns]
        generator = torch.Generator().manual_seed(3)
        num_images = sum(has_image for _, _, has_image in rows)
        numbers = iter(range(num_images))
        return ModelInputs(
            token_ids=torch.tensor([padded(ids, 0) for ids, _, _ in columns]),
            input_mask=torch.tensor(real),
            mask_ar=torch.tensor([padded(suffix, not pad_left) for _, suffix, _ in columns]),
            image_mask=torch.tensor([padded(image, False) for _, _, image in columns]),
            pixel_values=torch.rand(num_images, 3, 6, 6, generator=generator) * 2 - 1,
            image_index=tuple((next(numbers),) if has_image else () for *_, has_image in rows),
            loss_mask=torch.tensor(in_suffix) if any(suffix for _, suffix, _ in rows) else None,
        )

    return make
