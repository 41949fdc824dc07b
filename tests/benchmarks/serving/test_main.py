"""`python -m benchmarks.serving`: a short load test of a server that it starts itself."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("h11")

from benchmarks.serving import __main__ as serving
from benchmarks.serving import load


@pytest.fixture
def run_serving(run):
    def call(*arguments):
        return run(lambda: serving.measure(serving.parse_arguments(list(map(str, arguments)))))

    return call


def test_a_server_of_its_own_is_measured_and_ended(run_serving, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PALIGEMMA_API_KEYS", "a-key-that-its-own-server-ignores")
    ran = run_serving(
        *("--rates", "4,2", "--seconds", "1", "--images", "2"),
        *("--kinds", "ask,detect", "--bound", "30", "--out", tmp_path / "load.json"),
    )
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "load.json").read_text())
    assert [run["rate"] for run in report["runs"]] == [2, 4]
    assert report["mix"] == {"ask": 4, "detect": 2}
    for run in report["runs"]:
        figures = run["all"]
        assert figures["sent"] == figures["ok"] == sum(k["ok"] for k in run["kinds"].values())
        assert figures["goodput"] == figures["sent"]  # all within the bound, in one second
        assert 0 < figures["latency"]["p50"] <= figures["latency"]["p99"]
    assert report["runs"][-1]["all"]["tokens_per_second"] > 0
    assert "goodput/s" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ftp://somewhere"], "not a server address"),
        (["--rates", "0"], "--rates"),
        (["--rates", "fast"], "--rates"),
        (["--rates", "9999", "--seconds", "1000"], "more than 100000 requests"),
        (["--bound", "0"], "--bound"),
        (["--kinds", "chat"], "Unknown kind of request: 'chat'"),
        (["--out", "/nowhere/at/all.json"], "does not exist"),
    ],
)
def test_wrong_options_are_one_line_on_stderr(run_serving, arguments, message):
    ran = run_serving("--images", "1", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_a_server_that_does_not_answer_is_an_error(run_serving, monkeypatch):
    monkeypatch.setattr(serving, "_READY_SECONDS", 0.2)
    ran = run_serving("http://127.0.0.1:9", "--images", "1")
    assert ran.code == 2
    assert "not ready" in ran.err


@pytest.mark.parametrize("images", [None, 4])
def test_two_rates_share_neither_images_nor_times(images):
    arguments = ["--seconds", "2"] + ([] if images is None else ["--images", str(images)])
    options = serving.parse_arguments(arguments)
    rounds = [serving.round_of(number, 8, load.MIX, options) for number in (1, 2)]
    (first, first_images), (second, second_images) = rounds
    assert not set(first_images) & set(second_images)
    assert len(set(first_images)) == len(first_images)
    assert not {arrival.due for arrival in first} & {arrival.due for arrival in second}
    if images is None:  # no image is sent twice
        assert [arrival.image for arrival in first] == list(range(len(first_images)))


def test_many_images_all_differ(monkeypatch):
    monkeypatch.setattr(load, "_SCENES", 3)
    images = load.draw_images(9, seed=0)
    assert len(set(images)) == 9
    assert not set(images) & set(load.draw_images(9, seed=0, series=1))
