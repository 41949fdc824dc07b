"""The papers' scores, as printed, for recipes and benchmarks.

    tables/transfers.csv              PaliGemma 1 and 2 on the same splits
                                      (arXiv 2412.03555, Tables 13 and 15)
    tables/transfers_paligemma1.csv   PaliGemma 1, on test servers where there are any
                                      (arXiv 2407.07726, Table 1)
    tables/other_scores.csv           the new tasks of PaliGemma 2, further digits of the README,
                                      and other models; each line names its source
    tables/learning_rates.csv         scores by learning rate (arXiv 2412.03555, Table 14)

A `row` is the name of a line in these tables, such as "ChartQA (human)". Sources disagree in
places (COCO-35L, XM3600, OCR-VQA, VizWizVQA); all of them are kept. Scores are in the unit of the
papers, mostly percent and CIDEr times 100.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from paligemma.errors import OptionError

_PAPER_1 = "arXiv 2407.07726"
_PAPER_2 = "arXiv 2412.03555"
_MODELS = {
    "PG1-3B": "paligemma-3b",
    "PG2-3B": "paligemma2-3b",
    "PG2-10B": "paligemma2-10b",
    "PG2-28B": "paligemma2-28b",
}
_NOTES = {("VizWizVQA (val)", "paligemma-3b", 224): "Table 4 of arXiv 2407.07726 lists 76.4"}


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """One figure in a paper."""

    row: str
    """The line of the table: task and split."""
    metric: str
    """As named in the paper."""
    model: str
    """The beginning of a release's name ("paligemma2-10b"), or the name of another model."""
    resolution: int | None
    """None where the paper does not say."""
    value: float
    deviation: float | None = None
    """Standard deviation over five runs of fine-tuning."""
    own_training: bool = True
    """False where the model was trained for another task of the family."""
    source: str
    note: str = ""

    @property
    def fraction(self) -> float:
        """In the unit of a MetricResult: 0.747 for 74.7 percent, 1.419 for a CIDEr of 141.9."""
        return self.value if self._is_plain else self.value / 100

    @property
    def _is_plain(self) -> bool:
        return self.metric in ("characters", "sentences") or (
            self.metric == "BLEU-4" and self.row == "SciCap"
        )

    def __str__(self) -> str:
        deviation = "" if self.deviation is None else f" ± {self.deviation}"
        resolution = "" if self.resolution is None else f" {self.resolution}px"
        return f"{self.value}{deviation} ({self.model}{resolution}; {self.source})"


@cache
def all_scores() -> tuple[PublishedScore, ...]:
    """All scores in the tables, except the sweep of learning rates."""
    return (*_transfers("transfers.csv"), *_transfers("transfers_paligemma1.csv"), *_other_scores())


def published_scores(row: str) -> tuple[PublishedScore, ...]:
    """All scores of one row, in the order of the files. Raises OptionError for an unknown row."""
    scores = tuple(score for score in all_scores() if score.row == row)
    if not scores:
        raise OptionError(f"No table has the row {row!r}. The names are in tables/*.csv.")
    return scores


@cache
def learning_rate_scores(row: str, size: str) -> dict[float, float]:
    """Score on a validation split by learning rate, PaliGemma 2 at 224 pixels, single runs.

    `size` is "3b", "10b" or "28b". Raises OptionError where the sweep has no such row: 28b was
    not swept on videos.
    """
    for line in _lines("learning_rates.csv"):
        if line["row"] == row and line["size"].lower() == size:
            return {float(rate): float(line[rate]) for rate in line if rate not in ("row", "size")}
    raise OptionError(f"The sweep of learning rates has no row {row!r} for the size {size!r}.")


def best_learning_rate(rows: Sequence[str], size: str) -> float:
    """The learning rate with the best mean score over the rows; for ties the smallest.

    The papers do not say which one they chose.

    >>> best_learning_rate(["AI2D (minival)"], "10b")
    1e-06
    """
    sweeps = [learning_rate_scores(row, size) for row in rows]
    return max(sweeps[0], key=lambda rate: (sum(sweep[rate] for sweep in sweeps), -rate))


def _transfers(name: str) -> list[PublishedScore]:
    """The scores of a table with one column per model and resolution."""
    return [
        _from_cell(line, column, cell)
        for line in _lines(name)
        for column, cell in line.items()
        if cell and column.startswith("PG")
    ]


def _other_scores() -> list[PublishedScore]:
    return [
        PublishedScore(
            row=line["row"],
            metric=line["metric"],
            model=line["model"],
            resolution=int(line["resolution"]) if line["resolution"] else None,
            value=float(line["value"]),
            source=line["source"],
            note=line["note"],
        )
        for line in _lines("other_scores.csv")
    ]


def _from_cell(line: dict[str, str], column: str, cell: str) -> PublishedScore:
    """`column` is "PG2-3B 224", `cell` "74.7 ± 0.5" or "72.1"."""
    name, resolution = column.split()
    value, _, deviation = cell.partition(" ± ")
    is_first_paper = "own training" in line
    table = 15 if name.startswith("PG1") else 13
    return PublishedScore(
        row=line["row"],
        metric=line["metric"],
        model=_MODELS[name],
        resolution=int(resolution),
        value=float(value),
        deviation=float(deviation) if deviation else None,
        own_training=line.get("own training", "yes") == "yes",
        source=f"{_PAPER_1}, Table 1" if is_first_paper else f"{_PAPER_2}, Table {table}",
        note=_NOTES.get((line["row"], _MODELS[name], int(resolution)), ""),
    )


@cache
def _lines(name: str) -> tuple[dict[str, str], ...]:
    text = files("paligemma.evals.datasets").joinpath("tables", name).read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))
