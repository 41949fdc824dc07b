"""Caches of image tokens, by the content of the image.

Prompts can share image tokens, but no keys and values: image and prompt attend to each other in
both directions, so keys and values depend on the prompt.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Generic, TypeVar

import torch
from torch import Tensor

from paligemma.errors import OptionError, check_whole
from paligemma.model.paligemma import PaliGemma

ValueT = TypeVar("ValueT")


class RecentCache(Generic[ValueT]):
    """A thread-safe LRU cache limited by bytes; with `max_bytes` 0 it keeps nothing.

    Raises OptionError for a negative `max_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        check_whole("max_bytes", max_bytes, least=0)
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self._kept: OrderedDict[Hashable, tuple[ValueT, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RecentCache[ValueT]], tuple[int]]:
        # Locks cannot be copied; a copied cache starts empty.
        return type(self), (self.max_bytes,)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> ValueT | None:
        """Return the value of a key, or None, and mark it as recently used."""
        with self._lock:
            if key not in self._kept:
                self.num_misses += 1
                return None
            self.num_hits += 1
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def keep(self, key: Hashable, value: ValueT, num_bytes: int) -> None:
        """Store a value, replacing an earlier one, unless it is larger than the cache."""
        if num_bytes > self.max_bytes:
            return
        with self._lock:
            if key in self._kept:
                self.num_bytes -= self._kept.pop(key)[1]
            self._kept[key] = value, num_bytes
            self.num_bytes += num_bytes
            while self.num_bytes > self.max_bytes:
                _, (_, oldest) = self._kept.popitem(last=False)
                self.num_bytes -= oldest


# I images, R resolution, P image tokens, D decoder width


def image_key(pixel_values: Tensor, **options: str | int | float | bool | None) -> str:
    """Return the SHA-256 of the values, their shape and dtype, and any options.

    Pass as options whatever else determines the image tokens.
    """
    data = pixel_values.detach().cpu().contiguous()
    head = repr((tuple(data.shape), str(data.dtype), sorted(options.items())))
    digest = hashlib.sha256(head.encode() + b"\0")  # repr never contains a zero byte
    digest.update(data.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyedImage:
    """An image as the vision encoder takes it, with the cache key of its image tokens.

    Requests about the same image may share one. Raises OptionError unless `pixel_values` is
    float[3, R, R].
    """

    pixel_values: Tensor
    key: str = field(init=False)

    def __post_init__(self) -> None:
        pixels = self.pixel_values
        if not isinstance(pixels, Tensor) or not pixels.is_floating_point() or pixels.ndim != 3:
            kind = type(pixels).__name__
            if isinstance(pixels, Tensor):
                kind = f"{pixels.dtype}{list(pixels.shape)}"
            raise OptionError(
                f"pixel_values is {kind}; it must be a float tensor [3, height, width]. "
                "Prepare the image with a processor."
            )
        object.__setattr__(self, "key", image_key(pixels))


class ImageCache(RecentCache[Tensor]):
    """A cache of image tokens float[P, D], of at most `max_bytes`.

    Tokens with NaN or infinity are never kept. Engines in different threads may share a cache if
    they use the same model.
    """

    def put(self, key: str, image_tokens: Tensor) -> None:
        """Store a copy of float[P, D], unless it is too large or not finite."""
        if image_tokens.nbytes > self.max_bytes or not bool(image_tokens.isfinite().all()):
            return
        # A copy, because a view would keep the whole batch in memory.
        copy = image_tokens.clone(memory_format=torch.contiguous_format)
        self.keep(key, copy, copy.nbytes)

    def encode(self, images: Sequence[KeyedImage], model: PaliGemma) -> Tensor:
        """Return float[I, P, D] of at least one image; the model encodes those not in the cache."""
        cached = {image.key: self.get(image.key) for image in images}
        if new := {image.key: image for image in images if cached[image.key] is None}:
            pixel_values = torch.stack([image.pixel_values for image in new.values()])
            encoded = model.embed_images(pixel_values.to(model.device))
            for key, image_tokens in zip(new, encoded, strict=True):
                self.put(key, image_tokens)
                cached[key] = image_tokens
        rows = [cached[image.key] for image in images]
        return torch.stack([row for row in rows if row is not None])


class EncoderCache:
    """An `ImageCache` that is cleared when the weights of the encoder or projector change.

    It compares the version counter of each weight, which in-place operations increase, and three
    elements of it, for edits that the counter misses: those through `.data`, and those of tensors
    created in inference mode.
    """

    def __init__(self, max_bytes: int) -> None:
        self._cache = ImageCache(max_bytes)
        self._state: tuple[object, ...] | None = None
        # Weights, their addresses, and views of three elements each; one tuple, so that threads
        # replace it atomically.
        self._sampled: tuple[list[Tensor], list[int], list[Tensor]] = ([], [], [])

    def for_weights_of(self, model: PaliGemma) -> ImageCache:
        """Return the cache, cleared if the encoder or projector changed since the last call."""
        state = self._state_of(model)
        if state != self._state:
            self.clear()
            self._state = state
        return self._cache

    def clear(self) -> None:
        """Drop all image tokens and free their memory."""
        # A new object, because a stream that is still running may add tokens to the old one.
        self._cache = ImageCache(self._cache.max_bytes)

    @torch.no_grad()
    def _state_of(self, model: PaliGemma) -> tuple[object, ...]:
        parts = (model.vision_encoder, model.projector)
        weights = [w for part in parts for w in (*part.parameters(), *part.buffers())]
        storages = [w.data_ptr() for w in weights]
        last_weights, last_storages, samples = self._sampled
        is_same = len(weights) == len(last_weights) and all(map(is_, weights, last_weights))
        if not is_same or storages != last_storages:
            # Views are created once, because that takes ten times as long as reading them.
            samples = [_three_elements(weight) for weight in weights]
            self._sampled = (weights, storages, samples)
        versions = tuple(0 if w.is_inference() else w._version for w in weights)
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for sample in samples:
            by_dtype.setdefault(sample.dtype, []).append(sample)
        values = tuple(
            torch.cat(group).view(torch.uint8).cpu().numpy().tobytes()
            for group in by_dtype.values()
        )
        return (model.dtype, versions, values)


def _three_elements(weight: Tensor) -> Tensor:
    """Return a view of the first, a middle and a last element; fewer for a tiny weight."""
    local = weight.detach()
    if hasattr(local, "to_local"):  # this process's shard of a distributed weight
        local = local.to_local()
    flat = local.view(-1) if local.is_contiguous() else local.flatten()[:0]
    step = max(1, (flat.numel() - 1) // 2)
    return flat[: 2 * step + 1 : step]
