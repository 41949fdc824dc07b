"""Samples -> medians, ratios, shares of the limit; and the tables made of them.

A report is plain JSON values, so that a stored one gives the same tables.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from paligemma.bench.costs import least_seconds, weight_bytes
from paligemma.bench.harness import FROZEN, WEIGHTS, Measurements, Plan
from paligemma.bench.limits import Limits
from paligemma.bench.machine import describe_machine
from paligemma.bench.workload import STAGES, named_config

_IN_CACHE = 1_000_000_000  # bytes of weights below which a processor's cache may hold them
_PER_STEP = "batch-"


def build_report(plan: Plan, found: Measurements) -> dict[str, Any]:
    """Everything that was measured and what follows from it; times in seconds.

    A figure's `speedup` is how many times as fast as the reference it is, both of the same group
    of processes. Its `share` is the least time by arithmetic (`least_seconds`) over its time.
    """
    config = named_config(plan.model)
    limits = _median_limits(found)
    counts_shares = weight_bytes(config, "bf16") > _IN_CACHE
    metrics = [metric for stage in plan.stages for metric in stage.metrics]
    medians = {key: statistics.median(samples) for key, samples in found.samples.items()}
    figures = []
    for group, runner, metric in sorted(
        found.samples, key=lambda key: (metrics.index(key[2]), plan.runners.index(key[1]), key[0])
    ):
        stage = next(stage for stage in plan.stages if metric in stage.metrics)
        seconds = medians[group, runner, metric]
        reference = medians.get((group, plan.reference, metric))
        if reference is None:  # the two did not fit into memory together
            reference = medians.get((0, plan.reference, metric))
        least = None
        if limits is not None and counts_shares:
            least = least_seconds(config, WEIGHTS[runner], stage, limits).get(metric)
        figures.append(
            {
                "metric": metric,
                "runner": runner,
                "group": group,
                "seconds": seconds,
                "samples": found.samples[group, runner, metric],
                "speedup": None if reference is None else reference / seconds,
                "least_seconds": least,
                "share": None if least is None else least / seconds,
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
            "read_bandwidth": limits.read_bandwidth,
            "matrix_peak": limits.matrix_peak,
            "file_bandwidth": None
            if limits.file_bandwidth == float("inf")
            else limits.file_bandwidth,
            "measured_by": found.limits_measured_by,
        },
        "figures": figures,
        "peak_bytes": found.peak_bytes,
        "notes": found.notes,
    }


def _median_limits(found: Measurements) -> Limits | None:
    if not found.limits:
        return None
    rows = [asdict(one) for one in found.limits]
    return Limits(**{name: statistics.median(row[name] for row in rows) for name in rows[0]})


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a row a metric, a column a runner.

    A cell has the time, how many times as fast as the reference, and the share of the limit.
    """
    runners = report["runners"]
    metrics = list(dict.fromkeys(figure["metric"] for figure in report["figures"]))
    cells: dict[tuple[str, str], str] = {}
    for figure in report["figures"]:
        # The reference stands in several groups: the first one is shown.
        cells.setdefault((figure["metric"], figure["runner"]), _cell(figure, report["reference"]))
    rows = [[metric, *(cells.get((metric, name), "") for name in runners)] for metric in metrics]
    peaks = [report["peak_bytes"].get(name) for name in runners]
    if any(peaks):
        rows.append(["peak memory", *("" if p is None else f"{p / 1e9:.1f} GB" for p in peaks)])
    return ["", *runners], rows


def _cell(figure: dict[str, Any], reference: str) -> str:
    parts = [_in_words(figure["seconds"])]
    if figure["speedup"] is not None and figure["runner"] != reference:
        parts.append(f"{figure['speedup']:.2f}x")
    if figure["share"] is not None:
        parts.append(f"{figure['share']:.0%}")
    return "  ".join(parts)


def _in_words(seconds: float) -> str:
    """
    >>> _in_words(0.2071), _in_words(8.512), _in_words(75.1), _in_words(0.00412)
    ('207 ms', '8.51 s', '75.1 s', '4.1 ms')
    """
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1000 * seconds:.{1 if seconds < 0.01 else 0}f} ms"


def headlines(report: dict[str, Any]) -> Iterator[str]:
    """The ratios in words, then what the machine is and what went wrong."""
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
            line += f" ({ratio:.1f} times as fast as with its weights frozen)"
        yield line
    batches = _tokens_a_second(report)
    for runner, rows in batches.items():
        alone = best.get(("decode step", runner))
        if alone is not None:
            for num_rows, rate in rows.items():
                yield (
                    f"{num_rows} rows: {runner} gives {rate:.1f} tokens a second, "
                    f"{rate * alone['seconds']:.1f} times those of one row"
                )
    yield from _machine_lines(report)
    yield from report["notes"]


def _tokens_a_second(report: dict[str, Any]) -> dict[str, dict[int, float]]:
    rates: dict[str, dict[int, float]] = {}
    for figure in report["figures"]:
        if figure["metric"].startswith(_PER_STEP):
            num_rows = STAGES[figure["metric"]].num_rows
            rates.setdefault(figure["runner"], {})[num_rows] = num_rows / figure["seconds"]
    return rates


def _machine_lines(report: dict[str, Any]) -> Iterator[str]:
    machine, limits = report["machine"], report["limits"]
    yield (
        f"{machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB; {' '.join(machine['instructions'])}"
    )
    versions = (f"{name} {number}" for name, number in machine["packages"].items() if number)
    yield f"{', '.join(versions)}, Python {machine['python']}; {machine['date']}"
    if limits is not None:
        how = "" if limits["measured_by"] == "native" else ", as far as torch reaches"
        yield (
            f"limits meanwhile: {limits['read_bandwidth'] / 1e9:.1f} GB/s read, "
            f"{limits['matrix_peak'] / 1e12:.2f} TFLOP/s bfloat16{how}"
        )


def markdown(report: dict[str, Any]) -> str:
    """The table and what it was measured on, for a README."""
    headings, rows = table(report)
    lines = [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]
    about = "; ".join(_machine_lines(report))
    return "\n".join([*lines, "", f"{report['model']}. {about}."]) + "\n"
