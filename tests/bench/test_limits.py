"""Limits are measured; what they are depends on the machine."""

from __future__ import annotations

from paligemma.bench import limits


def test_memory_and_matrix_units_are_measured(monkeypatch):
    monkeypatch.setattr(limits, "_BUFFER_BYTES", 2**20)
    monkeypatch.setattr(limits, "_SIDE", 64)
    monkeypatch.setattr(limits, "kernels", lambda: None)
    probe = limits.LimitsProbe()
    found = probe.measure()
    assert probe.measured_by == "torch"
    assert found.read_bandwidth > 1e6
    assert found.matrix_peak > 1e6


def test_the_packages_own_kernels_are_asked_where_they_are_there(monkeypatch):
    class Kernels:
        def measure_read_bandwidth(self) -> float:
            return 3e10

        def measure_matrix_peak(self) -> float:
            return 6e12

    monkeypatch.setattr(limits, "kernels", Kernels)
    probe = limits.LimitsProbe()
    assert probe.measured_by == "native"
    assert probe.measure() == limits.Limits(read_bandwidth=3e10, matrix_peak=6e12)
