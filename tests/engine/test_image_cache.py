from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from paligemma.engine.image_cache import ImageCache, KeyedImage, image_key
from paligemma.errors import OptionError
from tests.tiny import FLOAT32_TOLERANCE, Row, tiny_inputs, tiny_model

PIXELS = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(0))


def test_equal_numbers_have_equal_keys_wherever_they_stand() -> None:
    strided = torch.stack([PIXELS, PIXELS], dim=-1)[..., 0]
    assert image_key(PIXELS) == image_key(PIXELS.clone()) == image_key(strided)
    assert KeyedImage(pixel_values=PIXELS).key == image_key(PIXELS)


def test_all_that_shapes_an_image_is_in_its_key() -> None:
    changed = PIXELS.clone()
    changed[2, 5, 3] += 1e-6
    keys = [
        image_key(PIXELS),
        image_key(PIXELS.view(3, 4, 6)),  # equal bytes, other shape
        image_key(PIXELS.view(torch.int32)),  # equal bytes, other type
        image_key(PIXELS, resize="bicubic"),
        image_key(PIXELS, resize="bilinear"),
        image_key(PIXELS, resize="bilinear", antialias=True),
        image_key(PIXELS, resize="bilinear", antialias=False),
        image_key(PIXELS, resize="bilinear', 'antialias'"),
        image_key(changed),
        image_key(PIXELS.bfloat16()),
    ]
    assert len(set(keys)) == len(keys)
    assert image_key(PIXELS, a=1, b=2) == image_key(PIXELS, b=2, a=1)


def test_a_long_common_beginning_is_not_enough() -> None:
    one = torch.zeros(3, 200, 200)
    other = one.clone()
    other[2, 199, 199] = 1.0
    assert image_key(one) != image_key(other)


def tokens(value: int) -> torch.Tensor:
    return torch.full((5, 2), float(value))  # 40 bytes


def test_the_longest_unused_tokens_go_first() -> None:
    cache = ImageCache(max_bytes=120)
    for number in range(3):
        cache.put(str(number), tokens(number))
    assert cache.get("0") is not None  # used now, so that 1 is the oldest
    cache.put("3", tokens(3))
    assert cache.get("1") is None
    found = {key: cache.get(key) for key in ("0", "2", "3")}
    assert all(value is not None and (value == int(key)).all() for key, value in found.items())
    assert cache.num_bytes == 120
    assert len(cache) == 3


def test_a_key_put_again_counts_once() -> None:
    cache = ImageCache(max_bytes=100)
    cache.put("a", tokens(1))
    cache.put("a", tokens(2))
    assert cache.num_bytes == 40
    kept = cache.get("a")
    assert kept is not None
    assert torch.equal(kept, tokens(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_numbers_are_never_kept(value: float) -> None:
    cache = ImageCache(max_bytes=1000)
    broken = tokens(1)
    broken[4, 1] = value
    cache.put("a", broken)
    assert cache.get("a") is None
    assert cache.num_bytes == 0


def test_what_is_larger_than_the_cache_pushes_nothing_out() -> None:
    cache = ImageCache(max_bytes=79)
    cache.put("a", tokens(1))
    cache.put("b", torch.ones(10, 2))
    assert cache.get("a") is not None
    assert cache.get("b") is None
    nothing = ImageCache(max_bytes=0)
    nothing.put("a", tokens(1))
    assert len(nothing) == 0


def test_kept_tokens_do_not_hold_the_batch_they_came_from() -> None:
    cache = ImageCache(max_bytes=100)
    batch = torch.ones(9, 5, 2)
    cache.put("a", batch[3])
    batch.zero_()
    kept = cache.get("a")
    assert kept is not None
    assert kept.untyped_storage().nbytes() == 40
    assert torch.equal(kept, tokens(1))


def test_only_images_that_are_not_kept_are_encoded() -> None:
    model = tiny_model()
    pixels = tiny_inputs(model.config, [Row(images=(0, 1, 2))]).required_pixel_values
    images = [KeyedImage(pixel_values=one) for one in pixels]
    counts: list[int] = []
    model.vision_encoder.register_forward_hook(lambda *call: counts.append(len(call[2])))
    cache = ImageCache(max_bytes=2 * 25 * model.config.decoder.width * 4)
    with torch.inference_mode():
        first = cache.encode([images[0], images[0]], model)
        found = cache.encode([images[2], images[0], images[1]], model)
        expected = model.embed_images(pixels)
    assert counts == [1, 2, 3]
    assert torch.allclose(first, expected[[0, 0]], atol=FLOAT32_TOLERANCE)
    assert torch.allclose(found, expected[[2, 0, 1]], atol=FLOAT32_TOLERANCE)
    assert len(cache) == 2


def test_a_cache_serves_threads_at_once_and_never_grows_too_large() -> None:
    cache = ImageCache(max_bytes=120)

    def work(start: int) -> bool:
        for number in range(start, start + 500):
            cache.put(str(number % 7), tokens(number % 7))
            found = cache.get(str(number % 5))
            if found is not None and not (found == number % 5).all():
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    assert cache.num_bytes == 120
    assert len(cache) == 3


def test_a_copy_begins_empty() -> None:
    cache = ImageCache(max_bytes=120)
    cache.put("a", tokens(1))
    copied = copy.deepcopy(cache)
    assert (len(copied), copied.num_bytes, copied.max_bytes) == (0, 0, 120)
    assert len(cache) == 1


@pytest.mark.parametrize("max_bytes", [-1, 1.5, True, None, "1"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(max_bytes: object) -> None:
    with pytest.raises(OptionError, match="whole number"):
        ImageCache(max_bytes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pixel_values", [None, [[1.0]], torch.zeros(3, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)]
)
def test_what_is_no_image_is_refused(pixel_values: object) -> None:
    with pytest.raises(OptionError, match="float tensor"):
        KeyedImage(pixel_values=pixel_values)  # type: ignore[arg-type]
