"""From a job to what the engine takes: pictures decoded, text tokenized, the grammar made.

Runs in the decoders' threads, where it may take its time. Knows the predictor's parts; knows no
engine thread and no event loop.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paligemma.engine.image_cache import KeyedImage, RecentCache
from paligemma.engine.request import Request
from paligemma.errors import ImageError, PromptError
from paligemma.fast.kernels.memory import return_freed_memory
from paligemma.inputs import ModelInputs
from paligemma.predictor import MAX_NEW_TOKENS, Predictor
from paligemma.processor.image import ImageTransform, LoadedImage
from paligemma.processor.sequence import TokenSequence, build_example, build_prefix
from paligemma.processor.tokenizer import TextStream
from paligemma.server.faults import Faults
from paligemma.server.jobs import Job, Photo, ScoreJob
from paligemma.server.limits import Limits
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import GuidedTask, Task

_LARGE_PIXELS = 8_000_000
"""Pixels from which on what decoding took is given back to the system at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyPhoto:
    """A picture as the model takes it, and how it lies in the model's square."""

    image: KeyedImage
    transform: ImageTransform


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyJob:
    """A job for the engine."""

    request: Request
    task: Task[Any] | None
    photos: tuple[ReadyPhoto, ...]

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.token_ids)

    @property
    def num_image_tokens(self) -> int:
        return int(self.request.image_mask.sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyScore:
    """Texts to score, as batches that the model takes one at a time."""

    batches: tuple[ModelInputs, ...]
    photos: tuple[ReadyPhoto, ...]
    adapter: str

    @property
    def num_prompt_tokens(self) -> int:
        """Of all rows together."""
        return sum(int(inputs.input_mask.sum()) - self._suffix(inputs) for inputs in self.batches)

    @property
    def num_image_tokens(self) -> int:
        return sum(int(inputs.image_mask.sum()) for inputs in self.batches)

    @property
    def num_suffix_tokens(self) -> int:
        return sum(map(self._suffix, self.batches))

    @staticmethod
    def _suffix(inputs: ModelInputs) -> int:
        return 0 if inputs.loss_mask is None else int(inputs.loss_mask.sum())


class Preparer:
    """Makes jobs ready; several threads may use it."""

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        *,
        num_positions: int,
        score_rows: int,
        photo_cache: RecentCache[ReadyPhoto],
        faults: Faults,
    ) -> None:
        self._predictor = predictor
        self._processor = predictor.processor
        self._limits = limits
        self._num_positions = num_positions
        self._score_rows = score_rows
        self._cache = photo_cache
        self._faults = faults

    def photo(self, source: Photo) -> ReadyPhoto:
        """Raises ImageError for a picture that cannot be read."""
        key = None
        if isinstance(source, bytes):
            # Of the file: no two files of other pixels share it. One that is decoded already has
            # no bytes of its own.
            key = hashlib.sha256(source).digest()
            if (known := self._cache.get(key)) is not None:
                return known
        self._faults.hit("decode")
        loaded = source
        if isinstance(loaded, bytes):
            loaded = self._processor.load(loaded, max_pixels=self._limits.max_pixels)
        self._check_size(loaded)
        photo = ReadyPhoto(
            image=KeyedImage(pixel_values=self._processor.pixel_values([loaded])[0]),
            transform=self._processor.transform(loaded),
        )
        if math.prod(loaded.size_wh) > _LARGE_PIXELS:
            del loaded
            return_freed_memory()
        if key is not None:
            self._cache.keep(key, photo, photo.image.pixel_values.nbytes)
        return photo

    def job(self, job: Job, photos: tuple[ReadyPhoto, ...]) -> ReadyJob:
        """Raises PromptError, OptionError, ImageError or CheckpointError for what cannot be."""
        tokenizer = self._processor.tokenizer
        task: Task[Any] | None = None
        if job.task is not None:
            task = job.task(photos[0].transform) if callable(job.task) else job.task
            self._predictor.check_codec(task)
            self._check_masks(task, photos[0])
        prompt = job.prompt if task is None else task.prompt()
        assert prompt is not None
        self._faults.hit("tokenize", prompt)
        prefix = build_prefix(tokenizer, prompt, len(photos), self._processor.num_image_tokens)
        num_text = len(prefix) - len(photos) * self._processor.num_image_tokens
        self._check_prompt_tokens(num_text)
        options = job.options
        constraint = None
        if options.constrained and isinstance(task, GuidedTask):
            constraint = task.grammar(tokenizer)
        text = TextStream(tokenizer, options.stop)
        request = Request(
            token_ids=torch.tensor(prefix.token_ids),
            image_mask=torch.tensor(prefix.image_mask),
            images=tuple(photo.image for photo in photos),
            max_new_tokens=self._max_tokens(job, task, len(prefix)),
            eos_id=tokenizer.eos_id,
            sampler=options.sampling,
            row_number=options.n_th,
            num_top_logprobs=options.logprobs,
            should_stop=(lambda token_ids: text.push(token_ids[-1])) if options.stop else None,
            constraint=constraint,
            client=job.client,
            adapter=options.adapter or "",
        )
        return ReadyJob(request=request, task=task, photos=photos)

    def score(self, job: ScoreJob, photos: tuple[ReadyPhoto, ...]) -> ReadyScore:
        """Raises PromptError for what cannot be tokenized or is too long."""
        self._faults.hit("tokenize", job.prompt)
        rows = [
            build_example(
                self._processor.tokenizer,
                job.prompt,
                suffix,
                len(photos),
                self._processor.num_image_tokens,
            )
            for suffix in job.suffixes
        ]
        longest = max(map(len, rows))
        if longest > self._num_positions:
            raise self._too_long(longest)
        batches = [
            _padded(rows[start : start + self._score_rows], len(photos))
            for start in range(0, len(rows), self._score_rows)
        ]
        return ReadyScore(batches=tuple(batches), photos=photos, adapter=job.adapter or "")

    def _max_tokens(self, job: Job, task: Task[Any] | None, num_prefix: int) -> int:
        """As asked; else what the task usually needs and has room."""
        room = self._num_positions - num_prefix
        if (asked := job.options.max_tokens) is None:
            usual = MAX_NEW_TOKENS if task is None else self._predictor.answer_limit(task)
            asked = max(1, min(usual, self._limits.max_tokens, room))
        if asked > room:
            raise self._too_long(num_prefix + asked)
        return asked

    def _too_long(self, num_positions: int) -> PromptError:
        return PromptError(
            f"Pictures, prompt and answer may take {num_positions} positions; there are "
            f"{self._num_positions}, and a picture takes {self._processor.num_image_tokens}. "
            "Give a shorter prompt, or ask for fewer tokens."
        )

    def _check_prompt_tokens(self, number: int) -> None:
        if number > self._limits.max_prompt_tokens:
            raise PromptError(
                f"The prompt has {number} tokens; at most {self._limits.max_prompt_tokens} are "
                "taken. Shorten it."
            )

    def _check_size(self, image: LoadedImage) -> None:
        width, height = image.size_wh
        limits = self._limits
        if width * height > limits.max_pixels or max(width, height) > limits.max_side:
            raise ImageError(
                f"The picture has {width} x {height} pixels; at most {limits.max_pixels} and "
                f"{limits.max_side} along a side are taken. Make it smaller."
            )

    def _check_masks(self, task: Task[Any], photo: ReadyPhoto) -> None:
        width, height = photo.transform.source_wh
        if isinstance(task, SegmentTask) and width * height > self._limits.max_mask_pixels:
            raise too_many_mask_pixels(1, (width, height), self._limits)


def too_many_mask_pixels(number: int, size_wh: tuple[int, int], limits: Limits) -> ImageError:
    """What to say of masks that would take too much memory."""
    width, height = size_wh
    return ImageError(
        f"{number} masks of {width} x {height} pixels are more than {limits.max_mask_pixels} "
        "pixels together. Give a smaller picture, or ask for fewer things."
    )


def _padded(rows: Sequence[TokenSequence], num_images: int) -> ModelInputs:
    """Examples about the same pictures as one batch, pads on the right and causal."""
    shape = (len(rows), max(map(len, rows)))
    token_ids = torch.zeros(shape, dtype=torch.long)
    input_mask, image_mask, loss_mask = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    mask_ar = torch.ones(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        here = (number, slice(len(row)))
        token_ids[here] = torch.tensor(row.token_ids)
        input_mask[here] = True
        mask_ar[here] = torch.tensor(row.mask_ar)
        image_mask[here] = torch.tensor(row.image_mask)
        loss_mask[here] = torch.tensor(row.loss_mask)
    return ModelInputs(
        token_ids=token_ids,
        input_mask=input_mask,
        mask_ar=mask_ar,
        image_mask=image_mask,
        pixel_values=torch.zeros(0),  # image tokens stand in for them
        image_index=(tuple(range(num_images)),) * len(rows),
        loss_mask=loss_mask,
    )
