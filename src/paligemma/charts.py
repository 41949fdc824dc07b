"""Charts as results: series of points with scores, as CSV and data frames."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

from paligemma.errors import MissingExtraError, counted
from paligemma.escaping import columns_of_text, csv_cell, visible
from paligemma.results import UNSURE_SCORE, Problem, Result, StopReason, one_line
from paligemma.tables import remarks, unsure_line

ChartKind = Literal["bar", "line", "pie", "scatter", "area"]
CSV_COLUMNS = ("series", "x", "y", "raw", "score")
_SHOWN_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class Point(Result):
    """One mark of a chart."""

    x: str
    """The label of the bar or slice, or the value on the x axis, as it is written."""
    y: float | None
    """The value as a number; None where the model wrote none."""
    raw: str = ""
    """The value as it was written, with its unit or percent sign: y is 45.0 for "45.0 %"."""
    score: float = math.nan
    """The probability of label and value; NaN where it is not known."""

    @property
    def unsure(self) -> bool:
        """Whether the point is more likely wrong than right: a `score` below 0.5."""
        return self.score < UNSURE_SCORE


@dataclass(frozen=True, kw_only=True)
class Series(Result, Sequence[Point]):
    """The marks that belong together, such as all bars of one color."""

    name: str
    """As in the legend; "" where there is only one series, without a name."""
    points: tuple[Point, ...]

    def __len__(self) -> int:
        return len(self.points)

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Point, ...]: ...
    def __getitem__(self, index: int | slice) -> Point | tuple[Point, ...]:
        return self.points[index]

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)


@dataclass(frozen=True, kw_only=True, repr=False)
class Chart(Result):
    """A chart that was read from an image.

    >>> points = (Point(x="CAT", y=3.0, raw="3"), Point(x="A", y=5.0, raw="5"))
    >>> chart = Chart(series=(Series(name="", points=points),))
    >>> chart.values
    {'': {'CAT': 3.0, 'A': 5.0}}
    """

    series: tuple[Series, ...]
    kind: ChartKind | None = None
    """None where the answer does not say it."""
    title: str = ""
    x_title: str = ""
    """What the labels are, such as "Year"."""
    problems: tuple[Problem, ...] = ()
    """Parts of the output that are no points, described."""
    size_wh: tuple[float, float] = (0, 0)
    """Width and height of the image in pixels, or of a PDF's page in points."""
    page: int = 1
    """Number of the page that the chart is on."""
    text: str = ""
    """The raw output of the model; of several answers, one per line."""
    stop_reason: StopReason = "eos"
    notes: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """The points of all series."""
        return tuple(point for series in self.series for point in series)

    @property
    def values(self) -> dict[str, dict[str, float | None]]:
        """Name of each series -> label -> value; of equal names or labels, the last."""
        return {series.name: {point.x: point.y for point in series} for series in self.series}

    def unsure(self, min_score: float = UNSURE_SCORE) -> tuple[Point, ...]:
        """The points with a lower score, the least sure first."""
        return tuple(
            sorted((p for p in self.points if p.score < min_score), key=lambda point: point.score)
        )

    def to_csv(self, safe: bool = False) -> str:
        """Return a row per point under a heading: series, x, y, raw, score.

        With `safe`, an apostrophe is written in front of what a spreadsheet would take for a
        formula. Control characters are written out.
        """
        table = io.StringIO()
        clean = partial(csv_cell, safe=safe)
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for series in self.series:
            for point in series:
                y = "" if point.y is None else repr(point.y)
                score = "" if math.isnan(point.score) else f"{point.score:.4f}"
                texts = (clean(series.name), clean(point.x), y, clean(point.raw), score)
                writer.writerow(texts)
        return table.getvalue()

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame with a row per point: series, x, y, raw, score.

        Raises MissingExtraError without pandas.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError("pandas", "data", "to_dataframe()") from None
        rows = [
            (series.name, point.x, math.nan if point.y is None else point.y, point.raw, point.score)
            for series in self.series
            for point in series
        ]
        return pandas.DataFrame(rows, columns=list(CSV_COLUMNS))

    def __repr__(self) -> str:
        sizes = f"{len(self.series)} series, {counted(len(self.points), 'point')}"
        return f"Chart({self.kind or 'of unknown kind'}, {sizes})"

    def __str__(self) -> str:
        kind = f"{self.kind} chart" if self.kind else "chart"
        title = f": {visible(one_line(self.title))}" if self.title else ""
        lines = [f"{kind}{title}"]
        series = [_numbered(series.points) for series in self.series]
        labels = list(dict.fromkeys(label for points in series for label in points))
        if any(series.name for series in self.series) or self.x_title:
            heading = [self.x_title, *(series.name for series in self.series)]
        else:
            heading = []
        rows = [
            [label[0], *(points[label].raw if label in points else "" for points in series)]
            for label in labels
        ]
        lines += columns_of_text(([heading] if heading else []) + rows[:_SHOWN_ROWS])
        if len(rows) > _SHOWN_ROWS:
            lines.append(f"... {counted(len(rows) - _SHOWN_ROWS, 'more row')}")
        lines += unsure_line([(f"{point.x} {point.raw}", point.score) for point in self.unsure()])
        return "\n".join(lines + remarks(self.problems, self.notes))


def _numbered(points: Iterable[Point]) -> dict[tuple[str, int], Point]:
    """The points by label and how many of the same label come before: J is January, June, July."""
    counts: Counter[str] = Counter()
    numbered = {}
    for point in points:
        numbered[point.x, counts[point.x]] = point
        counts[point.x] += 1
    return numbered
