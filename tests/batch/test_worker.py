"""BatchWorker, with mini: what every runner shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.batch import BatchTask, BatchWorker
from paligemma.batch.outputs.rows import embedding
from paligemma.errors import OptionError, PromptError


@pytest.fixture(scope="module")
def worker() -> BatchWorker:
    return BatchWorker(
        {"name": "caption", "max_new_tokens": 4}, {"model": "mini", "dtype": "float32"}
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number in range(3):
        path = folder / f"{number}.png"
        Image.fromarray(np.full((40, 50, 3), 90 * number, np.uint8)).save(path)
        made.append({"key": path.name, "image": str(path)})
    (folder / "bad.png").write_bytes(b"bad")
    return [
        *made,
        {"key": "bad", "image": str(folder / "bad.png")},
        {"key": "url", "image": "https://example.com/x.png"},
        {"key": "bytes", "image": (folder / "1.png").read_bytes()},
        {"key": "odd", "image": {"nowhere": 1}},
        {"key": "nothing"},
    ]


def test_each_row_has_its_result_or_its_error_and_none_raises(
    worker: BatchWorker, rows: list[dict[str, Any]]
) -> None:
    answers = worker(rows)
    assert [answer["key"] for answer in answers] == [row["key"] for row in rows]
    errors = {answer["key"]: answer["error"] for answer in answers if answer["error"]}
    assert list(errors) == ["bad", "url", "odd", "nothing"]
    assert "unknown format" in errors["bad"]
    assert "fetching is not allowed" in errors["url"]
    assert errors["nothing"] == "KeyError: 'image'"
    json.dumps(answers, allow_nan=False)
    alone = worker.predictor.caption(rows[1]["image"], max_new_tokens=4)
    assert answers[1]["result"]["text"] == alone.text == answers[5]["result"]["text"]


def test_the_same_rows_give_the_same_results_to_the_last_bit_whatever_came_before(
    worker: BatchWorker, rows: list[dict[str, Any]]
) -> None:
    def results(*given: dict[str, Any], following: list[dict[str, Any]] | None = None) -> list[Any]:
        return [answer["result"] for answer in worker(given, following or [])]

    first = results(*rows[:2], following=rows[2:4])
    results(*rows[2:4])
    results(rows[1])
    assert results(*rows[:2]) == first


def test_a_row_has_a_question_of_its_own_or_its_error(
    worker: BatchWorker, rows: list[dict[str, Any]]
) -> None:
    asking = BatchWorker({"name": "ask", "max_new_tokens": 4}, {"model": "mini"})
    questions = ("how many frogs are there?", None, "", "<image> what?", "what is there?")
    given = [
        {**rows[1], "key": str(number), "question": question}
        for number, question in enumerate(questions)
    ]
    answers = asking(given)
    for number in (0, 4):
        expected = asking.predictor.ask(
            rows[1]["image"], str(questions[number]), "en", max_new_tokens=4
        )
        assert answers[number]["result"]["text"] == expected.text
        assert answers[number]["result"]["question"] == questions[number]
    assert 'has no "question"' in answers[1]["error"]
    assert "at least one word" in answers[2]["error"]
    assert "<image>" in answers[3]["error"]
    told = worker([given[0]])[0]["error"]
    assert told == 'The row has "question", which caption does not take.'


def test_rows_that_name_objects_need_no_model_that_names_its_own(
    rows: list[dict[str, Any]],
) -> None:
    worker = BatchWorker({"name": "detect", "max_new_tokens": 5}, {"model": "mini"}, rows_ask=True)
    named, unnamed = worker([{**rows[0], "names": "frog ; cat"}, rows[1]])
    assert named["result"]["phrases"] == ["frog", "cat"]
    assert "does not say what it was trained on" in unnamed["error"]


def test_a_batch_that_fails_as_a_whole_is_done_row_by_row(
    worker: BatchWorker, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = type(worker.predictor).answer

    def little_memory(self: Any, queries: Any, batch_size: Any = None) -> Any:
        queries = list(queries)
        if len(queries) > 1:
            raise RuntimeError("out of memory")
        if queries[0].images[0]._read.args[0]["key"] == "1.png":
            raise RuntimeError("out of memory, still")
        return answer(self, queries, batch_size)

    monkeypatch.setattr(type(worker.predictor), "answer", little_memory)
    answers = worker(rows[:3])
    assert [bool(a["result"]) for a in answers] == [True, False, True]
    assert answers[1]["error"] == "RuntimeError: out of memory, still"


def test_embeddings_come_back_as_they_were(rows: list[dict[str, Any]]) -> None:
    worker = BatchWorker(BatchTask(name="embed"), {"model": "mini"})
    first, good, bad, last = worker([rows[0], rows[1], rows[3], rows[2]])
    paths = [row["image"] for row in rows[:3]]
    expected = worker.predictor.embed_image(paths, pooled=True)
    for answer, vector in zip((first, good, last), expected, strict=True):
        assert np.array_equal(embedding(answer["result"]), vector)
    assert "unknown format" in bad["error"]


def test_a_task_that_no_image_could_be_asked_is_refused_before_the_first_row() -> None:
    for fields, told in (
        ({"name": "ask", "text": ""}, "at least one word"),
        ({"name": "ask", "language": "tlh!"}, "tlh!"),
        ({"name": "caption", "text": "x"}, "takes no text"),
        ({"name": "extract"}, "needs a schema"),
        ({"name": "ocr", "schema": "invoice"}, "ocr takes no schema"),
        ({"name": "extract", "schema": {"type": "never"}}, "never"),
        ({"name": "sing"}, "The task is 'sing'"),
        ({"name": "caption", "language": "tlh!"}, "tlh!"),
    ):
        with pytest.raises((OptionError, PromptError), match=told):
            BatchTask.of(fields)
    with pytest.raises(OptionError, match="does not say what it was trained on"):
        BatchWorker({"name": "detect"}, {"model": "mini"})


@pytest.mark.parametrize(
    "task",
    [
        BatchTask(name="detect", text="cat ; dog", max_objects=3, separate=False),
        BatchTask(name="ask", text="how many?", language=""),
        BatchTask(name="extract", schema="invoice"),
    ],
)
def test_a_task_survives_json(task: BatchTask) -> None:
    assert BatchTask.of(json.loads(json.dumps(task.to_dict()))) == task


def test_the_worker_says_what_results_depend_on(worker: BatchWorker) -> None:
    info = worker.info()
    assert info["dtype"] == "float32"
    assert set(info) == {"family", "revision", "dtype", "quantization", "resolution", "resize"}
    assert Path(worker.predictor.name) == Path("mini")
