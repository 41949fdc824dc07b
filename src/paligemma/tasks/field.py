"""Answers that are held to a form: a pattern, or the JSON of a schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paligemma.results import FieldAnswer
from paligemma.tasks.objects import TokenReader, joint_probability
from paligemma.tasks.task import Generated, TaskContext, read_scored_text
from paligemma.tasks.text import AnswerTask
from paligemma.tasks.text_grammar import TextGrammar

if TYPE_CHECKING:
    from paligemma.processor.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class FieldTask(AnswerTask):
    r"""Answer a question with a text that matches a pattern; see `TextGrammar.of_regex`.

    The prompt is that of `AnswerTask`. Decoding raises OptionError for a pattern that is invalid
    or has no limit, and MissingExtraError without llguidance.

    >>> FieldTask(question="What is the date?", pattern=r"\d{4}-\d{2}-\d{2}").prompt()
    'What is the date?'
    """

    pattern: str

    def grammar(self, tokenizer: Tokenizer) -> TextGrammar:
        return TextGrammar.of_regex(self.pattern, tokenizer)

    def parse(
        self, generated: Generated, tokenizer: TokenReader, context: TaskContext
    ) -> FieldAnswer:
        text = read_scored_text(generated, tokenizer, joint_probability)
        return FieldAnswer(**vars(text), question=self.question)
