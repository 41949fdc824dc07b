"""The tables of published scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paligemma.errors import OptionError
from paligemma.evals.datasets.open import BENCHMARKS
from paligemma.evals.datasets.published import (
    PublishedScore,
    all_scores,
    best_learning_rate,
    learning_rate_scores,
    published_scores,
)

RATES = (3e-7, 6e-7, 1e-6, 3e-6, 6e-6, 1e-5, 3e-5)


def of_source(start: str) -> dict[tuple[str, str, int | None], PublishedScore]:
    scores = [score for score in all_scores() if score.source.startswith(start)]
    table = {(score.row, score.model, score.resolution): score for score in scores}
    assert len(table) == len(scores)
    return table


def test_further_digits_of_the_model_card_agree(shared_data: Path) -> None:
    """An outside file: the card's own table, two digits after the point."""
    path = shared_data / "model_meta" / "published_results.json"
    rows: dict[str, dict[str, list[str]]] = {}
    mix: dict[str, dict[str, list[str]]] = {}
    for row in json.loads(path.read_text())["rows"]:
        name = row["benchmark"].split(" (")[0]
        (mix if name in rows else rows)[name] = row
    ours = {
        name: published_scores(row)
        for name, row in (
            ("COCO captions", "COCOcap"),
            ("TextCaps", "TextCaps"),
            ("Screen2words", "Screen2Words"),
            ("OKVQA", "OKVQA"),
            ("GQA", "GQA"),
        )
    }
    for name, scores in ours.items():
        for resolution, text in zip((224, 448), rows[name]["values"], strict=False):
            rounded = [
                s.value for s in scores if (s.model, s.resolution) == ("paligemma-3b", resolution)
            ]
            assert rounded
            assert all(abs(value - float(text)) <= 0.051 for value in rounded), name
    for model, card in (("paligemma-3b", rows), ("paligemma-3b-mix", mix)):
        cells = (cell.split(" / ") for cell in card["POPE"]["values"])
        kinds = ("random", "popular", "adversarial")
        for kind, *texts in zip(kinds, *cells, strict=True):
            values = [s.value for s in published_scores(f"POPE ({kind})") if s.model == model]
            assert values == [float(text) for text in texts]


def test_the_best_rate_of_several_rows_is_that_of_their_mean() -> None:
    assert best_learning_rate(["AI2D (minival)"], "3b") == 6e-6
    assert best_learning_rate(["AI2D (minival)"], "28b") == 3e-6
    simple, complex_ = (learning_rate_scores(f"TallyQA ({k})", "3b") for k in ("simple", "complex"))
    means = {rate: simple[rate] + complex_[rate] for rate in RATES}
    best = best_learning_rate(["TallyQA (simple)", "TallyQA (complex)"], "3b")
    assert means[best] == max(means.values())


def test_of_equal_scores_the_smaller_rate_is_taken() -> None:
    assert learning_rate_scores("OCR-VQA (minival)", "3b")[1e-6] == 73.4
    assert learning_rate_scores("OCR-VQA (minival)", "3b")[3e-6] == 73.4
    assert best_learning_rate(["OCR-VQA (minival)"], "3b") == 1e-6


def test_a_score_is_a_fraction_where_the_metrics_give_fractions() -> None:
    assert published_scores("AI2D")[0].fraction == pytest.approx(0.721)
    bleu = next(score for score in published_scores("SciCap") if score.metric == "BLEU-4")
    assert bleu.fraction == bleu.value == 0.192


def test_every_score_but_the_means_over_sets_belongs_to_a_benchmark() -> None:
    claimed = {row for b in BENCHMARKS for rows in b.splits.values() for row in rows}
    free = {score.row for score in all_scores()} - claimed
    assert free == {"ChartQA (mean)", "COCO-35L (avg)"}


def test_an_unknown_row_is_an_error() -> None:
    with pytest.raises(OptionError, match="No table has the row 'AI3D'"):
        published_scores("AI3D")
    with pytest.raises(OptionError, match="no row 'VATEX"):
        learning_rate_scores("VATEX (minival)", "28b")
