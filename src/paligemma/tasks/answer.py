"""Visual question answering, and generating the question for an answer.

Prompts: arXiv 2407.07726 section 3.2.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from paligemma.errors import PromptError
from paligemma.results import Answer, Text
from paligemma.tasks.objects import TokenReader
from paligemma.tasks.task import Generated, TaskContext, check_language, read_scored_text


@dataclass(frozen=True, kw_only=True)
class AnswerTask:
    """Answer a question. The prompt is the question, or "answer {language} {question}".

    The released checkpoints were tuned on "answer en {question}" for most data sets, and on the
    question alone for DocVQA and ChartQA; mix checkpoints take both. White space is preserved,
    because AI2D was tuned with two spaces after "en". Raises PromptError for an empty question,
    OptionError for an invalid language code.

    >>> AnswerTask(question="How many cats?", language="en").prompt()
    'answer en How many cats?'
    """

    question: str
    language: str | None = None

    def __post_init__(self) -> None:
        _check_text(self.question, "question")
        if self.language is not None:
            check_language(self.language)

    def prompt(self) -> str:
        return self.question if self.language is None else f"answer {self.language} {self.question}"

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Answer:
        return Answer(**vars(read_scored_text(generated, tokenizer)), question=self.question)


@dataclass(frozen=True, kw_only=True)
class QuestionTask:
    """Generate a question, in a given language, for an (English) answer.

    >>> QuestionTask(answer="yes", language="de").prompt()
    'question de yes'
    """

    answer: str
    language: str = "en"

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
