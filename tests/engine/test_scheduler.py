"""Who goes when, counted in steps; no model is needed for that."""

from __future__ import annotations

import random
from itertools import count

import pytest
import torch

from paligemma.engine.request import Request, RequestState
from paligemma.engine.scheduler import Scheduler
from paligemma.errors import BusyError

NUMBERS = count()


def scheduler(max_rows: int = 4, max_queued: int = 99, positions: int = 1000) -> Scheduler:
    return Scheduler(max_rows=max_rows, max_queued=max_queued, max_prefill_positions=positions)


def waiting(client: str = "", length: int = 3) -> RequestState:
    ids = torch.ones(length, dtype=torch.long)
    request = Request(
        token_ids=ids,
        image_mask=torch.zeros_like(ids, dtype=torch.bool),
        max_new_tokens=9,
        eos_id=1,
        client=client,
    )
    return RequestState(request_id=next(NUMBERS), request=request, vocab_size=9)


def clients(states: list[RequestState]) -> str:
    return "".join(state.request.client for state in states)


def test_one_clients_requests_keep_their_order() -> None:
    plan = scheduler(max_rows=9)
    states = [waiting() for _ in range(5)]
    for state in states:
        plan.add(state)
    assert plan.num_queued == 5
    assert plan.next_group() == states
    assert plan.num_queued == 0


def test_a_request_that_goes_first_is_before_its_clients_others_only() -> None:
    plan = scheduler(max_rows=9)
    a, late_a, b = waiting("a"), waiting("a"), waiting("b")
    for state, goes_first in ((b, False), (a, False), (late_a, True)):
        plan.add(state, goes_first=goes_first)
    assert plan.next_group() == [b, late_a, a]


def test_clients_take_turns_however_many_requests_one_brings() -> None:
    plan = scheduler(max_rows=7)
    for client in "aaaaaaabbc":
        plan.add(waiting(client))
    group = plan.next_group()
    assert clients(group) == "abcabaa"
    plan.prefilled(group)
    assert plan.next_group() == []


def test_the_turn_goes_round_when_there_is_one_place() -> None:
    plan = scheduler(max_rows=1)
    for client in "aaabbbcc":
        plan.add(waiting(client))
    order = ""
    while plan.num_queued:
        plan.prefilled(plan.next_group())
        order += plan.remove(0).request.client
    assert order == "abcabcab"


def test_a_free_place_goes_to_the_client_with_the_fewest_running() -> None:
    plan = scheduler(max_rows=4)
    for client in "aaaa":
        plan.add(waiting(client))
    plan.prefilled(plan.next_group())
    for client in "abb":
        plan.add(waiting(client))
    plan.remove(0)
    plan.remove(0)
    group = plan.next_group()
    assert clients(group) == "bb"


def test_a_client_without_a_place_gets_one_from_a_client_with_several() -> None:
    plan = scheduler(max_rows=3)
    own = [waiting("a") for _ in range(5)]
    for state in own:
        plan.add(state)
    plan.prefilled(plan.next_group())
    assert plan.row_to_preempt() is None  # nobody else is waiting
    plan.add(waiting("b"))
    row = plan.row_to_preempt()
    assert row == 2  # the youngest: it loses least
    plan.requeue([plan.remove(row)])
    plan.prefilled(plan.next_group())
    assert clients(plan.running) == "aab"
    assert plan.row_to_preempt() is None
    plan.add(waiting("c"))
    row = plan.row_to_preempt()
    assert row is not None
    plan.requeue([plan.remove(row)])
    plan.prefilled(plan.next_group())
    assert sorted(clients(plan.running)) == ["a", "b", "c"]
    plan.add(waiting("d"))
    assert plan.row_to_preempt() is None  # everybody has one: it waits for an end
    # What was given back comes before what was never started, in the old order.
    for _ in range(3):
        plan.remove(0)
    group = plan.next_group()
    assert clients(group) == "ada"
    assert [state for state in group if state.request.client == "a"] == own[1:3]


def test_waiting_is_bounded_in_steps_whatever_the_others_do() -> None:
    """Random traffic of long requests by few clients; a newcomer starts at once."""
    chance = random.Random(3)
    plan = scheduler(max_rows=6, max_queued=10_000)
    steps_waited: dict[int, int] = {}
    newcomers: list[RequestState] = []
    for step in range(300):
        for _ in range(chance.randint(0, 3)):
            plan.add(waiting(chance.choice("aab")))
        if step % 5 == 0:
            newcomers.append(waiting(f"new {step}"))
            plan.add(newcomers[-1])
        if (row := plan.row_to_preempt()) is not None:
            plan.requeue([plan.remove(row)])
        plan.prefilled(plan.next_group())
        for state in newcomers:
            if state in plan.running:
                steps_waited.setdefault(state.request_id, step)
                plan.remove(plan.running.index(state))  # it is short
    assert len(steps_waited) == len(newcomers) == 60
    waits = [
        steps_waited[state.request_id] - int(state.request.client.split()[1]) for state in newcomers
    ]
    assert max(waits) <= 1


def test_a_group_fits_into_its_positions_with_its_pads() -> None:
    plan = scheduler(max_rows=9, positions=40)
    for length in (5, 10, 10, 12, 50, 3):
        plan.add(waiting(length=length))
    sizes = []
    while plan.num_queued:
        group = plan.next_group()
        sizes.append([state.num_tokens for state in group])
        plan.prefilled(group)
    assert sizes == [[5, 10, 10], [12], [50], [3]]  # nobody overtakes the long one


def test_the_queue_is_bounded_exactly() -> None:
    plan = scheduler(max_rows=1, max_queued=3)
    for client in "abc":
        plan.add(waiting(client))
    assert plan.is_full
    with pytest.raises(BusyError, match="3 requests are waiting, the limit is 3"):
        plan.add(waiting("d"))
    group = plan.next_group()
    plan.add(waiting("d"))
    plan.requeue(group)  # what was taken once is not refused
    assert plan.num_queued == 4
    with pytest.raises(BusyError):
        plan.add(waiting("e"))


def test_a_waiting_request_can_be_dropped() -> None:
    plan = scheduler()
    states = [waiting("a"), waiting("b"), waiting("a")]
    for state in states:
        plan.add(state)
    plan.drop(states[1])
    plan.drop(states[0])
    assert plan.num_queued == 1
    assert plan.next_group() == [states[2]]


def test_the_last_row_takes_the_number_of_one_that_leaves() -> None:
    plan = scheduler()
    states = [waiting() for _ in range(3)]
    plan.prefilled(states)
    assert plan.remove(0) is states[0]
    assert plan.running == [states[2], states[1]]
    assert plan.remove(1) is states[1]
    assert plan.running == [states[2]]


def test_groups_are_halved_after_a_failure_and_grow_again() -> None:
    plan = scheduler(max_rows=8)
    for _ in range(20):
        plan.add(waiting())
    sizes = []
    for outcome in ("fails", "fails", "works", "works", "works", "works"):
        group = plan.next_group()
        sizes.append(len(group))
        if outcome == "fails":
            plan.prefill_failed(group)
            plan.requeue(group)
        else:
            plan.prefilled(group)
            while plan.running:
                plan.remove(0)
    assert sizes == [8, 4, 2, 4, 8, 6]


def test_fewer_rows_run_after_a_failed_step_and_one_more_after_each_good_one() -> None:
    plan = scheduler(max_rows=8)
    for _ in range(20):
        plan.add(waiting())
    plan.prefilled(plan.next_group())
    plan.decode_failed()
    plan.requeue([plan.remove(row) for row in (7, 6, 5, 4)])
    assert plan.next_group() == []
    for num_rows in (5, 6, 7, 8, 8):
        plan.decoded()
        plan.prefilled(plan.next_group())
        assert len(plan.running) == num_rows
