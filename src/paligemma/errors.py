"""Every exception that this package raises on purpose, one family.

    PaliGemmaError
    ├── InputError (ValueError)          what a caller passed cannot be used
    │   ├── ImageError                   an image cannot be read
    │   ├── PromptError                  a prompt cannot be turned into tokens
    │   └── OptionError                  an option has a value that makes no sense
    ├── CheckpointError (ValueError)     weights, config or codec on disk are wrong
    │   └── TokenizerError               the tokenizer does not fit, or is broken
    ├── HubError (OSError)               a model could not be fetched
    ├── DataError (ValueError)           a training or evaluation set is wrong
    ├── BusyError (RuntimeError)         too much is waiting already
    ├── UnavailableError (RuntimeError)  the model is loading, shutting down, or has failed
    ├── TimeLimitError (TimeoutError)    an answer was not ready in time
    ├── CancelledError (RuntimeError)    whoever asked does not want the answer any more
    ├── ProcessLostError (RuntimeError)  another process of the same work has ended or hangs
    ├── MissingExtraError (ImportError)  an optional dependency is not installed
    └── NumericalError (ArithmeticError) the model produced NaN or infinity

A message is sentences: what was found, what was expected, what to do.
"""

from __future__ import annotations


class PaliGemmaError(Exception):
    """Base of every error raised on purpose; the command line prints it as one line."""


class InputError(PaliGemmaError, ValueError):
    """What a caller passed cannot be used."""


class ImageError(InputError):
    """An image cannot be read, is too large, or is of a refused format."""


class PromptError(InputError):
    """A prompt cannot be turned into tokens, or is too long."""


class OptionError(InputError):
    """An option has a value that makes no sense."""


class CheckpointError(PaliGemmaError, ValueError):
    """A checkpoint's files are missing, damaged, or do not fit the model."""


class TokenizerError(CheckpointError):
    """A tokenizer is broken or belongs to another model."""


class HubError(PaliGemmaError, OSError):
    """A model could not be fetched: no network, no access, or no such name."""


class DataError(PaliGemmaError, ValueError):
    """A training or evaluation set holds something that cannot be used."""


class BusyError(PaliGemmaError, RuntimeError):
    """Too many requests are waiting already; a later try may be taken."""


class UnavailableError(PaliGemmaError, RuntimeError):
    """The model is loading, shutting down, or has failed: nothing about the request is wrong."""


class TimeLimitError(PaliGemmaError, TimeoutError):
    """An answer was not ready in time: it waited too long for its turn, or took too long."""

    def __init__(self, message: str, *, was_running: bool) -> None:
        super().__init__(message)
        self.was_running = was_running


class CancelledError(PaliGemmaError, RuntimeError):
    """Whoever asked does not want the answer any more."""


class ProcessLostError(PaliGemmaError, RuntimeError):
    """Another process of the same work has ended, or does not answer."""


class NumericalError(PaliGemmaError, ArithmeticError):
    """The model produced NaN or infinity."""

    @classmethod
    def of_model(cls) -> NumericalError:
        """The error of an answer whose logits are not finite."""
        return cls(
            "The model returned NaN or infinity, so there is no answer. Load it with "
            "dtype='float32': float16 is too narrow for it. If that does not help, its weights "
            "are damaged."
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
