"""The tables of published scores: every value as written down in the facts."""

from __future__ import annotations

import json
import re
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
from tests.facts import facts_table, facts_text

COLUMNS = [
    ("paligemma-3b", 224),
    ("paligemma-3b", 448),
    ("paligemma2-3b", 224),
    ("paligemma2-10b", 224),
    ("paligemma2-28b", 224),
    ("paligemma2-3b", 448),
    ("paligemma2-10b", 448),
    ("paligemma2-28b", 448),
]
RATES = (3e-7, 6e-7, 1e-6, 3e-6, 6e-6, 1e-5, 3e-5)


def value_and_deviation(cell: str) -> tuple[float, float | None]:
    """ "74.7±0.5" -> (74.7, 0.5); "73.7 (T15; ...)" -> (73.7, None)."""
    found = re.match(r"([\d.]+)(?:±([\d.]+))?", cell)
    assert found is not None, cell
    return float(found[1]), float(found[2]) if found[2] else None


def of_source(start: str) -> dict[tuple[str, str, int | None], PublishedScore]:
    scores = [score for score in all_scores() if score.source.startswith(start)]
    table = {(score.row, score.model, score.resolution): score for score in scores}
    assert len(table) == len(scores)
    return table


def test_the_table_of_both_models_is_as_written(shared_data: Path) -> None:
    ours = of_source("arXiv 2412.03555, Table 1")  # 13 and 15
    for row, metric, *cells in facts_table(shared_data, "benchmarks.md", "## 1."):
        for (model, resolution), cell in zip(COLUMNS, cells, strict=True):
            if cell == "–":
                assert (row, model, resolution) not in ours
                continue
            score = ours.pop((row, model, resolution))
            assert (score.value, score.deviation) == value_and_deviation(cell), row
            assert score.metric == metric
    assert not ours


def test_the_table_of_the_first_model_is_as_written(shared_data: Path) -> None:
    ours = of_source("arXiv 2407.07726, Table 1")
    for row, *cells in facts_table(shared_data, "benchmarks.md", "## 2."):
        name = row.replace(" (zs)", "")
        for resolution, cell in zip((224, 448, 896), cells, strict=True):
            if cell in ("", "–"):
                assert (name, "paligemma-3b", resolution) not in ours
                continue
            score = ours.pop((name, "paligemma-3b", resolution))
            assert (score.value, score.deviation) == value_and_deviation(cell), row
            assert score.own_training == ("(zs)" not in row)
    assert not ours


def test_the_sweep_of_learning_rates_is_as_written(shared_data: Path) -> None:
    table = facts_table(shared_data, "benchmarks.md", "## 6.")
    assert len(table) == 135
    for row, size, *cells in table:
        scores = learning_rate_scores(row, size.lower())
        assert scores == dict(zip(RATES, map(float, cells), strict=True)), (row, size)


@pytest.mark.parametrize(
    ("heading", "rows", "metrics"),
    [
        ("### 3.1", ("ICDAR'15", "Total-Text"), ("precision", "recall", "F1")),
        ("### 3.2", ("FinTabNet", "PubTabNet"), ("S-TEDS", "TEDS", "GriTS-Top", "GriTS-Con")),
    ],
)
def test_tables_with_a_row_for_each_model_are_as_written(
    shared_data: Path, heading: str, rows: tuple[str, ...], metrics: tuple[str, ...]
) -> None:
    for label, *cells in facts_table(shared_data, "benchmarks.md", heading):
        model = "paligemma2-3b" if label.startswith("PaliGemma 2 3B") else label
        for row, cell in zip(rows, cells, strict=True):
            ours = {s.metric: s.value for s in published_scores(row) if s.model == model}
            pairs = zip(metrics, cell.split(" / "), strict=True)
            assert ours == {metric: float(text) for metric, text in pairs if text != "–"}


def test_long_captions_spatial_relations_and_reports_are_as_written(shared_data: Path) -> None:
    def ours(row: str, model: str, resolution: int | None) -> dict[str, float]:
        return {
            score.metric: score.value
            for score in published_scores(row)
            if (score.model, score.resolution) == (model, resolution)
        }

    families = {"PaliGemma 1": "paligemma", "PaliGemma 2": "paligemma2"}
    for label, params, characters, sentences, nes in facts_table(
        shared_data, "benchmarks.md", "### 3.4"
    ):
        family = families.get(label.removesuffix(" 448"))
        model = f"{family}-{params.lower()}" if family else f"{label} {params}"
        resolution = 448 if label.endswith("448") else None
        if label.startswith("PaLI-5B"):
            model = "PaLI-5B"
        expected = {"characters": characters, "sentences": sentences, "NES %": nes}
        assert ours("DOCCI", model, resolution) == {k: float(v) for k, v in expected.items()}

    for label, zero_shot, random in facts_table(shared_data, "benchmarks.md", "### 3.5"):
        model = label.split(" (")[0]
        resolution = None
        if model.startswith("PaliGemma 2"):
            model, resolution = f"paligemma2-{model.split()[2].lower()}", 224
        row = "VSR" if model == "Human" else "VSR (zero-shot)"
        assert ours(row, model, resolution)["acc"] == float(zero_shot)
        if random:
            assert ours("VSR (random)", model, resolution)["acc"] == float(random)

    for label, *cells in facts_table(shared_data, "benchmarks.md", "### 3.6"):
        model, resolution = label, None
        if label.startswith("PaliGemma 2"):
            model, resolution = f"paligemma2-{label.split()[2].lower()}", 896
        metrics = ("CIDEr", "BLEU-4", "ROUGE-L", "RadGraph F1")
        pairs = zip(metrics, cells, strict=True)
        assert ours("MIMIC-CXR", model, resolution) == {k: float(v) for k, v in pairs}


def test_molecules_music_and_detection_are_as_written(shared_data: Path) -> None:
    (_, baseline, ours), (_, music_baseline, music) = facts_table(
        shared_data, "benchmarks.md", "### 3.3"
    )
    molecules = {s.model: s.value for s in published_scores("ChemDraw")}
    assert molecules == {
        "MolScribe": float(baseline.split()[-1]),
        "paligemma2-10b": float(ours.split()[-1]),
    }
    for model, cell in (
        ("Sheet Music Transformer", music_baseline.removeprefix("Sheet Music Transformer")),
        ("paligemma2-3b", music.split(":")[1]),
    ):
        values = [s.value for s in published_scores("GrandStaff") if s.model == model]
        assert values == [float(text) for text in cell.split(" / ")]

    models = ("paligemma-3b", "paligemma2-3b", "paligemma2-10b")
    names = {"COCO": "COCO detection", "DocLayNet": "DocLayNet"}
    for row, *cells in facts_table(shared_data, "benchmarks.md", "### 3.7"):
        scores = {(s.model, s.resolution): s.value for s in published_scores(names[row])}
        for resolution, cell in zip((224, 448, 896), cells, strict=True):
            values = [scores[model, resolution] for model in models]
            assert values == [float(text) for text in cell.split(" / ")]


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


EXTRA_ROWS = {
    "POPE random/popular/adversarial": ("POPE (random)", "POPE (popular)", "POPE (adversarial)"),
    "MMVP paired accuracy": ("MMVP",),
    "SciCap CIDEr; BLEU-4": ("SciCap",),
    "COCO-35L en, avg34, avg": ("COCO-35L (en)", "COCO-35L (avg34)", "COCO-35L (avg)"),
    "XM3600 en, avg35, avg": ("XM3600 (en)", "XM3600 (avg35)", "XM3600 (avg)"),
    "xGQA mean over 8 languages": ("xGQA (avg8)",),
    "OCR-VQA": ("OCR-VQA",),
    "ChartQA mean of human and aug": ("ChartQA (mean)",),
    "RefCOCO, +, g validation mIoU": ("RefCOCO (val)", "RefCOCO+ (val)", "RefCOCOg (val)"),
    "A-OKVQA MC; DA test server": ("AOKVQA-MC (test server)", "AOKVQA-DA (test server)"),
    "mix-224 / mix-448 MMVP": ("MMVP",),
    "mix-224 / mix-448 POPE (r/p/a)": ("POPE (random)", "POPE (popular)", "POPE (adversarial)"),
}


def test_further_digits_are_as_written(shared_data: Path) -> None:
    for item, cell in facts_table(shared_data, "benchmarks.md", "Extra digits"):
        cell = re.sub(r"\([^)]*\)", "", cell)
        written = sorted(float(number) for number in re.findall(r"\d+\.\d+", cell))
        mix = item.startswith("mix-")
        ours = sorted(
            score.value
            for row in EXTRA_ROWS[item]
            for score in published_scores(row)
            if score.model == ("paligemma-3b-mix" if mix else "paligemma-3b")
            and not score.source.startswith("arXiv")
        )
        assert ours == written, item


def test_the_probing_of_many_views_and_the_widgets_are_as_written(shared_data: Path) -> None:
    text = facts_text(shared_data, "benchmarks.md")
    views = re.search(r"^Objaverse .*?: (.*?) \(std", text, flags=re.MULTILINE)
    widgets = re.search(r"^WidgetCap validation .*?: (.*)$", text, flags=re.MULTILINE)
    assert views is not None
    assert widgets is not None
    numbers = re.findall(r"\d+\.\d", views[1])
    objaverse = [s for s in published_scores("Objaverse Multiview") if "Table 3" in s.source]
    assert sorted(s.value for s in objaverse) == sorted(map(float, numbers))
    widget_scores = [*published_scores("WidgetCap (val)"), *published_scores("WidgetCap")]
    ours = [s.value for s in widget_scores if "appendices" in s.source]
    assert ours == [float(number) for number in re.findall(r"\d+\.\d+", widgets[1])]


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
    with pytest.raises(OptionError, match="no line 'VATEX"):
        learning_rate_scores("VATEX (minival)", "28b")
