"""`paligemma bench`, with real processes on the smallest shape."""

from __future__ import annotations

import json

import pytest

from paligemma.bench import harness
from paligemma.bench.limits import Limits
from paligemma.cli import bench


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[harness.Plan]:
    """The plans that would have been carried out."""
    found: list[harness.Plan] = []

    def measure(plan: harness.Plan, **options: object) -> harness.Measurements:
        found.append(plan)
        return harness.Measurements(
            samples={(0, name, "vision"): [0.5] for name in plan.runners},
            limits=[Limits(read_bandwidth=3e10, matrix_peak=6e12)],
        )

    monkeypatch.setattr(harness, "measure", measure)
    return found


def test_a_small_model_is_measured_in_processes_of_its_own(run, tmp_path):
    ran = run(
        *("bench", "--model", "mini", "--runners", "ours-plain", "--stages", "vision,batch-2"),
        *("--repeat", "1", "--json", tmp_path / "report.json"),
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


def test_it_measures_the_3b_where_there_is_room_and_mini_elsewhere(run, plans, monkeypatch):
    for free, expected in ((20 * 10**9, "paligemma2-3b-224"), (8 * 10**9, "mini")):
        monkeypatch.setattr(bench, "machine_memory", lambda free=free: (free, free))
        assert run("bench").code == 0
        assert plans[-1].model == expected


@pytest.mark.parametrize(("installed", "first"), [(True, "transformers"), (False, "ours-bf16")])
def test_transformers_takes_part_where_it_is_installed(run, plans, monkeypatch, installed, first):
    found = {"transformers": object()} if installed else {}
    monkeypatch.setattr(bench, "find_spec", found.get)
    ran = run("bench", "--model", "mini")
    assert plans[0].runners[0] == first
    assert plans[0].runners[-3:] == ("ours-bf16", "ours-int8", "ours-int4")
    assert ("transformers: not installed" in ran.out) == (not installed)


def test_quick_means_fewer_stages_and_samples(run, plans):
    run("bench", "--model", "mini", "--quick")
    run("bench", "--model", "mini")
    quick, main = plans
    assert quick.repeat < main.repeat
    assert len(quick.stages) < len(main.stages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "gemma"), "no shape 'gemma'"),
        (("--stages", "lunch"), "no stage 'lunch'"),
        (("--runners", "theirs"), "no runner 'theirs'"),
        (("--repeat", "0"), "repeat is 0"),
        (("--json", "/nowhere/at/all.json"), "no folder"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(run, plans, arguments, message):
    ran = run("bench", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert plans == []
