"""Samples -> medians, ratios and shares of the limit; and tables of them.

A report is plain JSON values, so that a stored one gives the same tables:

    python -m benchmarks.side_by_side.report report.json    prints its table as Markdown
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.side_by_side.harness import FROZEN, WEIGHTS, Measurements, Plan
from benchmarks.side_by_side.stages import STAGES, least_seconds, seconds_to_read_weights
from paligemma.bench.limits import Limits, weight_bytes
from paligemma.bench.machine import describe_machine
from paligemma.bench.measure import format_seconds, machine_lines
from paligemma.bench.workload import named_config
from paligemma.config import PaliGemmaConfig

_IN_CACHE_BYTES = 1_000_000_000  # fewer bytes of weights may fit into the processor's cache
_PER_STEP = "batch-"


def build_report(plan: Plan, measurements: Measurements) -> dict[str, Any]:
    """All measurements and what follows from them; times in seconds.

    A figure's `speedup` is relative to the reference in the same group of processes. Its `share` is
    the least time by arithmetic (`least_seconds`) divided by its time.
    """
    limits = _median_limits(measurements)
    metrics = [metric for stage in plan.stages for metric in stage.metrics]
    medians = {key: statistics.median(samples) for key, samples in measurements.samples.items()}
    figures = []
    for key in sorted(
        medians, key=lambda key: (metrics.index(key[2]), plan.runners.index(key[1]), key[0])
    ):
        group, runner, metric = key
        reference = medians.get((group, plan.reference, metric))
        if reference is None:  # the two did not fit into memory together
            reference = medians.get((0, plan.reference, metric))
        least = _least_seconds(plan, measurements, limits, runner, metric)
        figures.append(
            {
                "metric": metric,
                "runner": runner,
                "group": group,
                "seconds": medians[key],
                "samples": measurements.samples[key],
                "speedup": None if reference is None else reference / medians[key],
                "least_seconds": least,
                "share": None if least is None else least / medians[key],
            }
        )
    return {
        "model": plan.model,
        "repeat": plan.repeat,
        "reference": plan.reference,
        "runners": [name for name in plan.runners if any(key[1] == name for key in medians)],
        "machine": describe_machine(),
        "limits": None
        if limits is None
        else {
            **asdict(limits),
            "file_bandwidth": measurements.file_bandwidth,
            "measured_by": measurements.limits_measured_by,
        },
        "figures": figures,
        "peak_bytes": measurements.peak_bytes,
        "notes": measurements.notes,
    }


def _least_seconds(
    plan: Plan, measurements: Measurements, limits: Limits | None, runner: str, metric: str
) -> float | None:
    config: PaliGemmaConfig = named_config(plan.model)
    if limits is None or weight_bytes(config, "bfloat16") <= _IN_CACHE_BYTES:
        return None
    stage = next(stage for stage in plan.stages if metric in stage.metrics)
    if stage.kind == "load":
        if measurements.file_bandwidth is None:
            return None
        return seconds_to_read_weights(config, WEIGHTS[runner], measurements.file_bandwidth)
    return least_seconds(config, WEIGHTS[runner], stage, limits).get(metric)


def _median_limits(measurements: Measurements) -> Limits | None:
    if not measurements.limits:
        return None
    rows = [asdict(limits) for limits in measurements.limits]
    return Limits(**{name: statistics.median(row[name] for row in rows) for name in rows[0]})


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a row per metric, a column per runner.

    A cell has the time, the speedup over the reference, and the share of the limit.
    """
    runners = report["runners"]
    metrics = list(dict.fromkeys(figure["metric"] for figure in report["figures"]))
    cells: dict[tuple[str, str], str] = {}
    for figure in report["figures"]:
        # The reference is in several groups: show the first.
        cells.setdefault((figure["metric"], figure["runner"]), _cell(figure, report["reference"]))
    rows = [[metric, *(cells.get((metric, name), "") for name in runners)] for metric in metrics]
    peaks = [report["peak_bytes"].get(name) for name in runners]
    if any(peaks):
        rows.append(["peak memory", *("" if p is None else f"{p / 1e9:.1f} GB" for p in peaks)])
    return ["", *runners], rows


def _cell(figure: dict[str, Any], reference: str) -> str:
    parts = [format_seconds(figure["seconds"])]
    if figure["speedup"] is not None and figure["runner"] != reference:
        parts.append(f"{figure['speedup']:.2f}x")
    if figure["share"] is not None:
        parts.append(f"{figure['share']:.0%}")
    return "  ".join(parts)


def headlines(report: dict[str, Any]) -> Iterator[str]:
    """The ratios in words, the machine, and notes on failures."""
    best = {(f["metric"], f["runner"]): f for f in report["figures"]}
    reference = report["reference"]
    for metric, runner in best:
        if metric not in ("first token", "decode step") or not runner.startswith("ours"):
            continue
        figure = best[metric, runner]
        if runner == reference or figure["speedup"] is None:
            continue
        line = f"{metric}: {runner} is {figure['speedup']:.1f} times as fast as {reference}"
        frozen = best.get((metric, FROZEN))
        if frozen is not None and reference != FROZEN and metric == "first token":
            ratio = frozen["seconds"] / figure["seconds"]
            line += f" ({ratio:.1f} times as fast as with frozen weights)"
        yield line
    batches = _tokens_per_second(report)
    for runner, rows in batches.items():
        alone = best.get(("decode step", runner))
        if alone is not None:
            for num_rows, rate in rows.items():
                yield (
                    f"{num_rows} rows: {runner} gives {rate:.1f} tokens per second, "
                    f"{rate * alone['seconds']:.1f} times the rate of one row"
                )
    yield from machine_lines(report)
    yield from report["notes"]


def _tokens_per_second(report: dict[str, Any]) -> dict[str, dict[int, float]]:
    rates: dict[str, dict[int, float]] = {}
    for figure in report["figures"]:
        if figure["metric"].startswith(_PER_STEP):
            num_rows = STAGES[figure["metric"]].num_rows
            rates.setdefault(figure["runner"], {})[num_rows] = num_rows / figure["seconds"]
    return rates


def markdown(report: dict[str, Any]) -> str:
    """The table and what it was measured on."""
    headings, rows = table(report)
    lines = [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]
    about = "; ".join(machine_lines(report))
    return "\n".join([*lines, "", f"{report['model']}. {about}."]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
