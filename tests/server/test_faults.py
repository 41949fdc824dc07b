"""Faults do what they are planted for, and only there."""

from __future__ import annotations

import time

import pytest
import torch

from tests.server.faults import Fault, Faults, PlantedFaultError


def test_a_plan_is_read() -> None:
    faults = Faults("step@1*2=raise;score=oom;row*0=nan;decode=sleep:0.02")
    faults.hit("step")
    for _ in range(2):
        with pytest.raises(PlantedFaultError):
            faults.hit("step")
    faults.hit("step")
    with pytest.raises(torch.OutOfMemoryError):
        faults.hit("score")
    assert [faults.hit("row") for _ in range(3)] == [True] * 3
    start = time.perf_counter()
    faults.hit("decode")
    assert time.perf_counter() - start >= 0.02
    assert faults.hits == {"step": 4, "score": 1, "row": 3, "decode": 1}


@pytest.mark.parametrize("plan", ["step", "nowhere=raise", "step=dance", "step@x=raise", "=raise"])
def test_a_plan_that_cannot_be_read_is_refused(plan: str) -> None:
    with pytest.raises(ValueError, match="Not a fault"):
        Faults(plan)


def test_a_fault_with_a_key_hits_nobody_else() -> None:
    faults = Faults()
    faults.plant(Fault(point="tokenize", action="raise", key="bad", times=None))
    faults.hit("tokenize", "good")
    faults.hit("tokenize")
    for _ in range(2):
        with pytest.raises(PlantedFaultError):
            faults.hit("tokenize", "bad")
    faults.clear()
    assert faults.hit("tokenize", "bad") is False
