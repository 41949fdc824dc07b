"""A question that is answered with yes or no, and how likely either is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from paligemma.errors import CheckpointError
from paligemma.results import Result
from paligemma.tasks.objects import TokenReader
from paligemma.tasks.task import Generated, TaskContext
from paligemma.tasks.text import AnswerTask

if TYPE_CHECKING:
    from paligemma.processor.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class YesNo(Result):
    """How likely the model finds "yes" and "no"."""

    question: str
    yes: float
    """The probability of yes, where the answer is one of the two."""
    held: float
    """The probability of any other answer: near 1 for a model that does not answer such
    questions, whose `yes` then means little."""


@dataclass(frozen=True, kw_only=True)
class YesNoTask(AnswerTask):
    """Answer a question with yes or no. The prompt is that of `AnswerTask`.

    Costs one pass over the prompt: the probabilities are those of the first token.

    >>> YesNoTask(question="is there a dog?").prompt()
    'answer en is there a dog?'
    """

    def grammar(self, tokenizer: Tokenizer) -> _FirstToken:
        return _FirstToken(*_first_tokens(tokenizer))

    def parse(  # type: ignore[override]
        self, generated: Generated, tokenizer: TokenReader, context: TaskContext
    ) -> YesNo:
        yes_id, no_id = _first_tokens(cast("Tokenizer", tokenizer))
        probability = math.exp(generated.logprobs[0])
        both = generated.allowed_probabilities[0]
        share = {yes_id: probability / both, no_id: 1.0 - probability / both}
        yes = share.get(generated.token_ids[0], math.nan)  # without the grammar, it is any token
        return YesNo(question=self.question, yes=min(max(yes, 0.0), 1.0), held=1.0 - both)


class _FirstToken(NamedTuple):
    """A grammar of one token: the first of "yes" or of "no"."""

    yes_id: int
    no_id: int

    @property
    def allowed(self) -> tuple[int, ...]:
        return self.yes_id, self.no_id

    @property
    def usual_length(self) -> int:
        return 1

    def advance(self, token_id: int, /) -> _FirstToken:
        return self


def _first_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    yes_id, no_id = (tokenizer.tokenize_text(word)[0] for word in ("yes", "no"))
    if yes_id == no_id:
        raise CheckpointError(
            'The tokenizer has one first token for "yes" and "no". Rank by captions instead.'
        )
    return yes_id, no_id
