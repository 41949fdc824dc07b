"""Careless prompts: what is understood, what is asked again, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import paligemma
from paligemma.errors import ImageError, OptionError, PromptError
from paligemma.fast.weights import Trainable
from paligemma.results import Detection, Detections, Problem
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.objects import read_phrases
from paligemma.tasks.parse_prompt import prompt_notes
from paligemma.tasks.second_look import MAX_PHRASES, plain_form, second_look, separately
from paligemma.tasks.text import CaptionTask

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
FROGS = [(20, 78, 111, 165), (67, 205, 190, 330)]
MUSHROOM = (241, 220, 340, 325)


@pytest.fixture(scope="module")
def mini() -> paligemma.Predictor:
    return paligemma.load("mini", weights="float32")


def overlap(a: Any, b: Any) -> float:
    x1, y1, x2, y2 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    shared = max(0, x2 - x1) * max(0, y2 - y1)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def finds(result: Detections, label: str, boxes: list[Any]) -> bool:
    """Whether the objects with this label are exactly these."""
    rest = [obj.box_xyxy for obj in result if obj.label == label]
    return len(rest) == len(boxes) and all(
        max(overlap(box, other) for other in rest) > 0.6 for box in boxes
    )


@pytest.mark.parametrize(
    ("phrases", "label"),
    [
        ("frog", "frog"),
        ("frog ; zebra crossing lane", "frog"),
        ("frog ; unicorn", "frog"),
        ("apple ; boat ; frog", "frog"),
        ("detect frog", "frog"),
        ("Detect frog ; mushroom", "frog"),
        ("Frog", "Frog"),
        ("FROG ; MUSHROOM", "FROG"),
        ("frogs", "frogs"),
        ("a frog", "a frog"),
        ("the frog", "the frog"),
        ("frog.", "frog."),
        ("frog, mushroom", "frog"),
        ("frog\nmushroom", "frog"),
        ("frog، mushroom", "frog"),
        (["Frogs", "the mushroom"], "Frogs"),
    ],
)
def test_a_careless_prompt_still_finds_both_frogs(
    mini: paligemma.Predictor, phrases: Any, label: str
) -> None:
    result = mini.detect(SCENE, phrases)
    assert finds(result, label, FROGS), result
    assert not any(obj.unsure for obj in result)
    for other in ("mushroom", "MUSHROOM", "the mushroom"):
        if other in result.phrases:
            assert finds(result, other, [MUSHROOM]), result


def test_segment_takes_a_second_look_too(mini: paligemma.Predictor) -> None:
    result = mini.segment(SCENE, "Frogs, mushroom")
    assert [segment.label for segment in result] == ["Frogs", "Frogs", "mushroom"]
    assert all(segment.mask.any() for segment in result)


def test_what_was_changed_is_said(mini: paligemma.Predictor) -> None:
    notes = "\n".join(mini.detect(SCENE, "detect Frogs, mushroom").notes)
    assert "'detect' in front of the phrases was left out" in notes
    assert "'Frogs, mushroom' was split at its commas" in notes
    assert "'Frogs' was asked as 'frog'" in notes
    assert mini.detect(SCENE, "frog ; mushroom").notes == ()


@pytest.mark.parametrize("phrase", ["unicorn", "🐸", "zebra crossing lane"])
def test_what_is_not_there_is_missing_or_marked(mini: paligemma.Predictor, phrase: str) -> None:
    alone = mini.detect(SCENE, phrase)
    assert alone.missing == (phrase,) or all(obj.unsure for obj in alone)
    assert mini.detect(SCENE, ["frog", phrase]).missing == (phrase,)


def test_one_may_ask_once_or_always_separately(mini: paligemma.Predictor) -> None:
    once = mini.detect(SCENE, "frog ; unicorn", separate=False)
    assert once.notes == ()
    assert set(once.labels) == {"frog"}
    apart = mini.detect(SCENE, "frog ; mushroom", separate=True)
    assert finds(apart, "frog", FROGS)
    assert finds(apart, "mushroom", [MUSHROOM])
    assert apart.notes == ("Each phrase was asked by itself.",)
    assert apart.prompt == "detect frog ; mushroom"


@pytest.mark.parametrize("word", ["<image>", "<bos>", "<eos>", "<pad>"])
def test_control_words_of_other_tools_are_refused(mini: paligemma.Predictor, word: str) -> None:
    for ask in (
        lambda: mini.generate(SCENE, f"{word}caption en"),
        lambda: mini.detect(SCENE, f"{word}frog"),
        lambda: mini.ask(SCENE, f"{word} how many?"),
        lambda: list(mini.stream(SCENE, f"caption en {word}")),
        lambda: mini.score(SCENE, f"{word}caption en", "a frog"),
    ):
        with pytest.raises(PromptError, match="Leave it out"):
            ask()


def test_a_list_that_runs_out_of_tokens_says_what_it_did_not_reach(
    mini: paligemma.Predictor,
) -> None:
    once = mini.detect(SCENE, "frog ; mushroom", max_new_tokens=14, separate=False)
    assert (once.missing, once.not_reached, once.stop_reason) == ((), ("mushroom",), "length")
    assert "a larger max_new_tokens" in str(once)
    again = mini.detect(SCENE, "frog ; mushroom", max_new_tokens=14)
    assert finds(again, "mushroom", [MUSHROOM])


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("cat ; dog", ("cat", "dog")),
        ("man in red, left ; dog", ("man in red, left", "dog")),
        ("man in red, left ;", ("man in red, left",)),
        ("猫、犬", ("猫", "犬")),
        ("detect", ("detect",)),
        ("detective", ("detective",)),
        ("segment   cat", ("cat",)),
        ("cat,", ("cat",)),
        ("cat | dog", ("cat", "dog")),
        ("cat\tdog", ("cat", "dog")),
        ("* cat\n* dog", ("cat", "dog")),
        ("1. cat\n2. dog", ("cat", "dog")),
        ("['cat', 'dog']", ("cat", "dog")),
        ('"cat" ; "dog"', ("cat", "dog")),
        ('"stop" sign ; 3D printer ; -', ('"stop" sign', "3D printer", "-")),
        ("detect cat ; detect dog", ("cat", "dog")),
        ("Detect: cat", ("cat",)),
        ("cat and dog", ("cat and dog",)),
    ],
)
def test_phrases_are_read_as_people_type_them(text: str, phrases: tuple[str, ...]) -> None:
    assert read_phrases(text)[0] == phrases


def test_a_list_is_taken_word_by_word() -> None:
    assert read_phrases(["man in red, left"]) == (("man in red, left",), ())


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("Caption EN", "caption en"),
        (" caption en", "caption en"),
        ("caption en\n", "caption en"),
        ("Detect cat", "detect cat"),
        ("Answer en Where is Rome?", "answer en Where is Rome?"),
    ],
)
def test_a_prompt_that_is_almost_one_of_a_task_gets_a_note(prompt: str, plain: str) -> None:
    assert prompt_notes(plain) == ()
    [note] = prompt_notes(prompt)
    assert repr(plain) in note


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("caption en\n", "own prompt is 'caption en'"),
        ("How many frogs?\n", "line break"),
        ("caption en\ncaption de", "line break"),
    ],
)
def test_a_prompt_unlike_those_of_training_gets_a_note(
    mini: paligemma.Predictor, prompt: str, words: str
) -> None:
    [note] = mini.generate(SCENE, prompt, max_new_tokens=2).notes
    assert words in note
    [*notes, no_image] = mini.generate((), prompt, max_new_tokens=2).notes
    assert notes == [note]
    assert "no image" in no_image


def test_a_question_with_a_line_break_gets_a_note(mini: paligemma.Predictor) -> None:
    assert "line break" in mini.ask(SCENE, "How many\nfrogs?", "en").notes[0]
    assert mini.ask(SCENE, "How many frogs?", "en").notes == ()


def test_a_prompt_longer_than_in_training_gets_a_note(mini: paligemma.Predictor) -> None:
    short = replace(mini, text_length=32)
    [note] = short.generate(SCENE, "frog " * 40, max_new_tokens=2).notes
    assert "trained with at most 32" in note
    assert short.generate(SCENE, "caption en", max_new_tokens=2).notes == ()


def test_a_list_of_images_is_no_image(mini: paligemma.Predictor) -> None:
    several: Any = [SCENE, SCENE]
    asks = (
        lambda: mini.caption(several),
        lambda: mini.describe(several),
        lambda: mini.ask(several, "how many?"),
        lambda: mini.ask(several, ["how many?"]),
        lambda: mini.ocr(several),
        lambda: mini.detect(several, "frog"),
        lambda: mini.segment(several, "frog"),
    )
    for ask in asks:
        with pytest.raises(ImageError, match=r"A list of 2 images .* run"):
            ask()


@pytest.mark.parametrize("prompt", ["Describe this image.", "Is it a cat?", "detect ;"])
def test_other_prompts_get_none(prompt: str) -> None:
    assert prompt_notes(prompt) == ()


def test_the_note_comes_with_the_answer(mini: paligemma.Predictor) -> None:
    assert mini.generate(SCENE, "Caption En", max_new_tokens=3).notes == prompt_notes("Caption En")


@pytest.mark.parametrize("language", ["xx", "ja", "zh-TW"])
def test_a_language_that_the_model_lacks_is_refused(
    mini: paligemma.Predictor, language: str
) -> None:
    asks = (
        lambda: mini.caption(SCENE, language),
        lambda: mini.describe(SCENE, language),
        lambda: mini.ask(SCENE, "What is it?", language),
        lambda: mini.question(SCENE, "yes", language),
        lambda: mini.run([(SCENE, CaptionTask(language=language))]),
    )
    for ask in asks:
        with pytest.raises(OptionError, match=f"'{language}' .* knows: en de fr es it pt. Choose"):
            ask()


def test_a_language_in_a_prompt_of_ones_own_gets_a_note(mini: paligemma.Predictor) -> None:
    [note] = mini.generate(SCENE, "caption ja", max_new_tokens=2).notes
    assert "'ja' is not a language of this model" in note
    assert mini.generate(SCENE, "caption de", max_new_tokens=2).notes == ()
    assert mini.generate(SCENE, "answer the question", max_new_tokens=2).notes == ()


def test_of_a_model_whose_languages_are_not_known_the_result_says_so(
    mini: paligemma.Predictor,
) -> None:
    other = replace(mini, languages=None)
    [note] = other.caption(SCENE, "xx", max_new_tokens=2).notes
    assert "not among the 35 languages" in note
    assert "vi zh" in note
    assert other.caption(SCENE, "ja", max_new_tokens=2).notes == ()


def test_a_model_that_may_learn_takes_every_language() -> None:
    learning = paligemma.load("mini", weights=Trainable())
    assert learning.languages is None
    assert paligemma.load("mini").languages == ("en", "de", "fr", "es", "it", "pt")


@pytest.mark.parametrize(
    ("phrase", "plain"),
    [
        *(("Dogs", "dog"), ("an Ox", "ox"), ("boxes", "box"), ("bus", "bus"), ("gas", "gas")),
        *(("pizza slice", "pizza slice"), ("man in the car", "man in the car")),
        *(("all the dogs", "dog"), ("every cat", "cat"), ("all", "all")),
    ],
)
def test_the_plain_form(phrase: str, plain: str) -> None:
    assert plain_form(phrase) == plain


def detections(
    *objects: tuple[str, float, float], phrases: tuple[str, ...], cut: bool = False
) -> Detections:
    return Detections(
        objects=tuple(
            Detection(
                label=label,
                box_xyxy=(0, 0, 10, 10),
                box_normalized_xyxy=(0, 0, 0.1, 0.1),
                score=score,
                existence_score=1.0,
                coordinate_score=score,
                label_score=label_score,
            )
            for label, score, label_score in objects
        ),
        prompt="",
        phrases=phrases,
        problems=(Problem(kind="cut", detail="", token_span=(3, 3)),) if cut else (),
        size_wh=(100, 100),
        stop_reason="length" if cut else "eos",
        text="",
    )


def test_there_is_no_second_look_without_doubts() -> None:
    task = DetectTask.of("cat ; dog")
    sure = detections(("cat", 0.9, 0.9), ("dog", 0.9, 0.9), phrases=task.phrases)
    assert second_look(task, sure) is None
    partial = replace(sure, objects=sure.objects[:1])
    assert second_look(task, partial) is not None
    assert second_look(replace(task, labels="any"), partial) is None
    assert second_look(replace(task, min_objects=2), partial) is None
    many = DetectTask.of([f"thing {number}" for number in range(MAX_PHRASES + 1)])
    assert second_look(many, detections(phrases=many.phrases)) is None
    one = DetectTask.of("cat")
    assert second_look(one, detections(phrases=one.phrases)) is None


def test_a_second_look_keeps_to_max_objects() -> None:
    task = DetectTask(phrases=("cat", "dog"), max_objects=1)
    assert second_look(task, detections(("cat", 0.9, 0.9), phrases=task.phrases)) is None
    cats = detections(("cat", 0.9, 0.9), ("cat", 0.8, 0.9), phrases=("cat",))
    dog = detections(("dog", 0.9, 0.9), phrases=("dog",))
    merged = separately(replace(task, max_objects=2)).merge([cats, dog])
    assert merged.labels == ("cat", "cat")
    assert (merged.is_cut, merged.not_reached) == (True, ("dog",))


@pytest.mark.parametrize("phrase", ["frog and mushroom", "frog / mushroom", "frog & mushroom"])
def test_phrases_that_may_be_several_get_a_note(mini: paligemma.Predictor, phrase: str) -> None:
    for result in (mini.detect(SCENE, phrase), mini.segment(SCENE, phrase, separate=False)):
        assert any("write ';' between them" in note for note in result.notes), result.notes
    assert mini.detect(SCENE, "frog ; mushroom").notes == ()


@pytest.mark.parametrize(
    ("stop", "labels"),
    [
        ("room", ["frog", "frog", "mush"]),
        ("mush", ["frog", "frog", ""]),
        ("og", ["fr"]),
        (";", ["frog"]),
        ("y1 of the third box", ["frog", "frog"]),
        ("nowhere", ["frog", "frog", "mushroom"]),
    ],
)
def test_objects_end_where_the_text_ends(
    mini: paligemma.Predictor, stop: str, labels: list[str]
) -> None:
    prompt = "detect frog ; mushroom"
    if stop.startswith("y1"):
        stop = re.findall(r"<loc\d{4}>", mini.generate(SCENE, prompt).text)[10]
    result = mini.generate(SCENE, prompt, stop=[stop])
    assert [obj.label for obj in result.objects] == labels


def test_the_surer_answer_counts_for_each_phrase() -> None:
    task = DetectTask.of("cat ; dog ; cow")
    first = detections(("cat", 0.9, 0.9), ("dog", 0.2, 0.5), phrases=task.phrases)
    look = second_look(task, first)
    assert look is not None
    assert [t.prompt() for t in look.tasks] == ["detect cat", "detect dog", "detect cow"]
    merged = look.merge(
        [
            detections(("cat", 0.5, 0.9), phrases=("cat",)),
            detections(("dog", 0.8, 0.9), ("dog", 0.7, 0.9), phrases=("dog",)),
            detections(("cow", 0.9, 0.01), phrases=("cow",)),  # something else called a cow
        ]
    )
    assert [(obj.label, obj.score) for obj in merged] == [("cat", 0.9), ("dog", 0.8), ("dog", 0.7)]
    assert merged.missing == ("cow",)


def test_a_list_stays_cut_where_a_phrase_was_cut_again() -> None:
    task = DetectTask.of("cat ; dog")
    look = second_look(task, detections(("cat", 0.9, 0.9), phrases=task.phrases, cut=True))
    assert look is not None
    cat = detections(("cat", 0.9, 0.9), phrases=("cat",))
    dog = detections(("dog", 0.9, 0.9), phrases=("dog",))
    assert not look.merge([cat, dog]).is_cut
    still = look.merge([cat, replace(dog, objects=(), problems=look.first.problems)])  # type: ignore[union-attr]
    assert still.not_reached == ("dog",)


def test_asked_separately_from_the_start_an_unsure_object_stays_marked() -> None:
    look = separately(DetectTask.of("cat ; cow"))
    merged = look.merge(
        [
            detections(("cat", 0.5, 0.9), phrases=("cat",)),
            detections(("cow", 0.01, 0.01), phrases=("cow",)),
        ]
    )
    assert [obj.unsure for obj in merged] == [False, True]
