"""Papers: the truth they tell must be the truth of the picture, and of the questions about them."""

from __future__ import annotations

import datetime
import json
import random
import re
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mini.dense import IGNORE, NONE, WORD, dense_targets
from mini.paper import PAPER_KINDS, Paper, make_page, make_paper, training_papers
from mini.paper_examples import (
    QUESTIONS,
    UNANSWERABLE,
    draw_paper_example,
    form_questions,
    paper_questions,
)
from mini.paper_files import main
from mini.scene import RESOLUTION
from paligemma.errors import OptionError


@pytest.fixture(scope="module")
def papers() -> list[Paper]:
    return [make_paper("test", 3, index, kind) for index in range(40) for kind in PAPER_KINDS]


def _fields(paper: Paper) -> dict[str, str]:
    return {field.path: field.value for field in paper.fields}


def test_same_arguments_give_the_same_paper_and_image() -> None:
    first, second = (make_paper("test", 1, 7) for _ in range(2))
    assert first == second
    assert np.array_equal(first.draw(128), second.draw(128))
    assert make_paper("train", 1, 7) != first


@pytest.mark.parametrize(("split", "seed", "index"), [("val", 0, 0), ("test", -1, 0)])
def test_a_paper_that_does_not_exist_is_refused(split: str, seed: int, index: int) -> None:
    with pytest.raises(OptionError, match="There is no paper"):
        make_paper(split, seed, index)  # type: ignore[arg-type]


def test_words_lie_inside_the_image_and_apart(papers: list[Paper]) -> None:
    for paper in papers:
        boxes = [word.box_xyxy for word in paper.words]
        assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in boxes)
        for line, below in pairwise(paper.lines):
            assert max(w.box_xyxy[3] for w in line) < min(w.box_xyxy[1] for w in below)
        for line in paper.lines:
            for left, right in pairwise(line):
                assert left.box_xyxy[2] < right.box_xyxy[0]


def test_ink_is_where_a_field_is(papers: list[Paper]) -> None:
    for paper in papers[:20]:
        image = paper.draw(RESOLUTION).astype(int)
        for field in paper.fields:
            x0, y0, x1, y1 = (round(edge * RESOLUTION) for edge in field.box_xyxy)
            ink = np.abs(image[y0:y1, x0:x1] - np.array(paper.color)).sum(-1) > 150
            # The box is as tight as whole pixels allow.
            edges = (ink[:, :3], ink[:, -3:], ink[:3], ink[-3:])
            assert all(edge.any() for edge in edges)


def test_fields_are_printed_and_of_their_schema(papers: list[Paper]) -> None:
    for paper in papers:
        for path, value in _fields(paper).items():
            assert value in paper.text
            if path.endswith(("date", "_birth", "_expiry")):
                datetime.date.fromisoformat(value)
            assert re.sub(r"\[[0-9]\]", "", path) in QUESTIONS[paper.kind]


def test_sums_add_up(papers: list[Paper]) -> None:
    for paper in papers:
        fields = _fields(paper)
        if paper.kind in ("invoice", "receipt"):
            items = [v for path, v in fields.items() if path.endswith((".amount", ".price"))]
            parts = [*items, fields.get("tax", "0")]
            assert sum(map(Decimal, parts)) == Decimal(fields["total"])


def test_questions_are_answered_by_what_is_printed(papers: list[Paper]) -> None:
    for paper in papers:
        for question in paper_questions(paper) + form_questions(paper):
            printed = " ".join(word.text for word in question.words)
            expected = UNANSWERABLE if not question.words else printed
            assert question.answer.replace(",", "") == expected
            assert all("{" not in wording for wording in question.wordings)


def test_questions_about_an_item_are_answered_by_its_line() -> None:
    paper = next(
        paper
        for index in range(20)
        if "medicines[1].dose" in _fields(paper := make_paper("test", 3, index, "prescription"))
    )
    fields = _fields(paper)
    asked = {wording: q.answer for q in paper_questions(paper) for wording in q.wordings}
    name = fields["medicines[1].name"]
    assert asked[f"What is the dose of {name}?"] == fields["medicines[1].dose"]
    both = f"{fields['medicines[0].name']}, {name}"
    assert asked["Which medicines are mentioned in the prescription?"].startswith(both)


def test_examples_are_true_of_the_paper() -> None:
    rng = random.Random(0)
    suffixes = []
    for paper in training_papers(2, 0, 300):
        example = draw_paper_example(paper, rng)
        suffixes.append(example.suffix)
        if example.prefix == "ocr":
            assert example.suffix == paper.text
        elif example.suffix not in ("", UNANSWERABLE):
            letters = re.sub(r"<loc[0-9]+>|[ ,;]", "", example.suffix)
            assert letters == "".join(word.text for word in example.words)
    assert 0.05 < suffixes.count(UNANSWERABLE) / len(suffixes) < 0.2
    assert "" in suffixes


def test_parts_of_papers_are_asked_about_what_they_miss() -> None:
    whole, part = (make_paper("train", 2, 5, "invoice", is_part=cut) for cut in (False, True))
    assert len(part.lines) < len(whole.lines) or part.text == whole.text


def test_patches_know_letters_and_no_dates() -> None:
    paper = make_paper("train", 0, 2, "id-card")
    targets = dense_targets([paper], grid=32)
    assert set(targets.kinds.unique().tolist()) == {NONE, WORD}
    date = next(field for field in paper.fields if field.path == "date_of_birth")
    x0, y0, x1, y1 = (edge * 32 for edge in date.box_xyxy)
    patch = int((y0 + y1) / 2) * 32 + int((x0 + x1) / 2)
    assert targets.kinds[0, patch] == WORD
    assert (targets.letters[0, patch] == IGNORE).all()


def test_a_page_is_its_parts() -> None:
    page = make_page("test", 7, 0, "invoice")
    image = page.draw(100)
    assert image.shape == (200, 200, 3)
    assert np.array_equal(image[100:, :100], page.parts[1][0].draw(100))
    corner = page.parts[1][1].fields[-1]
    (field,) = (field for field in page.fields if field.path == corner.path)
    assert field.box_xyxy == tuple(edge + 1 for edge in corner.box_xyxy)
    assert "total" in {field.path for field in page.fields}


def test_the_command_writes_an_image_or_a_pdf(tmp_path: Path) -> None:
    image, pdf, truth = tmp_path / "a.png", tmp_path / "a.pdf", tmp_path / "a.json"
    main([str(image), str(truth), "--kind", "receipt", "--seed", "5"])
    (page,) = json.loads(truth.read_text())["pages"]
    paper = make_paper("test", 5, 0, "receipt")
    assert np.array_equal(np.asarray(Image.open(image)), paper.draw(RESOLUTION))
    assert page["text"] == paper.text
    assert page["fields"][0]["box_xyxy"][0] == round(paper.fields[0].box_xyxy[0] * RESOLUTION, 2)
    main([str(pdf), str(truth), "--pages", "3", "--long"])
    assert len(json.loads(truth.read_text())["pages"]) == 3
    assert pdf.read_bytes().startswith(b"%PDF")


def test_several_pages_need_a_pdf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a.png"), str(tmp_path / "a.json"), "--pages", "2"])
    assert "cannot have 2 pages" in capsys.readouterr().err
