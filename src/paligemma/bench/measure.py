"""Runs the stages of a model on this machine and reports times, shares of the limit and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch

from paligemma.bench.limits import (
    Limits,
    LimitsProbe,
    Work,
    decode_work,
    prefill_work,
    vision_work,
    weight_bytes,
)
from paligemma.bench.machine import describe_machine
from paligemma.bench.runner import ModelRunner, build_runner
from paligemma.bench.workload import PROMPT_LENGTH, named_config
from paligemma.config import PaliGemmaConfig
from paligemma.errors import OptionError
from paligemma.fast.weights import Packed, Plain
from paligemma.process_memory import peak_bytes

WEIGHTS: dict[str, Plain | Packed] = {
    "float32": Plain("float32"),
    "bfloat16": Packed(),
    "int8": Packed("int8"),
    "int4": Packed("int4"),
}
"""How the weights can be kept; float32 weights are plain parameters, the others packed."""

NUM_ROWS = 8  # of the batch
_NUM_TOKENS = 9
_NUM_STEPS = 6
_SHORT_SECONDS = 0.3
_PROCESS_BYTES = 1_800_000_000  # torch, intermediate results and the buffers of LimitsProbe
# With fewer bytes of weights, the processor's cache may hold them: the memory is not the limit.
_IN_CACHE_BYTES = 1_000_000_000


def bench_memory(model: str, weights: str) -> float:
    """Bytes that a benchmark needs, roughly. Raises OptionError for an unknown name."""
    if weights not in WEIGHTS:
        raise OptionError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}.")
    config = named_config(model)
    if weights == "float32":
        return 2 * weight_bytes(config, "bfloat16") + _PROCESS_BYTES
    return weight_bytes(config, weights) + _PROCESS_BYTES


@torch.inference_mode()
def measure(
    model: str, weights: str, *, repeat: int = 3, progress: Callable[[str], None]
) -> dict[str, Any]:
    """A report in plain JSON values; times are medians of `repeat` samples, in seconds.

    A stage's `share` is the least time that it needs on this machine, divided by its time. There
    is none for float32, or for models that fit into the processor's cache.
    """
    if repeat < 1:
        raise OptionError(f"repeat is {repeat}; it must be at least 1.")
    config = named_config(model)
    progress(f"Creating {model} with random {weights} weights")
    runner = build_runner(config, WEIGHTS[weights])
    runner.answer(2, 1)  # warm-up
    model_bytes = peak_bytes()
    probe = LimitsProbe()
    samples: dict[str, list[float]] = {}
    limits: list[Limits] = []
    for number in range(1, repeat + 1):
        progress(f"Measuring, {number} of {repeat}")
        limits.append(probe.measure())
        for stage, sample in sample_stages(runner):
            samples.setdefault(stage, []).append(sample)
    median = Limits(
        read_bandwidth=statistics.median(limit.read_bandwidth for limit in limits),
        matrix_peak=statistics.median(limit.matrix_peak for limit in limits),
    )
    has_shares = weights != "float32" and weight_bytes(config, "bfloat16") > _IN_CACHE_BYTES
    work = stage_work(config, weights) if has_shares else {}
    seconds = {stage: statistics.median(values) for stage, values in samples.items()}
    return {
        "model": model,
        "weights": weights,
        "repeat": repeat,
        "machine": describe_machine(),
        "limits": {**asdict(median), "measured_by": probe.measured_by},
        "stages": {
            stage: {
                "seconds": seconds[stage],
                "samples": samples[stage],
                "share": work[stage].seconds(median) / seconds[stage] if stage in work else None,
            }
            for stage in samples
        },
        "tokens_per_second": {
            "1": 1 / seconds["decode step"],
            str(NUM_ROWS): NUM_ROWS / seconds[f"decode step, {NUM_ROWS} rows"],
        },
        "peak_memory_bytes": model_bytes,
    }


def sample_stages(runner: ModelRunner) -> Iterator[tuple[str, float]]:
    """One sample of every stage."""
    yield "preprocess", repeated_seconds(runner.image)
    yield "image encoder", repeated_seconds(runner.vision)
    yield "prefill", repeated_seconds(runner.prefill)
    times = runner.answer(_NUM_TOKENS, 1)
    yield "first token", times[0]
    yield "decode step", statistics.median(later - earlier for earlier, later in pairwise(times))
    steps = runner.steps(_NUM_STEPS, NUM_ROWS)[1:]  # the first one allocates
    yield f"decode step, {NUM_ROWS} rows", statistics.median(steps)


def repeated_seconds(call: Callable[[], float]) -> float:
    """The call's seconds; for a short call the median of repetitions, without the first."""
    start = time.perf_counter()
    first = call()
    repetitions = []
    while time.perf_counter() - start < _SHORT_SECONDS:
        repetitions.append(call())
    return statistics.median(repetitions or [first])


def stage_work(config: PaliGemmaConfig, weights: str) -> dict[str, Work]:
    """The least work of every stage but preprocessing and the first token, which has two parts."""
    decoder, length = config.decoder, config.vision.num_image_tokens + PROMPT_LENGTH
    return {
        "image encoder": vision_work(config),
        "prefill": prefill_work(decoder, weights, 1, length),
        "decode step": decode_work(decoder, weights, 1, length + _NUM_TOKENS // 2),
        f"decode step, {NUM_ROWS} rows": decode_work(
            decoder, weights, NUM_ROWS, length + _NUM_STEPS // 2
        ),
    }


def table_rows(report: dict[str, Any]) -> list[list[str]]:
    """Stage, time and share of the machine's limit, one row per stage."""
    return [
        [
            stage,
            format_seconds(figures["seconds"]),
            "" if figures["share"] is None else f"{figures['share']:.0%}",
        ]
        for stage, figures in report["stages"].items()
    ]


def summary_lines(report: dict[str, Any]) -> Iterator[str]:
    """Tokens per second, memory, and what they were measured on."""
    rates = report["tokens_per_second"]
    yield "tokens per second: " + ", ".join(
        f"{rate:.3g} for {rows} {'row' if rows == '1' else 'rows'}" for rows, rate in rates.items()
    )
    yield f"peak memory: {report['peak_memory_bytes'] / 1e9:.1f} GB"
    yield from machine_lines(report)


def machine_lines(report: dict[str, Any]) -> Iterator[str]:
    """The machine, versions and measured limits of a report."""
    machine, limits = report["machine"], report["limits"]
    yield (
        f"{machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB; {' '.join(machine['instructions'])}"
    )
    versions = (f"{name} {number}" for name, number in machine["packages"].items() if number)
    yield f"{', '.join(versions)}, Python {machine['python']}; {machine['date']}"
    if limits is not None:
        method = "" if limits["measured_by"] == "native" else ", measured with torch"
        yield (
            f"limits: {limits['read_bandwidth'] / 1e9:.1f} GB/s memory reads, "
            f"{limits['matrix_peak'] / 1e12:.2f} TFLOP/s bfloat16{method}"
        )


def format_seconds(seconds: float) -> str:
    """
    >>> format_seconds(0.2071), format_seconds(8.512), format_seconds(75.1), format_seconds(0.00412)
    ('207 ms', '8.51 s', '75.1 s', '4.1 ms')
    """
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1000 * seconds:.{1 if seconds < 0.01 else 0}f} ms"
