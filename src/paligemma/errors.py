"""The exceptions of this package.

    PaliGemmaError
    ├── InputError (ValueError)          invalid input
    │   ├── ImageError                   an image cannot be read
    │   │   ├── DocumentError            a document or a page of it cannot be read
    │   │   └── VideoError               a video cannot be read
    │   ├── PromptError                  a prompt is invalid or too long
    │   └── OptionError                  an option has an invalid value
    ├── CheckpointError (ValueError)     a checkpoint is missing, damaged or inconsistent
    │   └── TokenizerError               a tokenizer is damaged or belongs to another model
    ├── HubError (OSError)               a model could not be downloaded
    ├── DataError (ValueError)           a data set is invalid
    ├── BusyError (RuntimeError)         too many requests are waiting
    ├── UnavailableError (RuntimeError)  the model is loading, shutting down, or has failed
    ├── TimeLimitError (TimeoutError)    the request timed out
    ├── CancelledError (RuntimeError)    the request was cancelled
    ├── ProcessLostError (RuntimeError)  another process of the run exited or hangs
    ├── MissingExtraError (ImportError)  an optional dependency is not installed
    └── NumericalError (ArithmeticError) the model produced NaN or infinity

A message says in full sentences what was found, what was expected, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import get_args


class PaliGemmaError(Exception):
    """Base of all exceptions that this package raises; the command line prints one line."""


class InputError(PaliGemmaError, ValueError):
    """An argument is invalid."""


class ImageError(InputError):
    """An image cannot be read, is too large, or has an unsupported format."""


class DocumentError(ImageError):
    """A document, or one of its pages, cannot be read, is too large, or needs a password."""


class VideoError(ImageError):
    """A video cannot be read, is too large or too long, or has no moving pictures."""


class PromptError(InputError):
    """A prompt cannot be turned into tokens, or is too long."""


class OptionError(InputError):
    """An option has an invalid value."""


class CheckpointError(PaliGemmaError, ValueError):
    """A checkpoint's files are missing, damaged, or do not fit the model."""


class TokenizerError(CheckpointError):
    """A tokenizer is damaged or belongs to another model."""


class HubError(PaliGemmaError, OSError):
    """A model could not be downloaded: no network, no access, or an unknown name."""


class DataError(PaliGemmaError, ValueError):
    """A training or evaluation data set is invalid."""


class BusyError(PaliGemmaError, RuntimeError):
    """Too many requests are waiting; try again later, after `retry_after` seconds if known."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(PaliGemmaError, RuntimeError):
    """The model is loading, shutting down, or has failed; the request itself is valid."""


class TimeLimitError(PaliGemmaError, TimeoutError):
    """The request timed out, in the queue or while running (`was_running`)."""

    def __init__(self, message: str, *, was_running: bool) -> None:
        super().__init__(message)
        self.was_running = was_running


class CancelledError(PaliGemmaError, RuntimeError):
    """The request was cancelled, by the client or by shutdown."""


class ProcessLostError(PaliGemmaError, RuntimeError):
    """Another process of the same run exited or does not respond."""


class NumericalError(PaliGemmaError, ArithmeticError):
    """The model produced NaN or infinity."""

    @classmethod
    def of_model(cls) -> NumericalError:
        """Return the error for logits that are not finite."""
        return cls(
            "The model returned NaN or infinity, so there is no result. Load it with "
            "weights='float32' (--dtype float32), because float16 has too small a range for it. If "
            "that does not help, its weights are damaged."
        )


class MissingExtraError(PaliGemmaError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'paligemma[{extra}]'"
        )


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise OptionError unless `value` is an int (not a bool) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} is {value!r}; it must be a whole number of at least {least}.")


def check_number(name: str, value: object) -> None:
    """Raise OptionError unless `value` is a number (not a bool), and not NaN."""
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise OptionError(f"{name} is {value!r}; it must be a number.")


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return the number with its noun, and a verb if need be.

    >>> counted(1, "image"), counted(2, "image"), counted(1, "record has", "records have")
    ('1 image', '2 images', '1 record has')
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def changed_settings(made: Mapping[str, object], given: Mapping[str, object]) -> list[str]:
    """What differs between the settings with which something was made and those given now.

    >>> changed_settings({"task": "caption", "seed": 1}, {"task": "ocr", "seed": 1})
    ["task was 'caption' and is now 'ocr'"]
    """

    def shown(value: object) -> str:
        return "not set" if value is None else repr(value)

    return [
        f"{name} was {shown(made.get(name))} and is now {shown(given.get(name))}"
        for name in sorted(made.keys() | given.keys())
        if made.get(name) != given.get(name)
    ]


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise OptionError unless `value` is one of the values of the Literal `choices`."""
    if value not in get_args(choices):
        shown = ", ".join(map(repr, get_args(choices)))
        raise OptionError(f"{name} is {value!r}; it must be one of {shown}.")
