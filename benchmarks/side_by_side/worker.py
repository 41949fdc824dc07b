"""One process with one program's model, so that programs share neither memory nor threads.

    python -m benchmarks.side_by_side.worker RUNNER MODEL serve        answers requests on stdin
    python -m benchmarks.side_by_side.worker RUNNER MODEL load FOLDER  loads a checkpoint once
    python -m benchmarks.side_by_side.worker RUNNER MODEL save FOLDER  writes random weights

Requests and replies are JSON, one per line. Request: {"runner": ..., "stage": ...}. Reply:
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

from benchmarks.side_by_side.stages import STAGES, Runner, Stage, read_every_page
from paligemma.bench.limits import LimitsProbe
from paligemma.bench.measure import repeated_seconds
from paligemma.bench.runner import build_runner
from paligemma.bench.workload import named_config
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.save import save_model
from paligemma.errors import PaliGemmaError
from paligemma.fast.weights import Packed, Plain
from paligemma.process_memory import peak_bytes

LIMITS = "limits"
OUR_WEIGHTS: dict[str, Plain | Packed] = {
    "ours-plain": Plain("bfloat16"),
    "ours-bf16": Packed(),
    "ours-int8": Packed("int8"),
    "ours-int4": Packed("int4"),
}


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
    """The real stdout, for replies only: the output of libraries goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, **content: Any) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()


def _build(runner: str, model: str) -> dict[str, Any]:
    """The runners of this process by name; none in the process that measures the limits.

    Each is a `Runner`, except those in `ANSWERS_ONLY`.
    """
    if runner == LIMITS:
        return {}
    config = named_config(model)
    runners: dict[str, Any]
    if runner == "keras-hub":
        from benchmarks.side_by_side import keras_runner

        runners = {runner: keras_runner.build(config)}
    elif runner == "transformers":
        from benchmarks.side_by_side import transformers_runner

        plain = transformers_runner.build(config)
        runners = {
            "transformers": plain,
            "transformers-frozen": transformers_runner.FrozenTransformersRunner(plain),
        }
    else:
        runners = {runner: build_runner(config, OUR_WEIGHTS[runner])}
    runners[runner].answer(2, 1)  # warm-up
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
        except Exception as error:  # of any kind: the other runners go on
            _reply(replies, error=f"{type(error).__name__}: {error}")
        else:
            _reply(replies, seconds=seconds, peak_bytes=peak_bytes())


def measure(runner: Runner, stage: Stage) -> dict[str, float]:
    """One sample of each of the stage's metrics, in seconds."""
    if stage.kind == "answer":
        times = runner.answer(stage.num_tokens, stage.num_rows)
        if stage.name != "answer":
            return {stage.name: times[-1]}
        steps = [later - earlier for earlier, later in pairwise(times)]
        return {"first token": times[0], "decode step": statistics.median(steps)}
    if stage.kind == "steps":
        # The first step has new shapes.
        return {stage.name: statistics.median(runner.steps(stage.num_tokens, stage.num_rows)[1:])}
    calls: dict[str, Callable[[], float]] = {
        "image": runner.image,
        "vision": runner.vision,
        "prefill": runner.prefill,
    }
    return {stage.name: repeated_seconds(calls[stage.kind])}


def _seconds_to_load(runner: str, folder: Path) -> float:
    if runner == "transformers":
        from benchmarks.side_by_side import transformers_runner

        return transformers_runner.seconds_to_load(folder)
    start = time.perf_counter()
    read_every_page(load_model(folder, weights=OUR_WEIGHTS[runner]))
    return time.perf_counter() - start


def _save(model: str, folder: Path) -> None:
    save_model(build_runner(named_config(model), OUR_WEIGHTS["ours-plain"]).model, folder)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:])
