"""Answers held to a pattern, by a tiny model with random weights that never wants to write them."""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import pytest

from paligemma.answering import ImageQuery, Query
from paligemma.errors import MissingExtraError, OptionError, PromptError
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import FieldAnswer
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.field import FieldTask
from paligemma.tasks.text import AnswerTask, OcrTask
from tests.agreement.tiny_predictor import build_predictor, picture
from tests.tiny import FLOAT32_TOLERANCE

DATE = r"\d{4}-\d{2}-\d{2}"


@pytest.fixture(scope="module")
def predictor(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


def field(pattern: str, question: str = "When?") -> FieldTask:
    return FieldTask(question=question, pattern=pattern)


def ask(predictor: Predictor, task: FieldTask, **options: Any) -> FieldAnswer:
    query = ImageQuery(images=(picture(1),), query=Query(task=task, **options))
    (answer,) = predictor.answer([query])
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, FieldAnswer)
    return answer


@pytest.mark.parametrize(
    "pattern",
    [DATE, "yes|no|unanswerable", "[A-Z][a-z]{0,10}", ".{0,12}", "", "[àéü]{3}", r"[0-9]{1,30}"],
)
def test_every_answer_matches_its_pattern_and_ends(predictor: Predictor, pattern: str) -> None:
    answer = ask(predictor, field(pattern))
    assert re.fullmatch(pattern, answer.text)
    assert (answer.stop_reason, answer.is_cut) == ("eos", False)
    assert 0 < answer.held <= 1


def test_score_and_held_are_of_the_model_without_the_grammar(predictor: Predictor) -> None:
    question = "Where is the cow?"
    answer = ask(predictor, field("[qz]{3}", question))
    prompt = AnswerTask(question=question).prompt()
    scored = predictor.score(
        picture(1), prompt, predictor.processor.tokenizer.detokenize(answer.token_ids)
    )
    assert scored.token_ids == answer.token_ids
    assert answer.logprobs == pytest.approx(scored.logprobs, abs=FLOAT32_TOLERANCE)
    assert answer.score == pytest.approx(math.exp(scored.total), rel=1e-4)
    assert answer.held > 0.9


def test_a_grammar_that_allows_what_the_model_wants_holds_nothing(predictor: Predictor) -> None:
    free = predictor.ask(picture(1), "When?", max_new_tokens=3)
    wanted = predictor.processor.tokenizer.detokenize(free.token_ids[:1]).strip()
    forced = ask(predictor, field(re.escape(wanted)))
    assert forced.text == wanted
    unlike = ask(predictor, field("zzz"))
    assert unlike.score < 1e-3 < 0.9 < unlike.held


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_held_free_and_detect_rows_share_a_batch(predictor: Predictor, batch_size: int) -> None:
    tasks: list[Any] = [
        field(DATE),
        AnswerTask(question="Where is the cow?"),
        DetectTask.of("cat ; dog"),
        field("yes|no"),
        OcrTask(),
        field(".{0,12}", "What is written on the beach?"),
    ]
    queries = [
        ImageQuery(images=(picture(2),), query=Query(task=task, max_new_tokens=24))
        for task in tasks
    ]
    together = list(predictor.answer(queries, batch_size))
    for answer, query in zip(together, queries, strict=True):
        (alone,) = predictor.answer([query])
        assert (answer.text, answer.stop_reason) == (alone.text, alone.stop_reason)
        if isinstance(alone, FieldAnswer):
            assert answer.token_ids == alone.token_ids
            assert answer.logprobs == pytest.approx(alone.logprobs, abs=FLOAT32_TOLERANCE)
            assert answer.held == pytest.approx(alone.held, abs=FLOAT32_TOLERANCE)


def test_an_answer_that_is_cut_says_so(predictor: Predictor) -> None:
    answer = ask(predictor, field(DATE), max_new_tokens=4)
    assert (answer.stop_reason, answer.is_cut) == ("length", True)
    assert answer.to_dict()["is_cut"] is True


def test_without_its_grammar_the_question_is_free(predictor: Predictor) -> None:
    answer = ask(predictor, field("yes|no"), constrained=False)
    assert answer.text not in ("yes", "no")
    assert answer.held == 0


def test_beam_search_refuses_a_pattern(predictor: Predictor) -> None:
    with pytest.raises(OptionError, match="cannot hold an answer"):
        predictor.run([(picture(1), field(DATE))], num_beams=2)


def test_a_wrong_pattern_is_the_error_of_its_question_alone(predictor: Predictor) -> None:
    tasks = [(picture(1), field("a*")), (picture(1), field("(a")), (picture(1), field("a"))]
    endless, open_group, good = predictor.run(tasks, errors="return")
    assert isinstance(endless, OptionError)
    assert isinstance(open_group, OptionError)
    assert isinstance(good, FieldAnswer)


def test_what_is_asked_is_checked() -> None:
    with pytest.raises(PromptError, match="question"):
        field(DATE, " ")
    with pytest.raises(OptionError, match="language code"):
        FieldTask(question="When?", pattern=DATE, language="English")


def test_the_missing_package_is_named(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"paligemma\[guided\]"):
        ask(predictor, field(DATE))
