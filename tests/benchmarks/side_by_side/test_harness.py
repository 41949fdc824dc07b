"""Who is asked what, and when; the processes themselves are stand-ins but for one test."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.side_by_side import harness
from benchmarks.side_by_side.harness import Plan, WorkerError, group_processes, measure
from benchmarks.side_by_side.stages import choose_stages
from paligemma.bench.workload import named_config
from paligemma.errors import OptionError

ALL = tuple(name for name in harness.RUNNERS if name not in ("keras-hub", "ours-plain"))
PLENTY = 10**12


def plan(*stages: str, runners: tuple[str, ...] = ALL, repeat: int = 1, **fields: Any) -> Plan:
    return Plan(
        model=fields.get("model", "paligemma2-3b-224"),
        runners=runners,
        stages=choose_stages(stages),
        repeat=repeat,
    )


class Processes:
    """Stands in for `Worker`: answers at once and writes down what happened."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.broken: dict[tuple[str, str], str] = {}
        self.seconds = 1.0

    def __call__(self, runner: str, model: str, *command: str) -> Any:
        outer = self

        class Fake:
            first_answer: dict[str, Any] = {"seconds": {"load": 4.0}, "peak_bytes": 5}  # noqa: RUF012
            has_ended = False

            def ask(self, **request: str) -> dict[str, Any]:
                if not request:
                    limits = {"read_bandwidth": 3e10, "matrix_peak": 6e12}
                    return {"limits": limits, "measured_by": "torch"}
                asked = request["runner"], request["stage"]
                outer.log.append(" ".join(asked))
                if asked in outer.broken:
                    self.has_ended = outer.broken[asked] == "ended"
                    raise WorkerError(outer.broken[asked])
                return {"seconds": {request["stage"]: outer.seconds}, "peak_bytes": 7}

            def close(self) -> None:
                outer.log.append(f"close {runner}")

        if ("start", runner) in outer.broken:
            raise WorkerError(outer.broken["start", runner])
        outer.log.append(f"{command[0]} {runner}")
        return Fake()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    found = Processes()
    monkeypatch.setattr(harness, "Worker", found)
    monkeypatch.setattr(harness, "file_bandwidth", lambda folder: 2e9)
    return found


def run(wanted: Plan, free: int = PLENTY) -> harness.Measurements:
    return measure(wanted, free_bytes=lambda: free, progress=lambda text: None)


def test_runners_take_turns_and_one_process_serves_both_forms_of_transformers(processes):
    found = run(plan("caption", "vision", repeat=2))
    work = [line for line in processes.log if line.startswith(("ours", "transf"))]
    once = ["transformers", "transformers-frozen", "ours-bf16", "ours-int8", "ours-int4"]
    vision = [f"{name} vision" for name in once if name != "transformers-frozen"]
    assert work == [*vision * 2, *[f"{name} caption" for name in once] * 2]
    started = [line for line in processes.log if line.startswith("serve")]
    processes_of = ["limits", "transformers", "ours-bf16", "ours-int8", "ours-int4"]
    assert started == [f"serve {name}" for name in processes_of]
    assert {line for line in processes.log if "close" in line} == {
        f"close {name}" for name in processes_of
    }
    assert found.samples[0, "ours-int4", "caption"] == [1.0, 1.0]
    assert len(found.limits) == 4
    assert found.notes == []


def test_what_does_not_fit_together_is_measured_in_groups_with_the_reference_in_each():
    config = named_config("paligemma2-3b-224")
    groups, notes = group_processes(plan("answer"), config, 23_000_000_000)
    assert groups == [["transformers", "ours-bf16", "ours-int8"], ["transformers", "ours-int4"]]
    assert notes == []
    groups, notes = group_processes(plan("answer"), config, 11_000_000_000)
    assert groups == [["transformers"], ["ours-bf16"], ["ours-int8", "ours-int4"]]
    groups, notes = group_processes(plan("answer"), config, 9_000_000_000)
    assert groups == [["ours-bf16"], ["ours-int8", "ours-int4"]]
    assert len(notes) == 1
    assert notes[0].startswith("transformers was not run: it needs about 9.8 GB, and 9.0 GB")


def test_the_reference_is_measured_again_in_each_group_but_its_frozen_form_is_not(processes):
    found = run(plan("answer"), free=23_000_000_000)
    assert [key[:2] for key in found.samples] == [
        (0, "transformers"),
        (0, "transformers-frozen"),
        (0, "ours-bf16"),
        (0, "ours-int8"),
        (1, "transformers"),
        (1, "ours-int4"),
    ]
    log = processes.log
    assert log.count("serve transformers") == 1
    assert log.index("close ours-bf16") < log.index("serve ours-int4")


def test_after_two_long_samples_a_runner_is_left_alone(processes):
    processes.seconds = 10.0
    found = run(plan("answer", runners=("ours-plain",), repeat=5))
    assert found.samples[0, "ours-plain", "answer"] == [10.0, 10.0]


def test_an_error_in_one_stage_is_noted_and_the_rest_goes_on(processes):
    processes.broken["ours-int8", "vision"] = "no such operation"
    found = run(plan("vision", "prefill", repeat=2))
    assert (0, "ours-int8", "vision") not in found.samples
    assert found.samples[0, "ours-int8", "prefill"] == [1.0, 1.0]
    assert found.notes == ["vision, ours-int8: no such operation"]


def test_a_process_that_ends_takes_both_its_runners_with_it(processes):
    processes.broken["transformers", "prefill"] = "ended"
    found = run(plan("prefill", "answer", repeat=2))
    assert {runner for _, runner, _ in found.samples} == {"ours-bf16", "ours-int8", "ours-int4"}
    assert found.notes == ["prefill, transformers: ended"]


def test_a_program_that_cannot_start_is_noted(processes):
    processes.broken["start", "ours-bf16"] = "not installed"
    found = run(plan("answer"))
    assert found.notes == ["ours-bf16 was not run: not installed"]
    assert (0, "ours-int8", "answer") in found.samples


def test_a_batch_that_does_not_fit_is_left_out(processes):
    rows_64 = 2.2 * 64 * (272 + 6) * 106_496
    found = measure(
        plan("batch-8", "batch-64", runners=("ours-plain",)),
        free_bytes=iter([PLENTY, int(rows_64) - 1, int(rows_64) - 1]).__next__,
        progress=lambda text: None,
    )
    assert [key[2] for key in found.samples] == ["batch-8"]
    assert found.notes == ["batch-64 was not run: it needs about 4.2 GB more, and 4.2 GB are free."]


def test_a_checkpoint_is_loaded_by_a_fresh_process_every_time(processes):
    found = run(plan("load", "vision", runners=("transformers", "ours-plain"), repeat=2))
    loads = [line for line in processes.log if line.startswith(("load", "save"))]
    assert loads == ["save ours-plain", *["load transformers", "load ours-plain"] * 2]
    assert found.samples[0, "ours-plain", "load"] == [4.0, 4.0]
    assert found.file_bandwidth == 2e9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runners": ("theirs",)}, "Unknown runner 'theirs'"),
        ({"runners": ()}, "Nothing to measure"),
        ({"repeat": 0}, "repeat is 0"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(OptionError, match=message):
        plan("answer", **fields)


@pytest.mark.parametrize(
    ("runners", "reference"),
    [
        (("ours-bf16", "transformers"), "transformers"),
        (("ours-bf16", "ours-plain"), "ours-plain"),
        (("ours-int8", "ours-int4"), "ours-int8"),
    ],
)
def test_transformers_is_the_reference_where_it_is_measured(runners, reference):
    assert plan("answer", runners=runners).reference == reference


def test_a_real_process_tells_what_is_wrong():
    with pytest.raises(WorkerError, match="Unknown shape 'nonsense'"):
        harness.Worker("ours-plain", "nonsense", "serve")


def test_keras_hub_is_asked_for_whole_answers_only(processes):
    run(plan("image", "vision", "prefill", "answer", "batch-8", runners=("keras-hub",)))
    assert [line for line in processes.log if line.startswith("keras")] == ["keras-hub answer"]
