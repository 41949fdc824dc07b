"""The protocol of a task: `prompt()` builds the prompt, `parse()` reads the model's output."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

from paligemma.errors import OptionError
from paligemma.results import BoxXyxy, RangeSummary, StopReason, Text
from paligemma.tasks.objects import TokenReader, before_eos, mean_probability

if TYPE_CHECKING:
    from torch import Tensor

    from paligemma.processor.tokenizer import Tokenizer
    from paligemma.tasks.seg_codec import MaskCodec

# fmt: off
LANGUAGES = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr",
    "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "te",
    "th", "tr", "uk", "vi", "zh",
)
# fmt: on
"""The 35 languages of COCO-35L (arXiv 2407.07726); pre-training saw more than 100."""

_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?")


AnswerKind = Literal[
    "caption",
    "describe",
    "answer",
    "ocr",
    "detect",
    "segment",
    "table",
    "chart",
    "read_text",
    "generate",
    "prompt",
]
"""generate: any other text in evaluation. prompt: a custom prompt."""


class Generated(Protocol):
    """The output that a task parses, such as `results.Generation`."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Sequence[float]: ...
    @property
    def locations(self) -> Sequence[RangeSummary | None]: ...
    @property
    def stop_reason(self) -> StopReason: ...
    @property
    def held(self) -> float: ...
    @property
    def allowed_probabilities(self) -> Sequence[float]: ...


class SourceTransform(Protocol):
    """The mapping from the model's square input to the source image."""

    @property
    def source_wh(self) -> tuple[int, int]: ...
    def box_to_source(
        self, box: Sequence[float], /, *, order: Literal["yxyx", "xyxy"], clamp: bool = True
    ) -> BoxXyxy:
        """Map fractions of the model's input to pixels of the source image, clamped to it."""
        ...


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a task needs in addition to the tokens to build its result."""

    transform: SourceTransform
    mask_codec: MaskCodec | None = None
    """Only for `SegmentTask`."""


ResultT_co = TypeVar("ResultT_co", covariant=True)


class Task(Protocol[ResultT_co]):
    """A prompt and the parser of its output."""

    def prompt(self) -> str:
        """Return the prefix, without separator."""
        ...

    def parse(
        self, generated: Generated, tokenizer: TokenReader, context: TaskContext
    ) -> ResultT_co:
        """Return the typed result; never raises for odd output."""
        ...


class Grammar(Protocol):
    """A state of a grammar that constrains decoding: the engine's `Constraint`, with a length."""

    @property
    def allowed(self) -> range | tuple[int | range, ...] | Tensor | None: ...
    @property
    def usual_length(self) -> int:
        """The default limit on new tokens."""

    def advance(self, token_id: int, /) -> Grammar: ...


@runtime_checkable
class GuidedTask(Protocol):
    """A task whose grammar can constrain decoding, such as detect and segment."""

    def grammar(self, tokenizer: Tokenizer) -> Grammar:
        """Return the grammar's initial state."""
        ...


def check_language(language: str) -> str:
    """Return the language code; raise OptionError if it does not look like one.

    >>> check_language("fil")
    'fil'
    """
    if not isinstance(language, str) or not _LANGUAGE_CODE.fullmatch(language):
        raise OptionError(
            f"{language!r} is not a language code; expected two or three lowercase letters, such "
            f"as en. The released models were tuned on these {len(LANGUAGES)}: "
            f"{' '.join(LANGUAGES)}."
        )
    return language


def language_doubt(language: str, languages: Sequence[str] | None) -> str | None:
    """Return why a model may not write this language, or None if it does.

    `languages` are those that the model knows; None for a model of which this is not known.

    >>> language_doubt("xx", ("en", "de"))
    "'xx' is not a language of this model, which knows: en de."
    """
    if language in (LANGUAGES if languages is None else languages):
        return None
    if languages is not None:
        return f"{language!r} is not a language of this model, which knows: {' '.join(languages)}."
    return (
        f"{language!r} is not among the {len(LANGUAGES)} languages that the released models were "
        f"tuned on, so that the answer may be in another one: {' '.join(LANGUAGES)}."
    )


def read_scored_text(
    generated: Generated,
    tokenizer: TokenReader,
    score: Callable[[Sequence[float]], float] = mean_probability,
) -> Text:
    """Return the text up to EOS, stripped, with the score of its log-probabilities, and all
    tokens."""
    return Text(
        text=tokenizer.detokenize(before_eos(generated.token_ids, tokenizer)).strip(),
        token_ids=tuple(generated.token_ids),
        logprobs=tuple(generated.logprobs),
        stop_reason=generated.stop_reason,
        held=generated.held,
        allowed_probabilities=tuple(generated.allowed_probabilities),
        score=score(generated.logprobs),
    )
