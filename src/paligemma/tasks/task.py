"""The protocol of a task: prompt() makes the question, parse() reads the model's output.

A task knows a tokenizer and the picture's geometry by the few methods below; it knows no model,
no image files and no engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

from paligemma.errors import OptionError
from paligemma.results import BoxXyxy, StopReason, Text
from paligemma.tasks.object_grammar import ObjectList, TokenWriter
from paligemma.tasks.objects import (
    TokenReader,
    before_eos,
    mean_probability,
)

if TYPE_CHECKING:
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
    "caption", "describe", "answer", "ocr", "detect", "segment", "read_text", "generate", "prompt"
]
"""generate: any other text that evaluation asks for. prompt: a prompt of the caller's own."""


class Generated(Protocol):
    """What a task reads; `results.Generation` is one."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Sequence[float]: ...
    @property
    def stop_reason(self) -> StopReason: ...


class SourceTransform(Protocol):
    """How the model's square picture lies on the person's picture."""

    @property
    def source_wh(self) -> tuple[int, int]: ...
    def box_to_source(
        self, box: Sequence[float], /, *, order: Literal["yxyx", "xyxy"], clamp: bool = True
    ) -> BoxXyxy:
        """Fractions of the model's picture -> pixels of the person's picture, clamped to it."""
        ...


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a task needs beside tokens to place its answer in the picture."""

    transform: SourceTransform
    mask_codec: MaskCodec | None = None
    """Needed by `SegmentTask` only."""


ResultT_co = TypeVar("ResultT_co", covariant=True)


class Task(Protocol[ResultT_co]):
    """A question that knows how to read its answer."""

    def prompt(self) -> str:
        """The prefix, without separator."""
        ...

    def parse(
        self, generated: Generated, tokenizer: TokenReader, context: TaskContext
    ) -> ResultT_co:
        """The typed result; odd output never raises."""
        ...


@runtime_checkable
class GuidedTask(Protocol):
    """A task whose output has a grammar, to which decoding can be held: detect and segment."""

    def grammar(self, tokenizer: TokenWriter) -> ObjectList:
        """The state before the first token."""
        ...


def check_language(language: str) -> str:
    """The code itself.

    Raises OptionError when it does not look like a language code.

    >>> check_language("fil")
    'fil'
    """
    if not isinstance(language, str) or not _LANGUAGE_CODE.fullmatch(language):
        raise OptionError(
            f"{language!r} is not a language code; expected two or three lowercase letters. The "
            f"model was tuned on these {len(LANGUAGES)}: {' '.join(LANGUAGES)}."
        )
    return language


def read_scored_text(generated: Generated, tokenizer: TokenReader) -> Text:
    """The text up to EOS without surrounding space, its score, and all tokens."""
    return Text(
        text=tokenizer.detokenize(before_eos(generated.token_ids, tokenizer)).strip(),
        token_ids=tuple(generated.token_ids),
        logprobs=tuple(generated.logprobs),
        stop_reason=generated.stop_reason,
        score=mean_probability(generated.logprobs),
    )
