"""Image tokens of images seen before, by content: the one thing that prompts can share.

Image and prompt attend to each other in both directions, so keys and values depend on the prompt;
the projected image tokens do not.
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
    """For any number of threads. Raises OptionError for a `max_bytes` that is no number of bytes.

    With 0 it keeps nothing.
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
        # A lock has no copy; a copied cache begins empty.
        return type(self), (self.max_bytes,)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> ValueT | None:
        """The value of that key, or None; it counts as used now."""
        with self._lock:
            if key not in self._kept:
                self.num_misses += 1
                return None
            self.num_hits += 1
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def keep(self, key: Hashable, value: ValueT, num_bytes: int) -> None:
        """Instead of what the key had before; not if it is larger than the cache."""
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


# I pictures, R resolution, P image tokens, D decoder width


def image_key(pixel_values: Tensor, **options: str | int | float | bool | None) -> str:
    """SHA-256 over the numbers, their shape and type, and every option named.

    Equal bytes of another shape or with another option have another key. Options matter when the
    numbers alone do not tell what becomes of them.
    """
    data = pixel_values.detach().cpu().contiguous()
    head = repr((tuple(data.shape), str(data.dtype), sorted(options.items())))
    digest = hashlib.sha256(head.encode() + b"\0")  # repr never holds a zero byte
    digest.update(data.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyedImage:
    """A picture as the vision encoder takes it, with the key of its image tokens.

    Several requests about one picture share one of these. Raises OptionError unless
    `pixel_values` are float[3, R, R].
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
    """Image tokens float[P, D] by key, at most `max_bytes` of them.

    Tokens with NaN or infinity are never kept. Several engines may share a cache, in any threads,
    as long as they have one model.
    """

    def put(self, key: str, image_tokens: Tensor) -> None:
        """Keep a copy of float[P, D], unless it has broken numbers or is too large."""
        if image_tokens.nbytes > self.max_bytes or not bool(image_tokens.isfinite().all()):
            return
        # A copy: a row of a batch would keep the whole batch in memory.
        kept = image_tokens.clone(memory_format=torch.contiguous_format)
        self.keep(key, kept, kept.nbytes)

    def encode(self, images: Sequence[KeyedImage], model: PaliGemma) -> Tensor:
        """float[I, P, D] of at least one picture; the model encodes those that are not kept."""
        known = {image.key: self.get(image.key) for image in images}
        if new := {image.key: image for image in images if known[image.key] is None}:
            pixel_values = torch.stack([image.pixel_values for image in new.values()])
            encoded = model.embed_images(pixel_values.to(model.device))
            for key, image_tokens in zip(new, encoded, strict=True):
                self.put(key, image_tokens)
                known[key] = image_tokens
        rows = [known[image.key] for image in images]
        return torch.stack([row for row in rows if row is not None])


class EncoderCache:
    """An `ImageCache` that is emptied when the weights that made its image tokens change.

    Compared are each weight's version counter, which in-place operations raise, and three of its
    numbers, for edits that the counter misses: those through `.data`, and those of tensors made in
    inference mode.
    """

    def __init__(self, max_bytes: int) -> None:
        self._cache = ImageCache(max_bytes)
        self._state: tuple[object, ...] | None = None
        # Weights, their storages, and views of their numbers; one value, as threads may share it.
        self._sampled: tuple[list[Tensor], list[int], list[Tensor]] = ([], [], [])

    def for_weights_of(self, model: PaliGemma) -> ImageCache:
        """The cache, empty if the encoder or projector changed since the last call."""
        state = self._state_of(model)
        if state != self._state:
            self.clear()
            self._state = state
        return self._cache

    def clear(self) -> None:
        """Forget all image tokens and free their memory."""
        # A new object: an iterator that still runs keeps putting tokens into the old one.
        self._cache = ImageCache(self._cache.max_bytes)

    @torch.no_grad()
    def _state_of(self, model: PaliGemma) -> tuple[object, ...]:
        parts = (model.vision_encoder, model.projector)
        weights = [w for part in parts for w in (*part.parameters(), *part.buffers())]
        storages = [w.data_ptr() for w in weights]
        known_weights, known_storages, samples = self._sampled
        is_same = len(weights) == len(known_weights) and all(map(is_, weights, known_weights))
        if not is_same or storages != known_storages:
            # Views are made once: making them takes ten times as long as reading them.
            samples = [_three_numbers(weight) for weight in weights]
            self._sampled = (weights, storages, samples)
        versions = tuple(0 if w.is_inference() else w._version for w in weights)
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for sample in samples:
            by_dtype.setdefault(sample.dtype, []).append(sample)
        numbers = tuple(
            torch.cat(same).view(torch.uint8).cpu().numpy().tobytes() for same in by_dtype.values()
        )
        return (model.dtype, versions, numbers)


def _three_numbers(weight: Tensor) -> Tensor:
    """A view of the first, a middle and a last element; fewer of a small weight."""
    local = weight.detach()
    if hasattr(local, "to_local"):  # this process's shard of a distributed weight
        local = local.to_local()
    flat = local.view(-1) if local.is_contiguous() else local.flatten()[:0]
    step = max(1, (flat.numel() - 1) // 2)
    return flat[: 2 * step + 1 : step]
