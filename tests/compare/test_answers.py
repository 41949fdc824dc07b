"""Recorded answers, agreement of answers, votes, and metrics of free answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from paligemma.compare import count_votes
from paligemma.compare.agreement import box_similarity, majority_of, similarity
from paligemma.compare.chat import chat_prompt
from paligemma.compare.options import CompareOptions
from paligemma.compare.questions import Questions, read_questions
from paligemma.compare.recorded import read_recorded
from paligemma.data.record import Record
from paligemma.errors import DataError, OptionError
from paligemma.evals import ContainsAnswer, FoundObject, NormalizedMatch, Prediction


def said(text: str, record_id: str = "1") -> Prediction:
    return Prediction(
        record_id=record_id,
        task="answer",
        prefix="answer en how many?",
        text=text,
        score=1.0,
        size_wh=(100, 50),
        stop_reason="eos",
    )


def box(label: str, *edges: float) -> FoundObject:
    return FoundObject(label=label, box_xyxy=edges, score=1.0)  # type: ignore[arg-type]


@pytest.fixture
def questions(scenes: Path) -> Questions:
    options = CompareOptions(ask=("how many?",), detect="frog")
    return read_questions([str(scenes / "0.png")], options)


def read(lines: list[object], questions: Questions, folder: Path) -> dict[str, Prediction]:
    path = folder / "recorded.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = {record.record_id: (100, 50) for record in questions.data.records}
    return {key: r.prediction for key, (r, _) in read_recorded(path, questions, sizes).items()}


def test_recorded_answers_are_found_by_id_or_by_image_and_question(
    questions: Questions, tmp_path: Path
) -> None:
    first, second = (record.record_id for record in questions.data.records)
    objects = [{"label": "frog", "box_xyxy": [1, 2, 30, 40], "score": 0.5}]
    by_id = read([{"id": first, "text": " two "}, {"id": "other", "text": ""}], questions, tmp_path)
    assert by_id[first].text == "two"
    by_image = read(
        [
            {"image": "0.png", "question": "how many?", "text": "two"},
            {"image": "0.png", "prefix": "detect frog", "objects": objects},
        ],
        questions,
        tmp_path,
    )
    assert by_image[first].text == "two"
    assert by_image[second].objects == (
        box("frog", 1, 2, 30, 40).__class__(label="frog", box_xyxy=(1, 2, 30, 40), score=0.5),
    )


def test_what_the_command_line_writes_is_a_recorded_answer(
    questions: Questions, tmp_path: Path
) -> None:
    line = {"image": "0.png", "task": "detect", "prefix": "detect frog", "model": "m"}
    found = read(
        [
            {
                **line,
                "result": {"text": "x", "objects": [{"label": "a", "box_xyxy": [0, 0, 1, 1]}]},
            },
            {"image": "0.png", "error": "broken"},
            {"image": "0.png", "model": "m", "result": {"text": "2", "question": "how many?"}},
        ],
        questions,
        tmp_path,
    )
    answer, prediction = sorted(found.values(), key=lambda each: each.task)
    assert answer.text == "2"
    assert prediction.objects[0].label == "a"


TWO = {"image": "0.png", "question": "how many?", "text": "2"}
FROG = {"image": "0.png", "prefix": "detect frog"}
BOX = {"label": "frog", "box_xyxy": [0, 0, 9, 9]}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"text": "two"}], 'neither "id" nor "image"'),
        ([{"image": "0.png", "text": "two"}], 'Add the "prefix"'),
        ([{"image": "0.png", "question": "how many?", "text": 2}], '"text" must be a text'),
        ([{"image": "9.png", "text": "two"}], "no answer to any of the questions"),
        ([["two"]], "no JSON object"),
        (
            [{"image": "0.png", "prefix": "detect frog", "objects": [{"label": "a"}]}],
            "needs label, box_xyxy",
        ),
        ([{"image": "0.png", "question": "how many?", "text": "2"}] * 2, "second answer"),
        ([{**TWO, "seconds": float("nan")}], '"seconds" is .nan.; expected a number from 0'),
        ([{**TWO, "seconds": 10**400}], '"seconds" is '),
        ([{**TWO, "seconds": True}], '"seconds" is '),
        ([{**TWO, "score": float("inf")}], '"score" is .inf.; expected a number from 0 to 1'),
        ([{**FROG, "objects": [{**BOX, "box_xyxy": [0, 0, math.inf, 9]}]}], "box with an area"),
        ([{**FROG, "objects": [{**BOX, "box_xyxy": [0, 0, 10**400, 9]}]}], "needs label"),
        ([{**FROG, "objects": [{**BOX, "score": math.nan}]}], "number from 0 to 1"),
        ([{**FROG, "objects": [{**BOX, "mask": 5}]}], "mask in run lengths"),
    ],
)
def test_lines_that_are_no_answers_are_told_by_number(
    questions: Questions, tmp_path: Path, lines: list[object], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        read(lines, questions, tmp_path)


def test_texts_agree_after_number_words_articles_and_punctuation() -> None:
    assert similarity(said("Three."), said("3")) == 1.0
    assert similarity(said("the red one"), said("red 1")) == 1.0
    assert similarity(said("cat"), said("dog")) == 0.0


def test_boxes_agree_by_the_overlap_of_each_label() -> None:
    two = (box("a", 0, 0, 10, 10), box("b", 20, 0, 30, 10))
    assert box_similarity(two, two[::-1]) == 1.0
    assert box_similarity((), ()) == 1.0
    assert box_similarity(two, ()) == 0.0
    assert box_similarity(two, two[:1]) == 0.5
    assert box_similarity((box("a", 0, 0, 10, 10),), (box("a", 0, 0, 10, 20),)) == 0.5
    assert box_similarity((box("a", 0, 0, 10, 10),), (box("c", 0, 0, 10, 10),)) == 0.0


def test_a_tie_has_no_majority() -> None:
    majority = majority_of([said("1"), said("two")])
    assert majority is not None
    assert majority.text is None
    assert majority_of([replace(said("1"), task="detect")]) is None


def test_answers_in_sentences_are_scored_by_what_they_contain() -> None:
    answers = ["There are twelve frogs.", "12", "112", "a T-shirt", ""]
    truth = ["12", "twelve", "12", "t shirt", "1"]
    assert ContainsAnswer().score(answers, truth).per_example == (1, 1, 0, 1, 0)
    assert NormalizedMatch().score(answers, truth).per_example == (0, 1, 0, 1, 0)


def test_chat_models_are_asked_in_sentences() -> None:
    record = Record(record_id="1", image=Path("a.png"), prefix="answer en how many?")
    assert chat_prompt(record, "answer") == "how many? Answer with one word or number."
    caption = replace(record, prefix="caption de")
    assert "language with the code de" in chat_prompt(caption, "caption")
    assert "frog, key" in chat_prompt(replace(record, prefix="detect frog ; key"), "detect")
    assert chat_prompt(replace(record, prefix="Tell a joke."), "generate") == "Tell a joke."
    with pytest.raises(OptionError, match="not asked to segment"):
        chat_prompt(replace(record, prefix="segment frog"), "segment")


def ballot(*votes: tuple[str, str, str, str], comparison: str = "c") -> str:
    lines = [
        {"record": record, "first": first, "second": second, "choice": choice, "at": str(number)}
        for number, (record, first, second, choice) in enumerate(votes)
    ]
    return json.dumps({"paligemma_votes": 1, "comparison": comparison, "votes": lines})


def test_a_name_that_stands_twice_in_a_line_is_told(questions: Questions, tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    path.write_text('{"image": "0.png", "question": "how many?", "text": "2", "text": "3"}\n')
    with pytest.raises(DataError, match="is not JSON: a name is in it twice"):
        read_recorded(path, questions, {})


def test_votes_are_counted_once_in_either_order(tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    one.write_text(
        ballot(("r", "a", "b", "first"), ("s", "b", "a", "first"), ("t", "a", "b", "both"))
    )
    two.write_text(one.read_text())
    [pair] = count_votes([one, two])
    assert (pair.first_better, pair.second_better, pair.both, pair.neither) == (1, 1, 1, 0)
    assert pair.win_rate == 0.5
    assert pair.interval is not None
    assert pair.interval.low == pytest.approx(1 - pair.interval.high)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"paligemma_votes": 1}',
        '{"paligemma_votes": 1, "votes": [], "comparison": NaN}',
        ballot(("r", "a", "a", "first")),
    ],
)
def test_files_that_hold_no_votes_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "votes.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"not a file of votes|not one that the page saves"):
        count_votes([path])


def test_votes_on_two_comparisons_are_not_added_up(tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    one.write_text(ballot())
    two.write_text(ballot(comparison="d"))
    with pytest.raises(DataError, match="another comparison"):
        count_votes([one, two])
