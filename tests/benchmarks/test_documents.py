"""The benchmark of documents: papers with their whole truth, read by a model that knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.documents import _papers
from mini.paper import PAPER_KINDS, PaperKind, make_paper
from mini.paper_examples import paper_questions
from paligemma.documents import open_document
from paligemma.evals import evaluate_fields
from tests.documents.scripted import ScriptedModel

for package in ("pypdfium2", "pydantic", "llguidance", "rapidfuzz"):
    pytest.importorskip(package)


@pytest.mark.parametrize("kind", PAPER_KINDS)
def test_a_model_that_knows_a_paper_is_right_in_every_field(
    kind: PaperKind, tmp_path: Path
) -> None:
    paper = make_paper("test", 7, 0, kind)
    answers = {
        wording: question.answer
        for question in paper_questions(paper)
        for wording in question.wordings
    }
    asked: list[str] = []

    def reply(prompt: str, image: Any) -> str:
        question = prompt.removeprefix("answer en ")
        if prompt == "ocr":
            return paper.text
        if not prompt.startswith("detect"):
            asked.append(question)
        return answers.get(question, "unanswerable")

    [record] = _papers(kind, 1, 7)
    found = evaluate_fields(ScriptedModel(reply=reply, probability=0.999), [record], kind, tmp_path)
    assert found.total is not None
    wrong = {score.path: score.exact for score in found.fields if score.exact < 1}
    assert (wrong, found.total.exact) == ({}, 1.0)
    assert found.total.coverage is not None
    # All questions are in the words that mini is trained with, but for what its papers never have.
    assert set(asked) - answers.keys() <= {"What is the machine-readable zone?"}


def test_long_pdf_files_repeat_their_papers(tmp_path: Path) -> None:
    from benchmarks.documents import _pdf_of_papers

    with open_document(_pdf_of_papers(tmp_path, 2, "receipt", 5)) as document:
        assert document.num_pages == 5
        assert document.pages[4].size_wh == document.pages[0].size_wh
