"""What a worker makes of a stage."""

from __future__ import annotations

import pytest

from benchmarks.side_by_side import worker
from benchmarks.side_by_side.stages import STAGES


class Steady:
    """A runner whose every token takes a second."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def image(self) -> float:
        self.calls.append(("image",))
        return 0.25

    vision = prefill = image

    def answer(self, num_tokens: int, num_rows: int) -> list[float]:
        self.calls.append(("answer", str(num_tokens), str(num_rows)))
        return [10.0 + n for n in range(num_tokens)]

    def steps(self, num_tokens: int, num_rows: int) -> list[float]:
        return [100.0] + [2.0] * (num_tokens - 1)


def test_an_answer_gives_its_first_token_and_its_step():
    assert worker.measure(Steady(), STAGES["answer"]) == {"first token": 10.0, "decode step": 1.0}


def test_a_task_counts_as_a_whole():
    runner = Steady()
    assert worker.measure(runner, STAGES["questions-4"]) == {"questions-4": 19.0}
    assert runner.calls == [("answer", "10", "4")]


def test_the_first_step_of_a_batch_does_not_count():
    assert worker.measure(Steady(), STAGES["batch-8"]) == {"batch-8": 2.0}


def test_short_stages_are_repeated_and_long_ones_are_not(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("paligemma.bench.measure.time.perf_counter", lambda: now[0])

    class Slow(Steady):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def image(self) -> float:
            super().image()
            now[0] += self.seconds
            return self.seconds if len(self.calls) > 1 else 9.0

    quick, slow = Slow(0.1), Slow(0.5)
    assert worker.measure(quick, STAGES["image"]) == {"image": 0.1}
    assert len(quick.calls) > 2
    assert worker.measure(slow, STAGES["image"]) == {"image": 9.0}
    assert len(slow.calls) == 1


@pytest.mark.parametrize("stage", ["vision", "prefill"])
def test_other_stages_are_asked_for_by_name(stage):
    assert worker.measure(Steady(), STAGES[stage]) == {stage: 0.25}
