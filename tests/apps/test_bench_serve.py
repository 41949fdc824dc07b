"""`paligemma bench serve`: a short load on a whole server of its own."""

from __future__ import annotations

import json

import pytest


def test_a_server_of_its_own_is_measured_and_ended(run, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PALIGEMMA_API_KEYS", "a-key-that-its-own-server-ignores")
    ran = run(
        *("bench", "serve", "--rates", "4,2", "--seconds", "1", "--pictures", "2"),
        *("--kinds", "ask,detect", "--bound", "30", "--json", tmp_path / "load.json"),
    )
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "load.json").read_text())
    assert [one["rate"] for one in report["runs"]] == [2, 4]
    assert report["mix"] == {"ask": 4, "detect": 2}
    for one in report["runs"]:
        numbers = one["all"]
        assert numbers["sent"] == numbers["ok"] == sum(k["ok"] for k in one["kinds"].values())
        assert numbers["goodput"] == numbers["sent"]  # all within the bound, in one second
        assert 0 < numbers["latency"]["p50"] <= numbers["latency"]["p99"]
    assert report["runs"][-1]["all"]["tokens_per_second"] > 0
    assert "goodput/s" in ran.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ftp://somewhere"], "no server's address"),
        (["--rates", "0"], "--rates"),
        (["--rates", "fast"], "--rates"),
        (["--rates", "9999", "--seconds", "1000"], "requests"),
        (["--kinds", "chat"], "no kind 'chat'"),
        (["--json", "/nowhere/at/all.json"], "no folder"),
    ],
)
def test_what_makes_no_sense_is_one_line_on_stderr(run, arguments, words):
    ran = run("bench", "serve", "--pictures", "1", *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert ran.err.count("\n") == 1


def test_a_server_that_is_not_there_is_said(run, monkeypatch):
    monkeypatch.setattr("paligemma.cli.bench_serve._READY_SECONDS", 0.2)
    ran = run("bench", "serve", "http://127.0.0.1:9", "--pictures", "1")
    assert ran.code == 1
    assert "not ready" in ran.err
