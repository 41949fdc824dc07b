"""Curves as SVG that a page holds inline. Knows numbers and names only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 34
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito
_NUM_TICKS = 4


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points (x, y) by rising x; y that is not finite leaves a gap."""

    name: str
    points: Sequence[tuple[float, float]]
    has_dots: bool = False


def line_chart(curves: Sequence[Curve], *, x_name: str) -> str:
    """An SVG of all curves on common axes; empty text where there is no finite point."""
    known = [p for curve in curves for p in curve.points if math.isfinite(p[1])]
    if not known:
        return ""
    x_low, x_high = min(x for x, _ in known), max(x for x, _ in known)
    y_low, y_high = min(y for _, y in known), max(y for _, y in known)
    x_high = x_high if x_high > x_low else x_low + 1
    if y_high == y_low:
        y_low, y_high = y_low - 0.5, y_high + 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + across, _HEIGHT - _BOTTOM - up

    parts = []
    for number in range(_NUM_TICKS + 1):
        y = y_low + (y_high - y_low) * number / _NUM_TICKS
        at = place(x_low, y)[1]
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.3g}</text>'
        )
        x = x_low + (x_high - x_low) * number / _NUM_TICKS
        parts.append(
            f'<text x="{place(x, y_low)[0]:.1f}" y="{_HEIGHT - _BOTTOM + 16}" '
            f'text-anchor="middle">{x:.0f}</text>'
        )
    for curve, color in zip(curves, _COLORS * len(curves), strict=False):
        parts.append(_drawn(curve, color, [place(x, y) for x, y in curve.points]))
    legend = "".join(
        f'<span class="key"><i style="background:{color}"></i>{escape(curve.name)}</span>'
        for curve, color in zip(curves, _COLORS * len(curves), strict=False)
    )
    label = escape(", ".join(curve.name for curve in curves) + f" by {x_name}")
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" '
        f'font-size="12" font-family="sans-serif">{"".join(parts)}'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 2}" text-anchor="end">{escape(x_name)}</text>'
        f"</svg><figcaption>{legend}</figcaption></figure>"
    )


def _drawn(curve: Curve, color: str, places: Sequence[tuple[float, float]]) -> str:
    pieces: list[list[str]] = [[]]
    for (_, y), (across, up) in zip(curve.points, places, strict=True):
        if math.isfinite(y):
            pieces[-1].append(f"{across:.1f},{up:.1f}")
        elif pieces[-1]:
            pieces.append([])
    drawn = "".join(
        f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{" ".join(piece)}"/>'
        for piece in pieces
        if len(piece) > 1
    )
    if curve.has_dots or all(len(piece) == 1 for piece in pieces if piece):
        drawn += "".join(
            f'<circle cx="{x.split(",")[0]}" cy="{x.split(",")[1]}" r="3" fill="{color}"/>'
            for piece in pieces
            for x in piece
        )
    return drawn


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` at most; of what is finite.

    >>> smoothed([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    means = []
    for end in range(1, len(values) + 1):
        near = [v for v in values[max(0, end - window) : end] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means
