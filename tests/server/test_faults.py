"""Faults do what they are planted for, only there, and never without the switch."""

from __future__ import annotations

import time

import pytest
import torch

from paligemma.errors import OptionError
from paligemma.server.faults import PLAN, SWITCH, Fault, Faults, PlantedFaultError


def test_without_the_switch_nothing_can_be_planted_and_no_plan_is_read() -> None:
    faults = Faults({PLAN: "step=kill"})
    with pytest.raises(OptionError, match=SWITCH):
        faults.plant(Fault(point="step", action="raise"))
    assert faults.hit("step") is False
    assert not faults.hits, "an ordinary server does not even count"
    assert not Faults({SWITCH: "1"}).are_allowed


def test_a_plan_is_read_from_the_environment() -> None:
    faults = Faults({SWITCH: "test", PLAN: "step@1*2=raise;score=oom;row*0=nan;decode=sleep:0.02"})
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
    with pytest.raises(OptionError):
        Faults({SWITCH: "test", PLAN: plan})


def test_a_fault_with_a_key_hits_nobody_else() -> None:
    faults = Faults({SWITCH: "test"})
    faults.plant(Fault(point="tokenize", action="raise", key="bad", times=None))
    faults.hit("tokenize", "good")
    faults.hit("tokenize")
    for _ in range(2):
        with pytest.raises(PlantedFaultError):
            faults.hit("tokenize", "bad")
    faults.clear()
    assert faults.hit("tokenize", "bad") is False
