"""Jobs for the service: images, a task or a prompt, and options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from paligemma.engine.sampling import GREEDY, Sampling
from paligemma.errors import ImageError, OptionError, PromptError
from paligemma.processor.image import ImageTransform, LoadedImage
from paligemma.server.limits import Limits
from paligemma.tasks.task import Task

ImagePayload = bytes | LoadedImage
"""The bytes of an image file, or an image that is decoded already."""

TaskBuilder = Callable[[ImageTransform], Task[Any]]
"""A task that depends on the picture's size, such as a caption of a box given in pixels."""


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How an answer is written."""

    max_tokens: int | None = None
    """None: what the task usually needs."""
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    n_th: int = 0
    """Decides, with the seed, the randomness: several answers to one question count from 0."""
    stop: tuple[str, ...] = ()
    logprobs: int = 0
    """Alternatives to tell of each token."""
    constrained: bool = True
    """Hold detect and segment to their grammar."""
    adapter: str | None = None
    """The name of one of the service's adapters; None is the model itself."""

    @property
    def sampling(self) -> Sampling:
        """Raises OptionError for a value out of range."""
        if self.temperature == 0 and self.top_k is None and self.top_p is None:
            return GREEDY
        return Sampling(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed
        )

    def check(self, limits: Limits) -> None:
        """Raises OptionError for what is out of bounds, in words that repeat no text given."""
        _check_whole("max_tokens", self.max_tokens, 1, limits.max_tokens, may_be_none=True)
        _check_whole("logprobs", self.logprobs, 0, limits.max_logprobs)
        _check_whole("n_th", self.n_th, 0, None)
        if not isinstance(self.stop, tuple) or len(self.stop) > limits.max_stops:
            raise OptionError(f"stop must be a tuple of at most {limits.max_stops} texts.")
        longest = limits.max_stop_characters
        if not all(isinstance(text, str) and 0 < len(text) <= longest for text in self.stop):
            raise OptionError(f"Each stop must be a text of 1 to {longest} characters.")
        if not isinstance(self.constrained, bool):
            raise OptionError("constrained must be True or False.")
        assert self.sampling is not None  # it checks itself


@dataclass(frozen=True, kw_only=True)
class Job:
    """One question about some pictures: a task, or a prompt of one's own."""

    task: Task[Any] | TaskBuilder | None = None
    prompt: str | None = None
    images: tuple[ImagePayload, ...] = ()
    options: JobOptions = field(default_factory=JobOptions)
    client: str = ""
    """Whose question it is: clients take turns."""
    deadline: float | None = None
    """When to give up, on the service's clock; None is the limit for requests."""
    stream: bool = False
    """Tell tokens, text and objects as they come; else only the result."""

    def check(self, limits: Limits) -> None:
        """Raises ImageError, PromptError or OptionError for what is out of bounds."""
        check_images(self.images, limits)
        self.options.check(limits)
        if (self.task is None) == (self.prompt is None):
            raise OptionError("A job has either a task or a prompt.")
        if self.task is not None and len(self.images) != 1:
            raise ImageError(f"A task is about one picture; {len(self.images)} were given.")
        if self.prompt is not None:
            check_text(self.prompt, limits)
        elif not callable(self.task) and self.task is not None:
            check_text(self.task.prompt(), limits)


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """How probable the model finds each of these texts after a prompt; -> list[Score]."""

    prompt: str
    suffixes: tuple[str, ...]
    images: tuple[ImagePayload, ...] = ()
    adapter: str | None = None
    client: str = ""
    deadline: float | None = None

    def check(self, limits: Limits) -> None:
        """Raises ImageError, PromptError or OptionError for what is out of bounds."""
        check_images(self.images, limits)
        if not 1 <= len(self.suffixes) <= limits.max_suffixes:
            raise OptionError(
                f"There are {len(self.suffixes)} texts to score; 1 to {limits.max_suffixes} "
                "are taken."
            )
        for text in (self.prompt, *self.suffixes):
            check_text(text, limits)


def check_images(images: tuple[ImagePayload, ...], limits: Limits) -> None:
    """Raises ImageError for too many pictures, or too large ones."""
    if len(images) > limits.max_images:
        raise ImageError(f"There are {len(images)} pictures; at most {limits.max_images} may be.")
    for image in images:
        if isinstance(image, bytes):
            if len(image) > limits.max_image_bytes:
                raise ImageError(
                    f"The picture has {len(image)} bytes; at most {limits.max_image_bytes} are "
                    "taken. Save it smaller."
                )
        elif not isinstance(image, LoadedImage):
            raise ImageError("A picture must be the bytes of a file, or a LoadedImage.")


def check_text(text: str, limits: Limits) -> None:
    """Raises PromptError for a text that is too long even to be tokenized."""
    if not isinstance(text, str):
        raise PromptError("A prompt must be text.")
    if len(text) > limits.max_prompt_characters:
        raise PromptError(
            f"The prompt has {len(text)} characters; at most {limits.max_prompt_characters} are "
            "taken. Shorten it."
        )


def _check_whole(
    name: str, value: object, least: int, most: int | None, *, may_be_none: bool = False
) -> None:
    if value is None and may_be_none:
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise OptionError(f"{name} must be a whole number, {bounds}.")
