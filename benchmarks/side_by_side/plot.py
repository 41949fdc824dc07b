"""A report as a bar chart: speedup over the reference, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paligemma.errors import MissingExtraError, OptionError

_COLORS = {
    "transformers-frozen": "#9aa0a6",
    "keras-hub": "#d5a6bd",
    "ours-plain": "#b9c9e8",
    "ours-bf16": "#3b6fb6",
    "ours-int8": "#2e9e6b",
    "ours-int4": "#d98e04",
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes a plot, in the format of the file name's ending (.png, .svg, .pdf)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench", "Drawing a plot") from error

    reference = report["reference"]
    speedups = {
        (figure["metric"], figure["runner"]): figure["speedup"]
        for figure in report["figures"]
        if figure["runner"] != reference and figure["speedup"] is not None
    }
    if not speedups:
        raise OptionError("Nothing to plot: only one runner was measured.")
    metrics = list(dict.fromkeys(metric for metric, _ in speedups))
    runners = list(dict.fromkeys(runner for _, runner in speedups))
    height = 0.8 / len(runners)
    inches = 1.5 + 0.17 * len(metrics) * (len(runners) + 1)
    figure = Figure(figsize=(8, inches), layout="constrained")
    axes = figure.add_subplot()
    for i, runner in enumerate(runners):
        rows = [row for row, metric in enumerate(metrics) if (metric, runner) in speedups]
        values = [speedups[metrics[row], runner] for row in rows]
        bars = axes.barh(
            [row + (i - (len(runners) - 1) / 2) * height for row in rows],
            values,
            height * 0.9,
            label=runner,
            color=_COLORS.get(runner),
        )
        axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(metrics)), metrics)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.02)
    axes.set_xlabel(f"times as fast as {reference}")
    axes.set_title(f"{report['model']}, {report['machine']['cores']} cores", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(runners), frameon=False, fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OptionError(f"Cannot write the plot to {path}: {error}") from error
