"""Outcomes of a load test as figures, a table and a plot.

Goodput is the number of requests answered within the bound, per second of the time in which
requests were sent. Percentiles are of answered requests only; refused and lost requests are
counted separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.load import Outcome
from paligemma.errors import MissingExtraError, OptionError

HEADINGS = (
    "offered/s", "kind", "sent", "ok", "refused", "lost", "goodput/s", "p50 ms", "p90 ms", "p99 ms",
)  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all values do not exceed; None if there are none.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5)
    2.0
    """
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarize(outcomes: Sequence[Outcome], *, seconds: float, bound: float) -> dict[str, Any]:
    """The figures of requests sent within `seconds`, ready for JSON."""
    answered = [outcome for outcome in outcomes if outcome.is_answered]
    latencies = [outcome.latency for outcome in answered]
    duration = max([seconds, *(outcome.ended for outcome in answered)])
    num_refused = sum(outcome.is_refused for outcome in outcomes)
    return {
        "sent": len(outcomes),
        "ok": len(answered),
        "refused": num_refused,
        "lost": len(outcomes) - len(answered) - num_refused,
        "goodput": sum(latency <= bound for latency in latencies) / seconds,
        "throughput": len(answered) / duration,
        "tokens_per_second": sum(outcome.num_tokens for outcome in answered) / duration,
        "latency": {
            "mean": sum(latencies) / len(latencies) if latencies else None,
            "p50": percentile(latencies, 0.5),
            "p90": percentile(latencies, 0.9),
            "p99": percentile(latencies, 0.99),
            "max": max(latencies, default=None),
        },
    }


def run_report(
    outcomes: Sequence[Outcome], *, rate: float, seconds: float, bound: float
) -> dict[str, Any]:
    """The figures of one rate: all requests together, and each kind."""
    by_kind: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_kind.setdefault(outcome.kind, []).append(outcome)
    return {
        "rate": rate,
        "all": summarize(outcomes, seconds=seconds, bound=bound),
        "kinds": {
            kind: summarize(by_kind[kind], seconds=seconds, bound=bound) for kind in sorted(by_kind)
        },
    }


def table_rows(report: dict[str, Any]) -> list[list[str]]:
    """Cells for `HEADINGS`; for each rate all kinds together come first."""
    rows = []
    for run in report["runs"]:
        for kind, figures in [("all", run["all"]), *run["kinds"].items()]:
            latency = figures["latency"]
            rows.append(
                [
                    f"{run['rate']:g}" if kind == "all" else "",
                    kind,
                    str(figures["sent"]),
                    str(figures["ok"]),
                    str(figures["refused"]),
                    str(figures["lost"]),
                    f"{figures['goodput']:.1f}",
                    *(_milliseconds(latency[name]) for name in ("p50", "p90", "p99")),
                ]
            )
    return rows


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes a plot, in the format of the file name's ending (.png, .svg, .pdf)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench", "Drawing a plot") from error

    runs = report["runs"]
    rates = [run["rate"] for run in runs]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, color in (("p50", "#3b6fb6"), ("p90", "#2e9e6b"), ("p99", "#d98e04")):
        values = [run["all"]["latency"][name] for run in runs]
        left.plot(
            rates,
            [math.nan if value is None else value * 1000 for value in values],
            marker="o",
            color=color,
            label=name,
        )
    left.axhline(report["bound_seconds"] * 1000, color="black", linewidth=1, linestyle="--")
    left.set_yscale("log")
    left.set_ylabel("ms from due to answered")
    left.set_title("Latency", loc="left")
    left.legend(frameon=False)
    right.plot(rates, rates, color="black", linewidth=1, linestyle="--", label="offered")
    for name, color in (("throughput", "#9aa0a6"), ("goodput", "#3b6fb6")):
        values = [run["all"][name] for run in runs]
        right.plot(rates, values, marker="o", color=color, label=name)
    right.set_ylabel("answers per second")
    right.set_ylim(bottom=0)
    right.set_title(f"Goodput: within {report['bound_seconds']:g} s", loc="left")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("requests offered per second")
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OptionError(f"Cannot write the plot to {path}: {error}") from error


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"
