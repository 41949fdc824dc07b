"""`paligemma bench` on the smallest shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from paligemma.bench import measure as benchmark
from paligemma.cli import bench


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Model, weights and repetitions of each benchmark that would have run."""
    calls: list[tuple[str, str, int]] = []

    def measure(model: str, weights: str, *, repeat: int, progress: Any) -> dict[str, Any]:
        calls.append((model, weights, repeat))
        return {
            "stages": {"prefill": {"seconds": 0.5, "samples": [0.5], "share": 0.25}},
            "tokens_per_second": {"1": 6.0, "8": 30.0},
            "peak_memory_bytes": 3_000_000_000,
            "machine": {
                "processor": "a processor",
                "cores": 2,
                "memory_bytes": 8e9,
                "instructions": ["avx2"],
                "packages": {"torch": "2.13"},
                "python": "3.11",
                "date": "2026-01-01",
            },
            "limits": {"read_bandwidth": 3e10, "matrix_peak": 6e12, "measured_by": "native"},
        }

    monkeypatch.setattr(benchmark, "measure", measure)
    return calls


def test_mini_is_measured_stage_by_stage(run, monkeypatch):
    monkeypatch.setattr(benchmark, "_SHORT_SECONDS", 0.01)
    ran = run("bench", "--model", "mini", "--weights", "float32", "--repeat", "1", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert list(report["stages"]) == [
        *("preprocess", "image encoder", "prefill", "first token"),
        *("decode step", "decode step, 8 rows"),
    ]
    assert all(0 < figures["seconds"] < 60 for figures in report["stages"].values())
    assert all(figures["share"] is None for figures in report["stages"].values())
    assert report["tokens_per_second"]["8"] > report["tokens_per_second"]["1"] > 0
    assert report["peak_memory_bytes"] > 10**8
    assert report["limits"]["read_bandwidth"] > 1e8


def test_it_shows_a_table_and_writes_the_report(run, measured, tmp_path):
    ran = run("bench", "--model", "mini", "--out", tmp_path / "report.json")
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["prefill", "500", "ms", "25%"] in rows
    assert "tokens per second: 6 for 1 row, 30 for 8 rows" in ran.out
    assert "30.0 GB/s" in ran.out
    assert json.loads((tmp_path / "report.json").read_text())["peak_memory_bytes"] == 3e9


def test_it_measures_the_3b_if_there_is_room_and_mini_otherwise(run, measured, monkeypatch):
    for free, expected in ((10 * 10**9, "paligemma2-3b-224"), (5 * 10**9, "mini")):
        monkeypatch.setattr(bench, "machine_memory", lambda free=free: (free, free))
        assert run("bench").code == 0
        assert measured[-1] == (expected, "bfloat16", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "gemma"), "Unknown shape 'gemma'"),
        (("--model", "paligemma2-28b-224"), "needs about"),
        (("--weights", "int2"), "weights is 'int2'"),
        (("--repeat", "0"), "--repeat"),
        (("--out", "/nowhere/at/all.json"), "does not exist"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    run, measured, monkeypatch, arguments, message
):
    monkeypatch.setattr(bench, "machine_memory", lambda: (20 * 10**9, 20 * 10**9))
    ran = run("bench", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert measured == []
