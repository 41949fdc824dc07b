"""Texts as tasks: what is known goes out as it came in, what is not known is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.errors import PromptError
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.parse_prompt import parse_prompt
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.text import AnswerTask, CaptionTask, OcrTask, QuestionTask


@pytest.mark.parametrize(
    ("prompt", "task"),
    [
        ("caption en", CaptionTask()),
        ("cap de", CaptionTask(language="de", style="cap")),
        ("describe pt-BR", CaptionTask(language="pt-BR", style="describe")),
        ("ocr", OcrTask()),
        ("answer en how many  frogs?", AnswerTask(question="how many  frogs?", language="en")),
        ("answer en  two spaces", AnswerTask(question=" two spaces", language="en")),
        ("question fr oui", QuestionTask(answer="oui", language="fr")),
        ("detect frog ; red car", DetectTask(phrases=("frog", "red car"))),
        ("segment frog", SegmentTask(phrases=("frog",))),
    ],
)
def test_a_known_prompt_is_its_task_to_the_letter(prompt: str, task: object) -> None:
    found = parse_prompt(prompt)
    assert found == task
    assert found is not None
    assert found.prompt() == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "caption",
        "caption EN!",
        "caption en please",
        "caption en ",
        "Caption en",
        " ocr",
        "ocr this",
        "answer",
        "answer en",
        "answer en ",
        "answer what is it?",
        "answer the question",
        "question the sky",
        "question de",
        "detect",
        "segment",
        "segment <loc0001><loc0002><loc0003><loc0004>",
        "detect <seg001>",
        "what color is the frog?",
        "detector",
    ],
)
def test_any_other_prompt_is_no_task(prompt: str) -> None:
    assert parse_prompt(prompt) is None


def test_a_list_of_things_is_tidied_as_in_detect() -> None:
    found = parse_prompt("detect  frog;Frog ;\tred   car ;")
    assert found == DetectTask(phrases=("frog", "red car"))


@pytest.mark.parametrize("prompt", ["detect  ", "segment ;;", "detect ; ;"])
def test_a_list_of_nothing_is_refused(prompt: str) -> None:
    with pytest.raises(PromptError, match="no phrases to look for"):
        parse_prompt(prompt)


@given(st.text(max_size=40), st.sampled_from(["caption ", "answer en ", "question ", "ocr", ""]))
def test_whatever_the_text_a_task_of_text_sends_it_unchanged(text: str, start: str) -> None:
    prompt = start + text
    task = parse_prompt(prompt) if not prompt.startswith(("detect ", "segment ")) else None
    assert task is None or task.prompt() == prompt
