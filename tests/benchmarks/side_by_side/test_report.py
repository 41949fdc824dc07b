"""From samples to ratios and tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.side_by_side import plot, report
from benchmarks.side_by_side.harness import Measurements, Plan
from benchmarks.side_by_side.stages import choose_stages
from paligemma.bench.limits import Limits
from paligemma.errors import OptionError

PLAN = Plan(
    model="paligemma2-3b-224",
    runners=("transformers", "transformers-frozen", "ours-bf16", "ours-int8"),
    stages=choose_stages(["image", "answer", "batch-8"]),
    repeat=3,
)


@pytest.fixture
def built() -> dict[str, Any]:
    limits = [
        Limits(read_bandwidth=bandwidth, matrix_peak=6e12) for bandwidth in (3e10, 2.63e10, 1e9)
    ]
    found = Measurements(
        samples={
            (0, "transformers", "image"): [0.004, 0.004],
            (0, "ours-bf16", "image"): [0.002],
            (0, "transformers", "first token"): [8.0, 8.2, 20.0],
            (0, "transformers-frozen", "first token"): [20.0],
            (0, "ours-bf16", "first token"): [0.8, 1.0, 1.2],
            (0, "transformers", "decode step"): [0.34],
            (0, "ours-bf16", "decode step"): [0.25],
            (1, "transformers", "decode step"): [0.40],
            (1, "ours-int8", "decode step"): [0.16],
            (0, "transformers", "batch-8"): [0.8],
            (0, "ours-bf16", "batch-8"): [0.4],
        },
        peak_bytes={"transformers": 9_000_000_000, "ours-bf16": 6_500_000_000},
        limits=limits,
        limits_measured_by="native",
        notes=["something was left out"],
    )
    return report.build_report(PLAN, found)


def figure(built: dict[str, Any], runner: str, metric: str, group: int = 0) -> dict[str, Any]:
    (found,) = (
        f
        for f in built["figures"]
        if (f["runner"], f["metric"], f["group"]) == (runner, metric, group)
    )
    return found


def test_medians_are_compared_within_a_group(built):
    assert figure(built, "transformers", "first token")["seconds"] == 8.2
    assert figure(built, "ours-bf16", "first token")["speedup"] == pytest.approx(8.2)
    assert figure(built, "ours-int8", "decode step", 1)["speedup"] == pytest.approx(2.5)
    assert figure(built, "transformers", "decode step", 1)["speedup"] == 1


def test_shares_are_of_the_median_limits_of_the_run(built):
    assert built["limits"]["read_bandwidth"] == 2.63e10
    assert figure(built, "ours-bf16", "decode step")["share"] == pytest.approx(0.8, abs=0.01)
    assert figure(built, "ours-bf16", "image")["share"] is None


def test_small_models_have_no_shares():
    small = Plan(model="mini", runners=("ours-plain",), stages=PLAN.stages, repeat=1)
    found = Measurements(
        samples={(0, "ours-plain", "decode step"): [0.01]},
        limits=[Limits(read_bandwidth=1e10, matrix_peak=1e12)],
    )
    (only,) = report.build_report(small, found)["figures"]
    assert only["share"] is None


def test_a_table_has_a_row_a_metric_and_a_column_a_runner(built):
    headings, rows = report.table(built)
    assert headings == ["", *PLAN.runners]
    assert rows[0] == ["image", "4.0 ms", "", "2.0 ms  2.00x", ""]
    assert rows[2][0] == "decode step"
    assert rows[2][1].startswith("340 ms  59%")
    assert rows[2][4].startswith("160 ms  2.50x  6")
    assert rows[-1] == ["peak memory", "9.0 GB", "", "6.5 GB", ""]


def test_the_ratios_are_said_in_words(built):
    lines = list(report.headlines(built))
    assert lines[0] == (
        "first token: ours-bf16 is 8.2 times as fast as transformers "
        "(20.0 times as fast as with frozen weights)"
    )
    assert "decode step: ours-int8 is 2.5 times as fast as transformers" in lines
    assert "8 rows: ours-bf16 gives 20.0 tokens per second, 5.0 times the rate of one row" in lines
    assert any("26.3 GB/s memory reads, 6.00 TFLOP/s" in line for line in lines)
    assert lines[-1] == "something was left out"


def test_a_stored_report_gives_the_same_markdown(built):
    text = report.markdown(json.loads(json.dumps(built)))
    assert text == report.markdown(built)
    first, second, *_ = text.splitlines()
    assert first == "|  | transformers | transformers-frozen | ours-bf16 | ours-int8 |"
    assert second == "| --- | --- | --- | --- | --- |"
    assert "paligemma2-3b-224. " in text


def test_a_report_without_figures_is_still_a_report():
    empty = report.build_report(PLAN, Measurements(notes=["nothing fits"]))
    assert report.table(empty) == (["", *[]], [])
    assert list(report.headlines(empty))[-1] == "nothing fits"


def test_the_ratios_are_drawn(built, tmp_path):
    pytest.importorskip("matplotlib")
    plot.draw(built, tmp_path / "ratios.svg")
    drawn = (tmp_path / "ratios.svg").read_text()
    assert drawn.lstrip().startswith("<?xml")
    with pytest.raises(OptionError, match="Cannot write the plot"):
        plot.draw(built, tmp_path / "ratios.nonsense")


def test_without_ratios_there_is_nothing_to_draw(built, tmp_path):
    pytest.importorskip("matplotlib")
    built["figures"] = [f for f in built["figures"] if f["runner"] == "transformers"]
    with pytest.raises(OptionError, match="Nothing to plot"):
        plot.draw(built, tmp_path / "ratios.png")
