"""Two ways through the predictor, one answer."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import paligemma
from paligemma.fast.weights import Plain
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import Generation
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.text import AnswerTask, CaptionTask, OcrTask
from tests.agreement.tiny_predictor import build_predictor, picture
from tests.tiny import FLOAT32_TOLERANCE

QUESTIONS = ["Where is the cow?", "a", "How many cats and dogs stand on the beach?"]
SAMPLED = {"temperature": 1.5, "top_k": 40, "seed": 11}


@pytest.fixture(scope="module")
def predictor(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


def assert_same(found: Generation, expected: Generation) -> None:
    assert found.token_ids == expected.token_ids
    assert found.text == expected.text
    assert found.stop_reason == expected.stop_reason
    assert found.logprobs == pytest.approx(expected.logprobs, abs=FLOAT32_TOLERANCE)


def test_many_questions_get_the_answers_of_one_by_one(predictor: Predictor) -> None:
    image = picture(1)
    for found, question in zip(predictor.ask(image, QUESTIONS, "en"), QUESTIONS, strict=True):
        assert_same(found, predictor.ask(image, question, "en"))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_mixed_tasks_get_the_same_results_in_any_batch(
    predictor: Predictor, batch_size: int
) -> None:
    first, second = picture(1), picture(2, (31, 64))
    tasks: list[tuple[Any, Any]] = [
        (first, OcrTask()),
        (second, DetectTask.of("cat ; dog")),
        (first, SegmentTask.of("beach")),
        (first, AnswerTask(question="Where?", language="en")),
        (second, CaptionTask(style="describe")),
    ]
    found = predictor.run(tasks, batch_size=batch_size, max_new_tokens=12)
    for result, task in zip(found, tasks, strict=True):
        alone = predictor.run([task], max_new_tokens=12)[0]
        expected, actual = alone.to_dict(), result.to_dict()
        assert actual.keys() == expected.keys()
        assert (result.text, result.stop_reason) == (alone.text, alone.stop_reason)


@pytest.mark.parametrize("options", [{}, SAMPLED])
def test_e4_rows_of_different_images_and_prompts_do_not_depend_on_the_batch(
    predictor: Predictor, options: dict[str, Any]
) -> None:
    rows: list[tuple[Any, str]] = [
        (picture(1), "caption en"),
        ((), "on the beach"),
        ([picture(2), picture(3)], "answer en Where is the cow standing?"),
        (picture(1), "caption en"),
    ]
    whole = predictor.generate_batch(rows, max_new_tokens=10, **options)
    for batch_size in (1, 2, 3):
        cut = predictor.generate_batch(rows, batch_size=batch_size, max_new_tokens=10, **options)
        for found, expected in zip(cut, whole, strict=True):
            assert_same(found, expected)
    assert_same(predictor.generate(*rows[0], max_new_tokens=10, **options), whole[0])
    assert (whole[0].token_ids == whole[3].token_ids) == (not options)


@pytest.mark.parametrize("options", [{}, SAMPLED])
def test_the_streamed_pieces_are_the_whole_text(
    predictor: Predictor, options: dict[str, Any]
) -> None:
    image = picture(2)
    whole = predictor.generate(image, "caption en", max_new_tokens=16, **options)
    pieces = list(predictor.stream(image, "caption en", max_new_tokens=16, **options))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 4
    assert "" not in pieces


def test_a_stop_string_never_leaks_wherever_it_begins(predictor: Predictor) -> None:
    image = picture(2)
    whole = predictor.generate(image, "caption en", max_new_tokens=8)
    for start in range(0, len(whole.text) - 5, 2):
        stop = [whole.text[start : start + 5], "not there"]
        expected = whole.text[: whole.text.index(stop[0])]
        made = predictor.generate(image, "caption en", max_new_tokens=8, stop=stop)
        assert made.text == expected
        assert made.stop_reason == "stop"
        assert made.token_ids == whole.token_ids[: len(made.token_ids)]
        so_far = ""
        for piece in predictor.stream(image, "caption en", max_new_tokens=8, stop=stop):
            so_far += piece
            assert expected.startswith(so_far)
        assert so_far == expected


def test_the_beginning_of_a_stop_string_comes_out_when_nothing_follows(
    predictor: Predictor,
) -> None:
    image = picture(2)
    whole = predictor.generate(image, "caption en", max_new_tokens=8)
    stop = [whole.text[-3:] + "!"]
    made = predictor.generate(image, "caption en", max_new_tokens=8, stop=stop)
    assert_same(made, whole)
    pieces = predictor.stream(image, "caption en", max_new_tokens=8, stop=stop)
    assert "".join(pieces) == whole.text


def test_the_end_token_is_kept_among_the_ids_and_left_out_of_the_text(
    predictor: Predictor,
) -> None:
    image = picture(2)
    whole = predictor.generate(image, "caption en", max_new_tokens=8)
    tokenizer = copy.copy(predictor.processor.tokenizer)
    tokenizer.eos_id = whole.token_ids[4]
    ending = replace(predictor, processor=replace(predictor.processor, tokenizer=tokenizer))
    made = ending.generate(image, "caption en", max_new_tokens=8)
    assert made.token_ids == whole.token_ids[: whole.token_ids.index(tokenizer.eos_id) + 1]
    assert made.stop_reason == "eos"
    assert made.text == tokenizer.detokenize(made.token_ids[:-1])
    assert "".join(ending.stream(image, "caption en", max_new_tokens=8)) == made.text


def test_suffixes_score_the_same_together_and_alone(predictor: Predictor) -> None:
    image = picture(5)
    suffixes = ["on the beach", "", "a dog and a cat stand on the beach"]
    for found, suffix in zip(predictor.score(image, "caption en", suffixes), suffixes, strict=True):
        alone = predictor.score(image, "caption en", suffix)
        assert found.token_ids == alone.token_ids
        assert found.token_ids[-1] == predictor.processor.tokenizer.eos_id
        assert found.logprobs == pytest.approx(alone.logprobs, abs=FLOAT32_TOLERANCE)


def test_a_saved_and_loaded_predictor_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    folder = predictor.save(tmp_path / "tiny")
    again = paligemma.load(folder, device="cpu", weights=Plain())
    image = picture(6)
    assert again.generate(image, "caption en") == predictor.generate(image, "caption en")
    assert again.detect(image, "cat").to_dict() == predictor.detect(image, "cat").to_dict()
    assert again.segment(image, "cat").to_dict() == predictor.segment(image, "cat").to_dict()
    assert (again.name, again.note, again.revision) == (str(folder), None, None)
