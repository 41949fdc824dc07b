"""Clients take turns in the line, and nobody waits in it after its end."""

from __future__ import annotations

import threading

from paligemma.server.jobs import FairQueue


def test_clients_take_turns_and_keep_their_own_order() -> None:
    line: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        line.put(item[0], item)
    assert [line.take() for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_what_goes_first_is_taken_before_all_others() -> None:
    line: FairQueue[str] = FairQueue()
    for item in ("a1", "b1", "b2"):
        line.put(item[0], item)
    line.put("b", "b0", goes_first=True)
    assert [line.take() for _ in range(4)] == ["b0", "a1", "b1", "b2"]


def test_slow_items_let_others_pass() -> None:
    line: FairQueue[str] = FairQueue()
    for item in ("a slow 1", "a slow 2", "a1", "b1", "a2"):
        line.put(item[0], item, is_slow="slow" in item)
    assert [line.take(with_slow=False) for _ in range(3)] == ["a1", "b1", "a2"]
    line.put("b", "b2")
    assert [line.take() for _ in range(3)] == ["a slow 1", "b2", "a slow 2"]


def test_who_waits_is_served_by_the_next_to_come_and_sent_away_at_the_end() -> None:
    line: FairQueue[int] = FairQueue()
    found: list[int | None] = []
    done = threading.Event()

    def wait() -> None:
        while (item := line.take()) is not None:
            found.append(item)
            done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    line.put("a", 1)
    assert done.wait(5)
    line.close()
    thread.join(5)
    assert not thread.is_alive()
    assert found == [1]
    assert line.take() is None
