"""One process with one program's model, so that memory and threads are its own.

    python -m paligemma.bench.worker RUNNER MODEL serve          asked over pipes, until stdin ends
    python -m paligemma.bench.worker RUNNER MODEL load FOLDER    loads a checkpoint once
    python -m paligemma.bench.worker RUNNER MODEL save FOLDER    writes random weights

Requests and replies are JSON, one a line. Request: {"runner": ..., "stage": ...}. Reply:
{"seconds": {metric: seconds}, "peak_bytes": ...}, or {"limits": {...}}, or {"error": ...}.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import torch

from paligemma.bench.limits import LimitsProbe
from paligemma.bench.machine import peak_bytes
from paligemma.bench.workload import STAGES, Runner, Stage, named_config
from paligemma.errors import PaliGemmaError

LIMITS = "limits"
_SHORT = 0.3  # seconds of repeating what is over sooner


def main(arguments: list[str]) -> None:
    runner, model, command, *folder = arguments
    replies = _claim_stdout()
    try:
        if command == "serve":
            _serve(_build(runner, model), replies)
        elif command == "load":
            seconds = _seconds_to_load(runner, Path(folder[0]))
            _reply(replies, seconds={"load": seconds}, peak_bytes=peak_bytes())
        else:
            _save(model, Path(folder[0]))
            _reply(replies, peak_bytes=peak_bytes())
    except (PaliGemmaError, ImportError) as error:
        _reply(replies, error=str(error))


def _claim_stdout() -> TextIO:
    """The real stdout, for replies only: what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, **content: Any) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()


def _build(runner: str, model: str) -> dict[str, Any]:
    """The runners of this process: one, or none (the one that measures limits), or two.

    Each is a `Runner`, but for those that know answers only (`ANSWERS_ONLY`).
    """
    if runner == LIMITS:
        return {}
    config = named_config(model)
    runners: dict[str, Any]
    if runner == "keras-hub":
        from paligemma.bench import keras_runner

        runners = {runner: keras_runner.build(config)}
    elif runner == "transformers":
        from paligemma.bench import transformers_runner

        plain = transformers_runner.build(config)
        runners = {
            "transformers": plain,
            "transformers-frozen": transformers_runner.FrozenTransformersRunner(plain),
        }
    else:
        from paligemma.bench import ours

        runners = {runner: ours.build(runner, config)}
    runners[runner].answer(2, 1)  # what is slow the first time only
    return runners


def _serve(runners: dict[str, Any], replies: TextIO) -> None:
    probe = None if runners else LimitsProbe()
    _reply(replies, ready=True, peak_bytes=peak_bytes())
    for line in sys.stdin:
        request = json.loads(line)
        if probe is not None:
            _reply(replies, limits=asdict(probe.measure()), measured_by=probe.measured_by)
            continue
        try:
            seconds = measure(runners[request["runner"]], STAGES[request["stage"]])
        except Exception as error:  # whatever a library raises: the others go on
            _reply(replies, error=f"{type(error).__name__}: {error}")
        else:
            _reply(replies, seconds=seconds, peak_bytes=peak_bytes())


def measure(runner: Runner, stage: Stage) -> dict[str, float]:
    """One sample of each of the stage's metrics, in seconds."""
    if stage.kind == "answer":
        known_after = runner.answer(stage.num_tokens, stage.num_rows)
        if stage.name != "answer":
            return {stage.name: known_after[-1]}
        steps = [b - a for a, b in pairwise(known_after)]
        return {"first token": known_after[0], "decode step": statistics.median(steps)}
    if stage.kind == "steps":
        # The first one comes with new shapes.
        return {stage.name: statistics.median(runner.steps(stage.num_tokens, stage.num_rows)[1:])}
    calls: dict[str, Callable[[], float]] = {
        "image": runner.image,
        "vision": runner.vision,
        "prefill": runner.prefill,
    }
    return {stage.name: _repeated(calls[stage.kind])}


def _repeated(call: Callable[[], float]) -> float:
    """Once, if that takes long enough; else the median of as many as fit, without the first."""
    start = time.perf_counter()
    first = call()
    times = []
    while time.perf_counter() - start < _SHORT:
        times.append(call())
    return statistics.median(times or [first])


def _seconds_to_load(runner: str, folder: Path) -> float:
    if runner == "transformers":
        from paligemma.bench import transformers_runner

        return transformers_runner.seconds_to_load(folder)
    from paligemma.bench import ours

    return ours.seconds_to_load(runner, folder)


def _save(model: str, folder: Path) -> None:
    from paligemma.bench import ours
    from paligemma.checkpoints.save import save_model

    save_model(ours.build("ours-plain", named_config(model)).model, folder)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:])
