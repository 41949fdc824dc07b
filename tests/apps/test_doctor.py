"""`paligemma doctor`, on whatever machine this is."""

from __future__ import annotations

import json

import pytest

from paligemma.checkpoints import hub
from paligemma.cli import doctor


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_reachable(hub_id: str) -> bool:
        pytest.fail("the network was asked")

    monkeypatch.setattr(hub, "is_reachable", is_reachable)


def test_the_report_covers_the_whole_machine(run):
    ran = run("doctor", "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert report.keys() == {
        *(
            "paligemma",
            "python",
            "system",
            "packages",
            "torchvision",
            "transformers",
            "cores",
            "threads",
            "devices",
        ),
        *("kernels", "dtypes", "models", "hub", "mini"),
    }
    assert report["packages"]["torch"]
    assert report["devices"][0]["name"] == "cpu"
    checks = {(check["device"], check["dtype"]): check for check in report["dtypes"]}
    assert checks["cpu", "float32"]["ok"]
    assert checks["cpu", "bfloat16"]["ok"]
    names = [row["model"] for row in report["models"]]
    assert len(names) == len(set(names)) == 12
    for row in report["models"]:
        assert row["bfloat16"]["bytes"] < row["float32"]["bytes"]
        assert row["bfloat16"]["fits"]["cpu"] >= row["float32"]["fits"]["cpu"]
    assert report["hub"]["reachable"] is None


def test_what_does_not_work_is_said_in_words(run, monkeypatch):
    monkeypatch.setattr(doctor, "_try_mini", lambda: {"ok": False, "problem": "no weights"})
    ran = run("doctor")
    assert ran.code == 0
    assert "mini does NOT work: no weights" in ran.out
    assert "paligemma2 28b 896" in ran.out


def test_a_stray_torchvision_is_pointed_out(run, monkeypatch):
    report = doctor.examine(online=False)
    lines = "\n".join(doctor.describe({**report, "torchvision": "0.28.0"}))
    assert "torchvision 0.28.0 is installed" in lines


def test_the_network_is_asked_only_on_demand(run, monkeypatch):
    monkeypatch.setattr(hub, "is_reachable", lambda hub_id: False)
    monkeypatch.setattr(doctor, "_try_mini", lambda: {"ok": False, "problem": "no weights"})
    said = run("doctor", "--online").out
    assert "can NOT be reached" in said
    assert "gated weights" not in said


@pytest.mark.parametrize(("granted", "word"), [(True, " can be "), (False, " can NOT be ")])
def test_it_says_whether_gated_weights_can_be_had(run, monkeypatch, granted, word):
    monkeypatch.setattr(hub, "is_reachable", lambda hub_id: True)
    monkeypatch.setattr(hub, "may_read", lambda hub_id: granted)
    monkeypatch.setattr(doctor, "_try_mini", lambda: {"ok": False, "problem": "no weights"})
    said = run("doctor", "--online").out
    assert f"gated weights: google/paligemma2-3b-mix-224{word}downloaded" in said
    assert ("huggingface.co/google/paligemma2-3b-mix-224" in said) == (not granted)
