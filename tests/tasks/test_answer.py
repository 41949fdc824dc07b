from __future__ import annotations

import math

import pytest

from paligemma.errors import OptionError, PromptError
from paligemma.tasks.task import TaskContext
from paligemma.tasks.text import AnswerTask, QuestionTask
from tests.tasks.character_tokenizer import CharacterTokenizer


def test_a_question_is_asked_as_it_stands_or_in_a_language() -> None:
    assert AnswerTask(question="Where is it?").prompt() == "answer en Where is it?"
    assert AnswerTask(question="Où?", language="fr").prompt() == "answer fr Où?"
    assert AnswerTask(question="Where is it?", language=None).prompt() == "Where is it?"


def test_white_space_of_a_question_is_kept() -> None:
    assert AnswerTask(question=" Mayfly", language="en").prompt() == "answer en  Mayfly"


def test_a_question_can_be_asked_for() -> None:
    assert QuestionTask(answer="yes").prompt() == "question en yes"
    assert QuestionTask(answer="yes", language="zh").prompt() == "question zh yes"


def test_answers_are_read(tokenizer: CharacterTokenizer, context: TaskContext) -> None:
    generated = tokenizer.generation("on the beach")
    answer = AnswerTask(question="Where?").parse(generated, tokenizer, context)
    assert (answer.text, answer.question) == ("on the beach", "Where?")
    total = math.fsum(generated.logprobs)
    assert answer.score == pytest.approx(math.exp(total))
    question = QuestionTask(answer="yes").parse(generated, tokenizer, context)
    assert question.text == "on the beach"
    assert question.score == pytest.approx(math.exp(total / len(generated.logprobs)))


@pytest.mark.parametrize("blank", ["", "  \n", None])
def test_blank_texts_are_refused(blank: str) -> None:
    with pytest.raises(PromptError):
        AnswerTask(question=blank)
    with pytest.raises(PromptError):
        QuestionTask(answer=blank)


def test_what_is_no_language_is_refused() -> None:
    with pytest.raises(OptionError):
        AnswerTask(question="Where?", language="english")
    with pytest.raises(OptionError):
        QuestionTask(answer="yes", language="")
