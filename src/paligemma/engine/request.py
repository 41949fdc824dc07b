"""A request to the engine, and its state: tokens so far, and why it stopped.

A request is one row without pads. It validates all of its fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from paligemma.engine.generate import RowEnd
from paligemma.engine.image_cache import KeyedImage
from paligemma.engine.sampling import (
    GREEDY,
    Constraint,
    Sampling,
    mask_bits,
    row_generator,
    row_limits,
)
from paligemma.errors import OptionError, PromptError
from paligemma.inputs import ModelInputs

# T tokens of the prefix, image tokens included

RequestEnd = RowEnd | Literal["cancelled", "expired", "failed"]
"""As for a row of the reference loop, and: "cancelled" (on request), "expired" (its deadline
passed), "failed" (one of its callbacks raised, or there was not enough memory)."""


PrefixKey = tuple[str, tuple[str, ...], bytes, bytes, tuple[int, ...]]
"""Adapter, keys of the images, token ids, positions of image tokens, tokens generated so far."""


class TopLogprob(NamedTuple):
    """One of the likeliest tokens at a position, with its log-probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One row to continue, and how.

    Raises PromptError or OptionError for fields that are invalid for any model.
    """

    token_ids: Tensor
    """int64[T]; 0 at image tokens."""
    image_mask: Tensor
    """bool[T]; True at image tokens."""
    images: tuple[KeyedImage, ...] = ()
    """The images that fill its image tokens, in order."""
    max_new_tokens: int
    eos_id: int
    sampler: Sampling = GREEDY
    row_number: int = 0
    """Determines the row's randomness, together with the sampler's seed."""
    summarized_ids: range = range(0)
    """Ids whose distribution is summarized wherever one of them is chosen."""
    num_top_logprobs: int = 0
    """Number of likeliest tokens to report for each token."""
    should_stop: Callable[[list[int]], bool] | None = None
    """Called with the new token ids so far; returns True to stop there."""
    constraint: Constraint | None = None
    deadline: float | None = None
    """Time on the engine's clock at which the request expires."""
    client: str = ""
    """Name of the client; the scheduler is fair between clients."""
    adapter: str = ""
    """Name of one of the engine's adapters; "" uses the model without adapter."""

    def __post_init__(self) -> None:
        ids, mask = self.token_ids, self.image_mask
        if not isinstance(ids, Tensor) or ids.dtype != torch.long or ids.ndim != 1 or not len(ids):
            raise PromptError(
                f"token_ids is {_kind(ids)}; it must be int64[T] with at least one token."
            )
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != ids.shape:
            raise PromptError(
                f"image_mask is {_kind(mask)}; it must be bool[{len(ids)}], one per token id."
            )
        if not isinstance(self.images, tuple) or not all(
            isinstance(image, KeyedImage) for image in self.images
        ):
            raise PromptError(f"images is {self.images!r}; it must be a tuple of KeyedImage.")
        row_limits(self.max_new_tokens, 1)
        for name, kind in (
            ("eos_id", int),
            ("row_number", int),
            ("num_top_logprobs", int),
            ("client", str),
            ("adapter", str),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise OptionError(f"{name} is {value!r}; it must be of type {kind.__name__}.")
        if not isinstance(self.sampler, Sampling):
            raise OptionError(f"sampler is {self.sampler!r}; it must be a Sampling.")
        if not isinstance(self.summarized_ids, range):
            raise OptionError(f"summarized_ids is {self.summarized_ids!r}; it must be a range.")
        if self.should_stop is not None and not callable(self.should_stop):
            raise OptionError(f"should_stop is {self.should_stop!r}; it must be callable.")
        if self.deadline is not None and (
            not isinstance(self.deadline, int | float) or math.isnan(self.deadline)
        ):
            raise OptionError(f"deadline is {self.deadline!r}; it must be a time in seconds.")

    @classmethod
    def from_row(
        cls, inputs: ModelInputs, row: int, images: Sequence[KeyedImage], **options: Any
    ) -> Request:
        """Build a request from a row of a batch; `images` are those of `inputs.pixel_values`.

        images = [KeyedImage(pixel_values=pixels) for pixels in inputs.pixel_values]
        Request.from_row(inputs, 0, images, max_new_tokens=20, eos_id=1)
        """
        is_real = inputs.input_mask[row]
        return cls(
            token_ids=inputs.token_ids[row, is_real],
            image_mask=inputs.image_mask[row, is_real],
            images=tuple(images[index] for index in inputs.image_index[row]),
            **options,
        )

    @property
    def num_positions(self) -> int:
        """The maximum number of positions in the cache, including all new tokens."""
        return len(self.token_ids) + self.max_new_tokens


def _kind(value: object) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else repr(value)


@dataclass(kw_only=True, eq=False)
class RequestState:
    """The state of a request, which waits or runs until it has a `stop_reason`."""

    request_id: int
    request: Request
    vocab_size: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: RequestEnd | None = None
    error: Exception | None = None
    is_cancelled: bool = False
    has_failed_before: bool = False  # True after a pass failed for it and it was requeued

    def __post_init__(self) -> None:
        self.rewind()
        self.constraint = self.request.constraint
        self._check_constraint()

    @property
    def num_tokens(self) -> int:
        """Number of tokens in a prefill: the prefix and the tokens generated so far."""
        return len(self.request.token_ids) + len(self.token_ids)

    def prefix_key(self) -> PrefixKey:
        """Return a key that is equal for requests with the same prefill."""
        request = self.request
        return (
            request.adapter,
            tuple(image.key for image in request.images),
            request.token_ids.cpu().numpy().tobytes(),
            request.image_mask.cpu().numpy().tobytes(),
            tuple(self.token_ids),
        )

    def rewind(self) -> None:
        """Reset the random generator to the tokens generated so far, after a failed pass."""
        self.generator = row_generator(self.request.sampler, self.request.row_number)
        for _ in self.token_ids:  # one number per token, see `choose`
            torch.rand((), dtype=torch.float64, generator=self.generator)

    def accept(self, token_id: int, logprob: float) -> None:
        """Append a token and decide whether it was the last. Never raises: the request fails."""
        request = self.request
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        try:
            if token_id == request.eos_id:
                self.stop_reason = "eos"
            elif request.should_stop is not None and request.should_stop(self.token_ids):
                self.stop_reason = "stop"
            elif len(self.token_ids) == request.max_new_tokens:
                self.stop_reason = "length"
            elif self.constraint is not None:
                self.constraint = self.constraint.advance(token_id)
                self._check_constraint()
        except Exception as error:  # raised by its callbacks: must not affect other requests
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self.stop_reason = "failed"
        self.error = error

    def _check_constraint(self) -> None:
        if self.constraint is None or (allowed := self.constraint.allowed) is None:
            return
        if isinstance(allowed, Tensor):
            if bool(allowed.any()) and not bool(mask_bits(allowed, self.vocab_size).any()):
                return
            raise OptionError(
                "The constraint's mask must allow at least one of the ids 0 to "
                f"{self.vocab_size - 1}, and no others. Check the grammar against the model's "
                "vocabulary."
            )
        parts = (allowed,) if isinstance(allowed, range) else allowed
        ends = [part if isinstance(part, range) else range(part, part + 1) for part in parts]
        if not ends or any(
            not 0 <= part.start < part.stop <= self.vocab_size or part.step != 1 for part in ends
        ):
            raise OptionError(
                f"The constraint allows {allowed}; it must allow at least one of the ids 0 to "
                f"{self.vocab_size - 1}. Check the grammar against the model's vocabulary."
            )
