"""Charts as SVG documents, drawn by matplotlib (extras "train" and "eval")."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paligemma.errors import MissingExtraError

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "paligemma",  # the same chart is the same file
    "text.parse_math": False,
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points (x, y) by increasing x; a y that is not finite leaves a gap."""

    name: str
    points: Sequence[tuple[float, float]]
    has_dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bar of a reliability diagram: scores in [low, high), in the last one also `high`."""

    low: float
    high: float
    count: int
    confidence: float
    """The mean score."""
    accuracy: float
    """The fraction that is correct."""


def check_charts(extra: str, purpose: str) -> None:
    """Raise MissingExtraError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", extra, purpose) from None


def line_chart(curves: Sequence[Curve], *, x_name: str) -> str:
    """All curves on common axes, as SVG; "" where no point is finite."""
    if not any(math.isfinite(y) for curve in curves for _, y in curve.points):
        return ""
    from matplotlib.ticker import MaxNLocator

    figure = _figure((6.4, 2.7))
    with _style():
        axes = figure.add_subplot()
        for curve, color in zip(curves, COLORS * len(curves), strict=False):
            xs, ys = zip(*curve.points, strict=True) if curve.points else ((), ())
            has_dots = curve.has_dots or not _has_lines(ys)
            marker = "o" if has_dots else None
            axes.plot(
                xs, ys, color=color, label=curve.name, linewidth=1.4, marker=marker, markersize=4
            )
        axes.set_xlabel(x_name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
        return _to_svg(figure)


def reliability_chart(panels: Sequence[tuple[str, Sequence[Bin]]]) -> str:
    """Reliability diagrams next to each other, each with its title, as one SVG.

    A bar is the fraction of a bin that is correct, a dot the bin's mean score: with perfect
    calibration the dots are on the diagonal. Dots are larger where a bin holds more.
    """
    figure = _figure((4.0 * len(panels), 4.0))
    with _style():
        for number, (title, bins) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), number, aspect="equal")
            axes.set_axisbelow(True)
            lows = [bin.low for bin in bins]
            widths = [bin.high - bin.low for bin in bins]
            accuracies = [bin.accuracy for bin in bins]
            axes.bar(lows, accuracies, widths, align="edge", color="#8ab6d6", edgecolor="white")
            largest = max((bin.count for bin in bins), default=1)
            sizes = [10 + 60 * bin.count / largest for bin in bins]
            axes.scatter(
                [bin.confidence for bin in bins], accuracies, sizes, color="#1d4e79", clip_on=False
            )
            axes.plot([0, 1], [0, 1], color="#b3400b", linestyle="--", linewidth=1)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="fraction correct")
            axes.set_title(title, loc="left", fontsize=10)
        return _to_svg(figure)


def _has_lines(ys: Sequence[float]) -> bool:
    finite = [math.isfinite(y) for y in ys]
    return any(first and second for first, second in itertools.pairwise(finite))


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _to_svg(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
