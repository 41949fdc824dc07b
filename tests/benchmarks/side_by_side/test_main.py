"""`python -m benchmarks.side_by_side`, with real processes on the smallest shape."""

from __future__ import annotations

import json

import pytest

from benchmarks.side_by_side import __main__ as side_by_side
from benchmarks.side_by_side import harness
from paligemma.bench.limits import Limits


@pytest.fixture
def run_comparison(run):
    def call(*arguments):
        options = side_by_side.parse_arguments(list(map(str, arguments)))
        return run(lambda: side_by_side.compare(options))

    return call


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[harness.Plan]:
    """The plans that would have run."""
    plans: list[harness.Plan] = []

    def measure(plan: harness.Plan, **options: object) -> harness.Measurements:
        plans.append(plan)
        return harness.Measurements(
            samples={(0, name, "vision"): [0.5] for name in plan.runners},
            limits=[Limits(read_bandwidth=3e10, matrix_peak=6e12)],
        )

    monkeypatch.setattr(harness, "measure", measure)
    return plans


def test_a_small_model_is_measured_in_processes_of_its_own(run_comparison, tmp_path):
    ran = run_comparison(
        *("--model", "mini", "--runners", "ours-plain", "--stages", "vision,batch-2"),
        *("--repeat", "1", "--out", tmp_path / "report.json"),
    )
    assert ran.code == 0, ran.err
    assert "ours-plain" in ran.out
    report = json.loads((tmp_path / "report.json").read_text())
    figures = {figure["metric"]: figure for figure in report["figures"]}
    assert figures.keys() == {"vision", "batch-2"}
    assert all(0 < figure["seconds"] < 60 for figure in figures.values())
    assert report["limits"]["read_bandwidth"] > 1e8
    assert report["peak_bytes"]["ours-plain"] > 10**8
    assert all("not installed" in note for note in report["notes"])


def test_it_measures_the_3b_if_there_is_room_and_mini_otherwise(run_comparison, plans, monkeypatch):
    for free, expected in ((20 * 10**9, "paligemma2-3b-224"), (8 * 10**9, "mini")):
        monkeypatch.setattr(side_by_side, "machine_memory", lambda free=free: (free, free))
        assert run_comparison().code == 0
        assert plans[-1].model == expected


@pytest.mark.parametrize(("installed", "first"), [(True, "transformers"), (False, "ours-bf16")])
def test_transformers_takes_part_if_it_is_installed(
    run_comparison, plans, monkeypatch, installed, first
):
    specs = {"transformers": object()} if installed else {}
    monkeypatch.setattr(side_by_side, "find_spec", specs.get)
    ran = run_comparison("--model", "mini")
    assert plans[0].runners[0] == first
    assert plans[0].runners[-3:] == ("ours-bf16", "ours-int8", "ours-int4")
    assert ("transformers: not installed" in ran.out) == (not installed)


def test_quick_means_fewer_stages_and_samples(run_comparison, plans):
    run_comparison("--model", "mini", "--quick")
    ran = run_comparison("--model", "mini", "--json")
    quick, main = plans
    assert quick.repeat < main.repeat
    assert len(quick.stages) < len(main.stages)
    assert ran.report["model"] == "mini"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "gemma"), "Unknown shape 'gemma'"),
        (("--stages", "lunch"), "Unknown stage 'lunch'"),
        (("--runners", "theirs"), "Unknown runner 'theirs'"),
        (("--repeat", "0"), "repeat is 0"),
        (("--out", "/nowhere/at/all.json"), "does not exist"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    run_comparison, plans, arguments, message
):
    ran = run_comparison(*arguments)
    assert ran.code == 2
    assert message in ran.err
    assert plans == []
