"""The whole model: sizes as published, and two ways that must give one answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paligemma.config import DECODERS, count_parameters, release_config
from paligemma.errors import PromptError
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, FLOAT32_TOLERANCE, Row, tiny_inputs, tiny_model

# Keras presets list these, except 28b at 448 and 896 (they repeat the number of 224 there):
# those follow from the position table's growth.
PUBLISHED = {
    ("paligemma", "3b"): (2_923_335_408, 2_924_220_144, 2_927_759_088),
    ("paligemma2", "3b"): (3_032_094_960, 3_032_979_696, 3_036_518_640),
    ("paligemma2", "10b"): (9_662_409_456, 9_663_294_192, 9_666_833_136),
    ("paligemma2", "28b"): (27_650_192_112, 27_651_076_848, 27_654_615_792),
}
WINDOW: dict[str, Any] = {
    "sliding_window": 6,
    "sliding_layers": (True, False, True, False, True, False, True),
}


@pytest.mark.parametrize(("family", "size"), DECODERS)
def test_parameter_counts_equal_the_published_ones(family: Any, size: str) -> None:
    for resolution, expected in zip((224, 448, 896), PUBLISHED[family, size], strict=True):
        config = release_config(family, size, resolution)
        with torch.device("meta"):
            model = PaliGemma(config)
        assert sum(p.numel() for p in model.parameters()) == expected
        assert count_parameters(config) == expected


def split_at(inputs: ModelInputs, length: int) -> ModelInputs:
    return ModelInputs(
        token_ids=inputs.token_ids[:, :length],
        input_mask=inputs.input_mask[:, :length],
        mask_ar=inputs.mask_ar[:, :length],
        image_mask=inputs.image_mask[:, :length],
        pixel_values=inputs.pixel_values,
        image_index=inputs.image_index,
    )


def step_by_step(model: PaliGemma, inputs: ModelInputs, prefix_length: int) -> torch.Tensor:
    """Logits after the prefix and after each suffix token, through the cache: [B, steps, V]."""
    num_rows, length = inputs.token_ids.shape
    cache = KVCache(model.config.decoder, num_rows, length, dtype=model.dtype)
    steps = [model.prefill(split_at(inputs, prefix_length), cache)]
    for j in range(prefix_length, length):
        steps.append(model.decode_step(inputs.token_ids[:, j], cache))
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize(
    ("family", "fields"), [("paligemma", {}), ("paligemma2", {}), ("paligemma2", WINDOW)]
)
@torch.inference_mode()
def test_the_cache_changes_nothing(family: Any, fields: dict[str, Any]) -> None:
    model = tiny_model(family, **fields)
    rows = [Row(prefix=4, suffix=9), Row(images=(1, 0), prefix=7, suffix=9)]
    inputs = tiny_inputs(model.config, rows)
    prefix_length = inputs.token_ids.shape[1] - 9
    whole = model(inputs)[:, prefix_length - 1 :]
    cached = step_by_step(model, inputs, prefix_length)
    assert (whole - cached).abs().max() < FLOAT32_TOLERANCE


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize(
    ("family", "fields"), [("paligemma", {}), ("paligemma2", {}), ("paligemma2", WINDOW)]
)
@torch.inference_mode()
def test_the_last_state_alone_is_that_of_the_whole_pass(
    family: Any, fields: dict[str, Any], pad: str
) -> None:
    model = tiny_model(family, **fields)
    rows = [Row(prefix=4), Row(images=(1, 0), prefix=7, suffix=3), Row(images=(), prefix=1)]
    inputs = tiny_inputs(model.config, rows, pad=pad)
    num_rows, length = inputs.token_ids.shape
    caches = [KVCache(model.config.decoder, num_rows, length, dtype=model.dtype) for _ in range(2)]
    whole = model.hidden_states(inputs, kv_cache=caches[0])
    last = length - 1 - inputs.input_mask.flip(1).int().argmax(dim=1)
    states = model.prefix_state(inputs, caches[1])
    expected = whole[torch.arange(num_rows), last]
    assert (states - expected).abs().max() < FLOAT32_TOLERANCE
    for found, kept in zip(*(cache.keys + cache.values for cache in caches), strict=True):
        assert torch.equal(found, kept)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_row_gets_the_same_logits_alone_and_in_a_batch(family: Any, pad: str) -> None:
    model = tiny_model(family)
    rows = [Row(prefix=4, suffix=3), Row(images=(1, 0), prefix=7), Row(images=(), prefix=2)]
    inputs = tiny_inputs(model.config, rows, pad=pad)
    together = model(inputs)
    for i in range(len(rows)):
        real = inputs.input_mask[i]
        alone = ModelInputs(
            token_ids=inputs.token_ids[i : i + 1, real],
            input_mask=inputs.input_mask[i : i + 1, real],
            mask_ar=inputs.mask_ar[i : i + 1, real],
            image_mask=inputs.image_mask[i : i + 1, real],
            pixel_values=inputs.pixel_values,
            image_index=inputs.image_index[i : i + 1],
        )
        assert (model(alone)[0] - together[i, real]).abs().max() < FLOAT32_TOLERANCE


@torch.inference_mode()
def test_prefill_gives_the_logits_of_each_rows_last_real_position() -> None:
    model = tiny_model()
    for pad in ("left", "right"):
        inputs = tiny_inputs(model.config, [Row(prefix=3), Row(prefix=8)], pad=pad)
        cache = KVCache(model.config.decoder, 2, 40, dtype=model.dtype)
        last = [int(row.nonzero().max()) for row in inputs.input_mask]
        expected = model(inputs)[torch.arange(2), last]
        assert (model.prefill(inputs, cache) - expected).abs().max() < FLOAT32_TOLERANCE


@torch.inference_mode()
def test_images_encoded_beforehand_change_nothing() -> None:
    model = tiny_model()
    inputs = tiny_inputs(model.config, [Row(images=(1, 0)), Row(images=(2,))])
    image_tokens = model.embed_images(inputs.required_pixel_values)
    assert image_tokens.shape == (3, 25, 48)
    given = model.hidden_states(inputs, image_tokens=image_tokens)
    assert torch.equal(given, model.hidden_states(inputs))


@torch.inference_mode()
def test_the_order_of_images_matters() -> None:
    model = tiny_model()
    one, other = (
        model(tiny_inputs(model.config, [Row(images=images), Row(images=(0, 1))]))[0]
        for images in ((0, 1), (1, 0))
    )
    assert (one - other).abs().max() > 0.01


def test_images_of_another_resolution_are_refused() -> None:
    model = tiny_model()
    inputs = tiny_inputs(model.config, [Row()])
    with pytest.raises(PromptError, match="25 image token positions"):
        model.embed(inputs, image_tokens=torch.zeros(1, 16, 48))


@torch.inference_mode()
def test_rows_of_the_cache_can_be_dropped_and_repeated() -> None:
    model = tiny_model("paligemma2", **WINDOW)
    inputs = tiny_inputs(model.config, [Row(prefix=3), Row(prefix=8)])
    caches = [KVCache(model.config.decoder, 2, 50, dtype=model.dtype) for _ in range(2)]
    for cache in caches:
        model.prefill(inputs, cache)
    expected = model.decode_step(torch.tensor([7, 9]), caches[0])
    caches[1].select_rows(torch.tensor([1, 0, 1]))
    found = model.decode_step(torch.tensor([9, 7, 9]), caches[1])
    assert (found - expected[[1, 0, 1]]).abs().max() < FLOAT32_TOLERANCE


@pytest.mark.parametrize("fields", [{}, WINDOW])
@pytest.mark.parametrize("pad", ["left", "right"])
@torch.inference_mode()
def test_several_tokens_at_once_equal_single_steps(fields: dict[str, Any], pad: str) -> None:
    model = tiny_model("paligemma2", **fields)
    inputs = tiny_inputs(model.config, [Row(prefix=3), Row(prefix=8)], pad=pad)
    caches = [KVCache(model.config.decoder, 2, 50, dtype=model.dtype) for _ in range(2)]
    for cache in caches:
        model.prefill(inputs, cache)
    ids = torch.tensor([[7, 9, 30, 2, 11, 140, 8, 3], [4, 60, 9, 9, 100, 31, 12, 5]])
    steps = torch.stack([model.decode_step(column, caches[0]) for column in ids.T], dim=1)
    assert (model.extend(ids, caches[1]) - steps).abs().max() < FLOAT32_TOLERANCE
    assert torch.equal(caches[0].next_position, caches[1].next_position)
    part = model.extend(ids, caches[1], range(20, 33))
    assert part.shape == (2, 8, 13)


@torch.inference_mode()
def test_slots_taken_back_leave_no_trace() -> None:
    model = tiny_model("paligemma2", **WINDOW)
    inputs = tiny_inputs(model.config, [Row(prefix=3), Row(prefix=8)], pad="right")
    cache = KVCache(model.config.decoder, 2, 50, dtype=model.dtype)
    first = model.prefill(inputs, cache)
    start = cache.length
    expected = model.extend(torch.tensor([[7, 9], [4, 60]]), cache)
    model.extend(torch.tensor([[5, 5, 5], [6, 6, 6]]), cache)
    cache.truncate(start + 1)
    found = model.decode_step(torch.tensor([9, 60]), cache)
    assert (found - expected[:, 1]).abs().max() < FLOAT32_TOLERANCE
    cache.truncate(0)
    assert not cache.valid.any()
    assert cache.next_position.tolist() == [0, 0]
    assert torch.equal(model.prefill(inputs, cache), first)


def test_a_full_cache_says_so() -> None:
    model = tiny_model()
    cache = KVCache(model.config.decoder, 1, 30, dtype=model.dtype)
    inputs = tiny_inputs(model.config, [Row(prefix=5)])
    with torch.inference_mode():
        model.prefill(inputs, cache)
        with pytest.raises(IndexError, match="30 slots; 31 are needed"):
            model.decode_step(torch.tensor([5]), cache)


@torch.inference_mode()
def test_bfloat16_stays_close_to_float32() -> None:
    model = tiny_model()
    inputs = tiny_inputs(model.config, [Row(suffix=4), Row(images=(0, 1))])
    exact = model(inputs)
    rounded = model.to(torch.bfloat16)(inputs)
    assert rounded.dtype == torch.float32
    assert (rounded - exact)[inputs.input_mask].abs().mean() < 0.1 * exact.std()
