"""The measurement of prefixes of different lengths runs, and counts their pads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import prefixes


def test_pads_are_counted_and_both_ways_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    shape = ["--model", "mini", "--blocks", "1", "--images", "1,0", "--texts", "2,4,8"]
    options = [*shape, "--repeat", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["prefixes", *options])
    prefixes.main()
    report = json.loads(out.read_text())
    assert report["lengths"] == [102, 4, 108]
    assert report["pads"] == pytest.approx(1 - (102 + 4 + 108) / (3 * 108))
    assert min(report["seconds"].values()) > 0
    assert "34.0%" in capsys.readouterr().out
