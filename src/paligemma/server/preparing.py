"""Turns jobs into work for the engine: decodes images, tokenizes text, compiles grammars.

Runs in the decoder threads, so that neither the event loop nor the engine waits for it.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from paligemma.answering import Answer, AnswerPipeline, PreparedImage, Query, Usage
from paligemma.engine.image_cache import RecentCache
from paligemma.errors import ImageError
from paligemma.fast.kernels.library import return_freed_memory
from paligemma.inputs import ModelInputs
from paligemma.processor.image import LoadedImage, num_pixels
from paligemma.server.jobs import ImagePayload, Job, ScoreJob
from paligemma.server.settings import Limits

_SLOW_PIXELS = 16_000_000
"""From this many pixels on, decoding takes so long that others should not wait for it."""
_LARGE_PIXELS = 8_000_000
"""From this many pixels on, memory freed after decoding is returned to the system at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedScore:
    """Texts to score, as batches that the model takes one at a time."""

    batches: tuple[ModelInputs, ...]
    images: tuple[PreparedImage, ...]
    adapter: str

    @property
    def usage(self) -> Usage:
        """Tokens of all rows together."""
        num_tokens = sum(int(inputs.input_mask.sum()) for inputs in self.batches)
        num_suffix_tokens = sum(
            int(inputs.loss_mask.sum()) for inputs in self.batches if inputs.loss_mask is not None
        )
        return Usage(
            prompt_tokens=num_tokens - num_suffix_tokens,
            image_tokens=sum(int(inputs.image_mask.sum()) for inputs in self.batches),
            completion_tokens=num_suffix_tokens,
        )


class Preprocessor:
    """Prepares jobs. Threads may share one."""

    def __init__(
        self,
        pipeline: AnswerPipeline,
        limits: Limits,
        *,
        rows_per_score_batch: int,
        cache: RecentCache[PreparedImage],
    ) -> None:
        self._pipeline = pipeline
        self._limits = limits
        self._rows_per_score_batch = rows_per_score_batch
        self._cache = cache
        self._digests: WeakKeyDictionary[LoadedImage, bytes] = WeakKeyDictionary()
        self._digests_lock = threading.Lock()

    def image(self, source: ImagePayload) -> PreparedImage:
        """Raises ImageError for an image that cannot be read or is too large."""
        key = hashlib.sha256(source).digest() if isinstance(source, bytes) else self._digest(source)
        if (cached := self._cache.get(key)) is not None:
            return cached
        loaded = source
        if isinstance(loaded, bytes):
            loaded = self._pipeline.processor.load(
                loaded, max_pixels=self._limits.max_pixels, strict=True
            )
        self._check_size(loaded)
        prepared = self._pipeline.prepare_image(loaded)
        if math.prod(loaded.size_wh) > _LARGE_PIXELS:
            del loaded
            return_freed_memory()
        self._cache.keep(key, prepared, prepared.image.pixel_values.nbytes)
        return prepared

    def _digest(self, image: LoadedImage) -> bytes:
        """Of an image that is decoded already, such as a part of a page: of its pixels, once."""
        with self._digests_lock:
            digest = self._digests.get(image)
        if digest is None:
            head = f"pixels {image.rgb.size} {image.size_wh}\0".encode()
            digest = hashlib.sha256(head + image.rgb.tobytes()).digest()
            with self._digests_lock:
                self._digests[image] = digest
        return digest

    def is_slow(self, images: Sequence[ImagePayload]) -> bool:
        """Whether the images take long to decode, by their headers."""
        return sum(num_pixels(image) for image in images if isinstance(image, bytes)) > _SLOW_PIXELS

    def answer(self, job: Job, images: tuple[PreparedImage, ...]) -> Answer:
        """Raises PromptError, OptionError, ImageError or CheckpointError for an invalid job."""
        options = job.options
        query = Query(
            task=job.task(images[0].transform) if callable(job.task) else job.task,
            prompt=job.prompt,
            max_new_tokens=options.max_new_tokens,
            constrained=options.constrained,
            notes=job.notes,
            sampler=options.sampling,
            sample_index=options.sample_index,
            stop=options.stop,
            num_top_logprobs=options.logprobs,
            adapter=options.adapter or "",
            client=job.client,
        )
        tokenized = self._pipeline.tokenize(query, len(images))
        return self._pipeline.start(tokenized, images, stream=job.stream)

    def score(self, job: ScoreJob, images: tuple[PreparedImage, ...]) -> PreparedScore:
        """Raises PromptError for text that cannot be tokenized or is too long."""
        batches = self._pipeline.scoring_batches(
            job.prompt, job.suffixes, len(images), self._rows_per_score_batch
        )
        return PreparedScore(batches=tuple(batches), images=images, adapter=job.adapter or "")

    def _check_size(self, image: LoadedImage) -> None:
        width, height = image.size_wh
        limits = self._limits
        if width * height > limits.max_pixels or max(width, height) > limits.max_side:
            raise ImageError(
                f"The image is {width} x {height}; the limits are {limits.max_pixels} pixels and "
                f"{limits.max_side} per side. Send a smaller one."
            )
