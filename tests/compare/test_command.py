"""`paligemma compare` and `paligemma count-votes`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paligemma.batch.journal import Journal
from paligemma.cli.main import main
from paligemma.compare.contest import _why_it_died


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_a_comparison_is_shown_as_tables_or_as_json(
    labeled: Path, tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    said = tmp_path / "said.jsonl"
    said.write_text('{"id": "line 1", "text": "There is one."}\n')
    arguments = ("compare", labeled, "--limit", 1, "--models", f"mini,{said}", "--out", out)
    code, printed, _ = call(capsys, *arguments)
    assert code == 0
    assert "contains_answer" in printed
    assert "compare.html" in printed
    code, printed, _ = call(capsys, *arguments, "--json")
    assert json.loads(printed)["num_records"] == 1
    assert in_process == ["mini"]


def test_what_failed_ends_with_code_3_and_wrong_usage_with_2(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "said.jsonl"
    said.write_text('{"image": "0.png", "text": "a frog"}\n')
    options = ("--caption", "--models", said, "--out", tmp_path / "out")
    code, _, err = call(capsys, "compare", scenes / "0.png", scenes / "1.png", *options)
    assert code == 3
    assert "1 question has no answer" in err
    for wrong, what in (
        ((scenes / "0.png", "--models", "mini"), "add a question"),
        (("https://a/b.png", "--caption", "--models", "mini"), "Save the image"),
        ((scenes / "none.png", "--caption", "--models", "mini"), "does not exist"),
        ((scenes / "0.png", "--caption", "--models", "openai:x"), "names no address"),
    ):
        code, _, err = call(capsys, "compare", *wrong, "--out", tmp_path / "out")
        assert code == 2, err
        assert what in err


def test_votes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    votes = tmp_path / "votes.json"
    vote = {"record": "r", "first": "a", "second": "b", "choice": "first", "at": "1"}
    votes.write_text(json.dumps({"paligemma_votes": 1, "comparison": "c", "votes": [vote]}))
    assert "100% (21% .. 100%)" in call(capsys, "count-votes", votes)[1]
    [pair] = json.loads(call(capsys, "count-votes", votes, "--json")[1])
    assert (pair["first"], pair["win_rate"]) == ("a", 1.0)


def test_a_dead_process_is_explained() -> None:
    assert "SIGKILL, perhaps because memory ran out" in _why_it_died(-9, "")
    assert _why_it_died(1, "Traceback\nKeyError: 'x'").endswith("with an error: KeyError: 'x'")


def start(scenes: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "paligemma", "compare", str(scenes), "--out", str(out)),
            *("--models", "mini", "--caption", "--ocr", "--ask", "how many?", *options),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _num_answers(out: Path) -> int:
    """Answers in the journal, torn ones too."""
    journals = out.glob("answers/*/journal.jsonl")
    return sum(path.read_bytes().count(b'"key": "question ') for path in journals)


@pytest.mark.slow
def test_kills_at_any_point_lose_and_repeat_nothing(scenes: Path, tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    assert start(scenes, calm).wait() == 0
    out = tmp_path / "out"
    for number in range(20):
        process = start(scenes, out)
        while _num_answers(out) < number * 12 // 20 and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.05 * (number % 4))
        if number % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL)  # the child ends by itself
        process.wait()
        time.sleep(0.0 if number % 2 else 1.5)
        assert list(out.glob("*.unfinished")) == []
    assert start(scenes, out).wait() == 0

    def texts(folder: Path) -> list[str]:
        lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        return [line["answers"]["mini"]["text"] for line in lines]

    assert texts(out) == texts(calm)
    assert len(texts(out)) == 12
    [folder] = (out / "answers").iterdir()
    keys = [
        json.loads(line)["key"]
        for line in (folder / "journal.jsonl").read_text().splitlines()[1:]
        if "question" in line
    ]
    assert len(keys) == len(set(keys)) == 12
    assert len(list(Journal.read(folder).entries())) == 13
