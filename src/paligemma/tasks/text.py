"""Tasks that answer with text: questions, captions, and reading the text in the image.

Prompts: arXiv 2407.07726 section 3.2.5, and the model's documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from paligemma.errors import OptionError, PromptError
from paligemma.results import Answer, BoxXyxy, Caption, Text
from paligemma.tasks.objects import TokenReader, encode_box, format_box, joint_probability
from paligemma.tasks.task import (
    AnswerKind,
    Generated,
    TaskContext,
    check_language,
    read_scored_text,
)


@dataclass(frozen=True, kw_only=True)
class AnswerTask:
    """Answer a question. The prompt is "answer {language} {question}", or the question alone.

    The released checkpoints were tuned on "answer en {question}" for most data sets, and on the
    question alone (`language=None`) for DocVQA and ChartQA; mix checkpoints take both. White space
    is preserved, because AI2D was tuned with two spaces after "en". Raises PromptError for an empty
    question, OptionError for an invalid language code.

    >>> AnswerTask(question="How many cats?").prompt()
    'answer en How many cats?'
    """

    question: str
    language: str | None = "en"
    answer_kind: ClassVar[AnswerKind] = "answer"

    def __post_init__(self) -> None:
        _check_text(self.question, "question")
        if self.language is not None:
            check_language(self.language)

    def prompt(self) -> str:
        return self.question if self.language is None else f"answer {self.language} {self.question}"

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Answer:
        # The score is that of these very words, since an answer is right or wrong as a whole.
        text = read_scored_text(generated, tokenizer, joint_probability)
        return Answer(**vars(text), question=self.question)


@dataclass(frozen=True, kw_only=True)
class QuestionTask:
    """Generate a question, in a given language, for an (English) answer.

    >>> QuestionTask(answer="yes", language="de").prompt()
    'question de yes'
    """

    answer: str
    language: str = "en"
    answer_kind: ClassVar[AnswerKind] = "answer"

    def __post_init__(self) -> None:
        _check_text(self.answer, "answer")
        check_language(self.language)

    def prompt(self) -> str:
        return f"question {self.language} {self.answer}"

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Text:
        return read_scored_text(generated, tokenizer)


def _check_text(text: str, name: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"The {name} is {text!r}; it must be text with at least one word.")


CaptionStyle = Literal["cap", "caption", "describe"]


@dataclass(frozen=True, kw_only=True)
class CaptionTask:
    """Caption the whole image.

    Styles: "caption" is short, as in COCO; "cap" is raw alt text; "describe" is longer. The last
    two are for pre-trained checkpoints. Raises OptionError for an invalid style or language code.

    >>> CaptionTask(language="es").prompt()
    'caption es'
    """

    language: str = "en"
    style: CaptionStyle = "caption"

    def __post_init__(self) -> None:
        check_language(self.language)
        if self.style not in get_args(CaptionStyle):
            raise OptionError(
                f"Unknown caption style {self.style!r}. Choose one of: "
                f"{', '.join(get_args(CaptionStyle))}."
            )

    @property
    def answer_kind(self) -> AnswerKind:
        return "describe" if self.style == "describe" else "caption"

    def prompt(self) -> str:
        return f"{self.style} {self.language}"

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Caption:
        return _read_caption(generated, tokenizer, self.language)


@dataclass(frozen=True, kw_only=True)
class BoxCaptionTask:
    """Caption one box; `box_normalized_xyxy` is in fractions of the model's square input.

    Raises InputError for a box that is not finite, OptionError for one without area.

    >>> BoxCaptionTask(box_normalized_xyxy=(0.1, 0.25, 0.9, 0.75)).prompt()
    'caption <loc0256><loc0102><loc0767><loc0921>'
    """

    box_normalized_xyxy: BoxXyxy
    answer_kind: ClassVar[AnswerKind] = "caption"

    def __post_init__(self) -> None:
        y1, x1, y2, x2 = encode_box(self.box_normalized_xyxy)
        if y2 <= y1 or x2 <= x1:
            raise OptionError(
                f"The box {self.box_normalized_xyxy} has no area inside the image. Give x1, y1, "
                "x2, y2 as fractions of the image's width and height, with x1 < x2 and y1 < y2."
            )

    def prompt(self) -> str:
        return f"caption {format_box(self.box_normalized_xyxy)}"

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Caption:
        return _read_caption(generated, tokenizer, None)


def _read_caption(generated: Generated, tokenizer: TokenReader, language: str | None) -> Caption:
    return Caption(**vars(read_scored_text(generated, tokenizer)), language=language)


@dataclass(frozen=True, kw_only=True)
class OcrTask:
    """Read the text in the image; for pre-trained checkpoints and ones tuned for OCR.

    >>> OcrTask().prompt()
    'ocr'
    """

    answer_kind: ClassVar[AnswerKind] = "ocr"

    def prompt(self) -> str:
        return "ocr"

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Text:
        return read_scored_text(generated, tokenizer)
