"""From outcomes of a load to numbers, a table and a plot.

Goodput counts answers that were right in status and came within the bound, a second of the time
in which requests came. Percentiles are of answered requests alone; what was refused or lost is
counted beside them. Knows no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paligemma.errors import MissingExtraError, OptionError
from paligemma.server.load_generator import Outcome

HEADINGS = (
    "offered/s", "kind", "sent", "ok", "refused", "lost", "goodput/s", "p50 ms", "p90 ms", "p99 ms",
)  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all values do not exceed; None of no values.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5)
    2.0
    """
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarize(outcomes: Sequence[Outcome], *, seconds: float, bound: float) -> dict[str, Any]:
    """The numbers of some requests that came within `seconds`, in plain JSON."""
    answered = [one for one in outcomes if one.is_answered]
    latencies = [one.latency for one in answered]
    last = max((one.ended for one in answered), default=0.0)
    return {
        "sent": len(outcomes),
        "ok": len(answered),
        "refused": sum(one.is_refused for one in outcomes),
        "lost": sum(not one.is_answered and not one.is_refused for one in outcomes),
        "goodput": sum(latency <= bound for latency in latencies) / seconds,
        "throughput": len(answered) / max(seconds, last),
        "tokens_per_second": sum(one.num_tokens for one in answered) / max(seconds, last),
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
    """One rate: all requests together, then each kind."""
    kinds = sorted({one.kind for one in outcomes})
    return {
        "rate": rate,
        "all": summarize(outcomes, seconds=seconds, bound=bound),
        "kinds": {
            kind: summarize(
                [one for one in outcomes if one.kind == kind], seconds=seconds, bound=bound
            )
            for kind in kinds
        },
    }


def table_rows(report: dict[str, Any]) -> list[list[str]]:
    """Cells under `HEADINGS`, for each rate all kinds together first."""
    rows = []
    for run in report["runs"]:
        for name, numbers in [("all", run["all"]), *run["kinds"].items()]:
            latency = numbers["latency"]
            rows.append(
                [
                    f"{run['rate']:g}" if name == "all" else "",
                    name,
                    str(numbers["sent"]),
                    str(numbers["ok"]),
                    str(numbers["refused"]),
                    str(numbers["lost"]),
                    f"{numbers['goodput']:.1f}",
                    *(_milliseconds(latency[name]) for name in ("p50", "p90", "p99")),
                ]
            )
    return rows


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes a picture; the name's ending says in which format (.png, .svg, .pdf)."""
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
    right.set_ylabel("answers a second")
    right.set_ylim(bottom=0)
    right.set_title(f"Goodput: within {report['bound_seconds']:g} s", loc="left")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("requests offered a second")
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OptionError(f"The plot cannot be written to {path}: {error}") from error


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"
