"""Jobs on this machine, with a worker whose answers are known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paligemma.batch import BatchTask, Job, Journal, OutputOptions, Progress, SourceOptions
from paligemma.batch.job import read_entries
from paligemma.batch.process import WorkerDiedError
from paligemma.batch.status import read_status
from paligemma.errors import CheckpointError, OptionError

SCRIPTED = "tests.batch.scripted:ScriptedWorker"


def make_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(b"x" * (100 + number))


def job(tmp_path: Path, **changes: Any) -> Job:
    base = Job(
        sources=(str(tmp_path / "in"),),
        task=BatchTask(name="read"),  # which needs no torch here
        out=tmp_path / "out",
        model={"model": "scripted"},
        worker=SCRIPTED,
        batch_size=2,
    )
    return replace(base, **changes)


def computed(log: Path) -> list[list[str]]:
    """The keys of each batch that the worker began."""
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def logging(tmp_path: Path, **model: Any) -> tuple[Path, dict[str, Any]]:
    log = tmp_path / "log"
    return log, {"model": "scripted", "log": str(log), **model}


def test_a_job_computes_each_image_once_and_a_second_run_nothing(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 10)
    (tmp_path / "in" / "005.jpg").write_bytes(b"bad")
    log, model = logging(tmp_path)
    reports: list[Progress] = []
    result = job(tmp_path, model=model).run(report=reports.append)
    assert (result.done, result.failed, result.left) == (9, (("005.jpg", "bad"),), 0)
    assert [len(batch) for batch in computed(log)] == [4, 4, 2]
    assert [(r.finished, r.failed, r.total) for r in reports] == [
        (4, 0, 10),
        (8, 1, 10),
        (10, 1, 10),
    ]
    content = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert content.count(b"\n") == 10
    log.unlink()
    assert job(tmp_path, model=model).run() == result
    assert computed(log) == []
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == content


def test_failed_items_are_done_again_only_on_request_or_when_they_change(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 5)
    bad = tmp_path / "in" / "003.jpg"
    bad.write_bytes(b"bad")
    log, model = logging(tmp_path)
    assert job(tmp_path, model=model).run().failed == (("003.jpg", "bad"),)
    log.unlink()
    assert job(tmp_path, model=model, retry_failed=True).run().failed == (("003.jpg", "bad"),)
    assert computed(log) == [["003.jpg"]]
    bad.write_bytes(b"good")
    (tmp_path / "in" / "000.jpg").write_bytes(b"another picture")
    log.unlink()
    result = job(tmp_path, model=model).run()
    assert computed(log) == [["000.jpg", "003.jpg"]]
    assert (result.done, result.failed) == (5, ())
    texts = {e.key: e.result["text"] for e in read_entries(tmp_path / "out") if e.result}
    assert texts["000.jpg"] == "15 bytes"


def test_the_check_of_the_content_ignores_the_time_of_a_file(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 3)
    log, model = logging(tmp_path)
    checked = SourceOptions(check="content")
    job(tmp_path, model=model, source=checked).run()
    os.utime(tmp_path / "in" / "000.jpg", (1, 1))
    (tmp_path / "in" / "001.jpg").write_bytes(b"y" * 101)  # of the same size
    log.unlink()
    job(tmp_path, model=model, source=checked).run()
    assert computed(log) == [["001.jpg"]]
    with pytest.raises(OptionError, match="check was 'content' and is now 'stat'"):
        job(tmp_path, model=model).run()


def write_rows(tmp_path: Path, *rows: dict[str, Any]) -> str:
    table = tmp_path / "in" / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    return str(table)


def test_rows_ask_and_a_changed_question_is_asked_again(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 2)
    (tmp_path / "in" / "001.jpg").write_bytes(b"bad")
    rows = [
        {"image": "000.jpg", "question": "=how?"},
        {"image": "000.jpg", "question": "why?"},
        {"image": "001.jpg", "question": "who?"},
    ]
    log, model = logging(tmp_path)
    outputs = OutputOptions(to=("jsonl", "csv"), sidecar=("json",), sidecar_root=tmp_path / "texts")
    made = job(
        tmp_path,
        sources=(write_rows(tmp_path, *rows),),
        task=BatchTask(name="ask"),
        model=model,
        outputs=outputs,
    )
    result = made.run()
    assert (result.done, result.left, result.failed) == (2, 0, (("001.jpg", "bad"),))
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    assert [(v["image"], v["question"]) for v in values] == [
        ("000.jpg", "=how?"),
        ("000.jpg#question=0002", "why?"),
        ("001.jpg", "who?"),
    ]
    assert values[1]["result"]["text"] == "why? 100 bytes"
    rows_of_csv = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert rows_of_csv[0] == "image,question,text,score,error"
    assert rows_of_csv[1].startswith("000.jpg,'=how?,'=how? 100 bytes,0.5")
    assert rows_of_csv[3] == "001.jpg,who?,,,bad"
    texts = tmp_path / "texts"
    assert json.loads((texts / "000.jpg#question=0002.json").read_text()) == values[1]
    rows[1]["question"] = "what?"
    write_rows(tmp_path, *rows, {"image": "000.jpg", "question": "where?"})
    log.unlink()
    assert made.run().done == 3
    assert computed(log) == [["000.jpg#question=0002", "000.jpg#question=0003"]]


def test_a_killed_job_with_rows_that_ask_has_the_outputs_of_one_that_ran_through(
    tmp_path: Path,
) -> None:
    make_images(tmp_path / "in", 3)
    rows = [{"image": f"00{n % 3}.jpg", "question": f"question {n}?"} for n in range(12)]
    table = write_rows(tmp_path, *rows)
    task = BatchTask(name="ask")
    whole = job(tmp_path, sources=(table,), task=task, out=tmp_path / "whole")
    assert whole.run().done == 12
    reports: list[Progress] = []
    stopped = job(tmp_path, sources=(table,), task=task)
    assert stopped.run(report=reports.append, should_stop=lambda: bool(reports)).left == 4
    assert stopped.run().done == 12
    parts = [
        job(tmp_path, sources=(table,), task=task, out=tmp_path / "parts", batch_size=1)
        for _ in range(2)
    ]
    for number, part in enumerate(parts, start=1):
        replace(part, source=SourceOptions(shard=(number, 2))).run()
    read = [(tmp_path / n / "results.jsonl").read_bytes() for n in ("whole", "out")]
    assert read[0] == read[1]
    assert len((tmp_path / "parts" / "results.jsonl").read_text().splitlines()) == 12


def test_either_the_task_asks_or_all_rows_do(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 2)
    asks, silent = {"image": "000.jpg", "question": "how?"}, {"image": "001.jpg", "prompt": "x"}
    named = {"image": "000.jpg", "names": "cat"}
    for name, text, rows, told in (
        ("ask", None, (asks, silent), r"Line 2 .* has no \"question\", but Line 1 .* has one"),
        ("ask", None, (silent,), r"Line 1 .* has no \"question\"\. Give each row one, or ask"),
        ("ask", "why?", (silent, asks), r"Line 2 .* of its own, 'how\?', and the task has 'why\?'"),
        ("detect", None, (named, silent), r"Line 2 .* has no \"names\", but Line 1"),
        ("detect", "dog", (named,), r"\"names\" of its own, 'cat'"),
    ):
        task = BatchTask(name=name, text=text)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=told):
            job(tmp_path, sources=(write_rows(tmp_path, *rows),), task=task).run()
    with pytest.raises(OptionError, match="ask needs a question"):
        job(tmp_path, sources=(str(tmp_path / "in" / "000.jpg"),), task=BatchTask(name="ask")).run()
    assert not (tmp_path / "out").exists()


def test_one_image_cannot_be_twice_in_a_data_set(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 1)
    rows = ({"image": "000.jpg", "names": "cat"}, {"image": "000.jpg", "names": "dog"})
    made = job(
        tmp_path,
        sources=(write_rows(tmp_path, *rows),),
        task=BatchTask(name="detect"),
        outputs=OutputOptions(to=("coco",)),
    )
    with pytest.raises(OptionError, match=r"Line 1 .* and line 2 .* same image.*one row"):
        made.run()


def test_other_settings_never_mix(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 2)
    job(tmp_path).run()
    for changed, told in (
        ({"task": BatchTask(name="ocr")}, "task was 'read' and is now 'ocr'"),
        ({"task": BatchTask(name="read", language="de")}, "language of the task"),
        ({"model": {"model": "other"}}, "model was 'scripted' and is now 'other'"),
        ({"model": {"model": "scripted", "adapter": "a"}}, "adapter was not set and is now 'a'"),
        ({"source": SourceOptions(shard=(1, 2))}, "started as a whole"),
    ):
        with pytest.raises(OptionError, match=told):
            job(tmp_path, **changed).run()
    assert job(tmp_path, batch_size=7).run().done == 2  # which results do not depend on


def test_a_model_whose_files_have_changed_is_another_one(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 2)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1" * 300_000)
    model = {"model": str(folder)}
    job(tmp_path, model=model).run()
    assert job(tmp_path, model=model).run().done == 2
    (folder / "weights").write_bytes(b"1" * 299_999 + b"2")
    with pytest.raises(OptionError, match="content of model was"):
        job(tmp_path, model=model).run()


def test_an_image_that_kills_the_worker_is_marked_and_the_others_are_done(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 10)
    (tmp_path / "in" / "006.jpg").write_bytes(b"kill")
    log, model = logging(tmp_path)
    said: list[str] = []
    result = job(tmp_path, model=model).run(say=said.append)
    assert result.done == 9
    [(key, error)] = result.failed
    assert key == "006.jpg"
    assert "died twice" in error
    # Nothing else is suspected, and the rest of its batch is computed as if it were not there.
    alone = [batch for batch in computed(log) if len(batch) == 1]
    assert alone == [["006.jpg"], ["006.jpg"]]
    assert ["004.jpg", "005.jpg", "007.jpg"] in computed(log)
    assert any("ended by SIGKILL" in text for text in said)
    log.unlink()
    assert job(tmp_path, model=model).run().done == 9
    assert computed(log) == []


def test_a_batch_that_only_works_one_by_one_keeps_those_results(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 3)
    (tmp_path / "in" / "001.jpg").write_bytes(b"crash")
    log, model = logging(tmp_path)
    said: list[str] = []
    result = job(tmp_path, model=model).run(say=said.append)
    assert (result.done, result.failed) == (3, ())
    assert [len(batch) for batch in computed(log)] == [*([3] * 6), 1, 1, 1]
    assert any("smaller --batch-size" in text for text in said)


def test_a_worker_that_cannot_be_made_says_why_in_the_parent(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 2)
    refusing = {"model": "scripted", "refuse": "The weights are damaged."}
    with pytest.raises(CheckpointError, match=r"^The weights are damaged\.$"):
        job(tmp_path, model=refusing).run()
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        job(tmp_path, model={"model": "scripted", "die": True}).run()
    assert not (tmp_path / "out" / "journal.jsonl").exists()


def test_stopping_finishes_the_running_batch_and_the_next_run_goes_on(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 12)
    log, model = logging(tmp_path)
    reports: list[Progress] = []
    result = job(tmp_path, model=model).run(
        report=reports.append, should_stop=lambda: bool(reports)
    )
    assert (result.done, result.left) == (8, 4)  # the second batch ran while the first was kept
    assert job(tmp_path, model=model).run().done == 12
    assert [len(batch) for batch in computed(log)] == [4, 4, 4]


def test_parts_share_the_outputs_and_belong_together(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 20)
    whole = tmp_path / "whole"
    job(tmp_path, out=whole, batch_size=100).run()
    for number in (2, 1, 3):
        part = job(tmp_path, source=SourceOptions(shard=(number, 3)), batch_size=1)
        part.run()
    keys = [entry.key for entry in read_entries(tmp_path / "out")]
    assert keys == sorted(keys)
    assert len(keys) == len(set(keys)) == 20
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 20
    for shard in (None, (1, 4)):
        with pytest.raises(OptionError, match="in 3 parts"):
            job(tmp_path, source=SourceOptions(shard=shard)).run()
    status = read_status(tmp_path / "out")
    assert (status.done, status.total, status.left, len(status.parts)) == (20, 20, 0, 3)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 2)
    with (
        Journal.open(tmp_path / "out", {"x": 1}),
        pytest.raises(OptionError, match=r"other settings|Another process"),
    ):
        job(tmp_path).run()
    first = job(tmp_path, out=tmp_path / "other")
    first.run()
    with (
        Journal.open(first.folder, Journal.read(first.folder).settings),
        pytest.raises(OptionError, match="Another process is working"),
    ):
        first.run()
    assert read_status(first.folder).running == 0


_RUN = """
import sys
from pathlib import Path
from tests.batch.test_job import job
result = job(Path(sys.argv[1]), model={"model": "scripted", "seconds": 0.01}).run(
    report=lambda progress: print(progress.finished, flush=True))
print("end", result.done)
"""


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
def test_killed_anywhere_the_outputs_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 60)
    undisturbed = job(tmp_path, out=tmp_path / "undisturbed", model={"model": "scripted"})
    undisturbed.run()
    killed = ["worker", "parent", "worker"]
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", _RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            while killed:
                said = parent.stdout.readline()
                [worker] = _children(parent.pid)
                time.sleep(0.02)
                whom = killed.pop()
                os.kill(worker if whom == "worker" else parent.pid, signal.SIGKILL)
                if whom == "parent" or not said:
                    break
            rest = parent.stdout.read()
        if "end 60" in rest:
            break
        _wait_until_gone(worker)
    assert not killed
    for name in ("results.jsonl",):
        ours, theirs = (tmp_path / folder / name for folder in ("out", "undisturbed"))
        assert ours.read_bytes() == theirs.read_bytes()


def _wait_until_gone(pid: int) -> None:
    """The worker ends by itself, however its parent ended."""
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlives its parent")
