"""Finding a benchmark by its name, and what is said where files are missing or unfit."""

from __future__ import annotations

from pathlib import Path

import pytest

from paligemma.errors import DataError, OptionError
from paligemma.evals.datasets.benchmark import Benchmark
from paligemma.evals.datasets.open import BENCHMARKS, find_benchmark, open_benchmark
from tests.evals.datasets.official import Official

READ = [benchmark for benchmark in BENCHMARKS if not benchmark.not_read_because]
UNREAD = [benchmark for benchmark in BENCHMARKS if benchmark.not_read_because]


@pytest.mark.parametrize("benchmark", READ, ids=lambda b: b.name)
def test_every_missing_file_is_named_with_its_source(benchmark: Benchmark, tmp_path: Path) -> None:
    for split in benchmark.splits:
        needs = benchmark.needs(split)
        assert needs
        assert len({need.path for need in needs}) == len(needs)
        assert benchmark.missing(tmp_path, split) == needs
        with pytest.raises(DataError) as caught:
            open_benchmark(benchmark.name, tmp_path, split=split)
        message = str(caught.value)
        assert message.startswith(f"{benchmark.title} ({split}) needs files")
        for need in needs:
            assert f"{need.path} (from {need.source})" in message


@pytest.mark.parametrize("benchmark", READ, ids=lambda b: b.name)
def test_only_what_is_missing_is_named(benchmark: Benchmark, tmp_path: Path) -> None:
    first, *others = benchmark.needs(benchmark.default_split)
    if not others:
        return
    path = tmp_path / first.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if first.path.endswith("/"):
        path.mkdir()
    else:
        path.touch()
    with pytest.raises(DataError) as caught:
        open_benchmark(benchmark.name, tmp_path)
    assert f": {others[0].path} (from" in str(caught.value)
    assert f" {first.path} (from" not in str(caught.value)


@pytest.mark.parametrize("benchmark", READ, ids=lambda b: b.name)
def test_files_of_another_form_are_a_clear_error(benchmark: Benchmark, tmp_path: Path) -> None:
    for need in benchmark.needs(benchmark.default_split):
        path = tmp_path / need.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if need.path.endswith("/"):
            path.mkdir(exist_ok=True)
        elif not path.exists():
            path.write_text('{"other": 1}\n')
    with pytest.raises(DataError) as caught:
        open_benchmark(benchmark.name, tmp_path)
    message = str(caught.value)
    assert message.endswith(".") or "They come from" in message
    assert str(tmp_path) in message


def test_text_that_is_no_json_is_named_by_file(official: Official) -> None:
    official.text("val_v1.0_withQT.json", "<html>login</html>")
    (official.folder / "val").mkdir()
    with pytest.raises(DataError, match=r"val_v1.0_withQT.json' is not JSON"):
        open_benchmark("docvqa", official.folder)


def test_text_that_is_no_csv_or_nested_without_end_is_named_by_file(official: Official) -> None:
    official.text("Questions.csv", f'Index,Question\n1,"{"x" * 200_000}"\n')
    (official.folder / "MMVP Images").mkdir()
    with pytest.raises(DataError, match=r"Questions.csv' is not CSV: field larger"):
        open_benchmark("mmvp", official.folder)
    official.text("val_v1.0_withQT.json", "[" * 100_000)
    (official.folder / "val").mkdir()
    with pytest.raises(DataError, match=r"val_v1.0_withQT.json' is not JSON: maximum recursion"):
        open_benchmark("docvqa", official.folder)


def test_a_damaged_image_in_a_table_is_an_error_of_the_benchmark(official: Official) -> None:
    pytest.importorskip("pyarrow", reason="the data extra is not installed")
    row = {"image": {"bytes": b"no picture", "path": "a.jpg"}, "number": 2}
    official.table("train-00000-of-00001-cf54c241ba947306.parquet", [row])
    official.json("countbench_paired_questions.json", [{"question": "how many?"}])
    with pytest.raises(DataError, match=r"CountBenchQA .* not in the official format"):
        open_benchmark("countbenchqa", official.folder)


def test_missing_images_are_counted_and_some_are_named(official: Official) -> None:
    entries = [
        {"questionId": n, "question": "?", "image": f"documents/{n}.png", "answers": ["a"]}
        for n in range(9)
    ]
    official.json("val_v1.0_withQT.json", {"data": entries})
    official.picture("val/documents/0.png")
    with pytest.raises(DataError) as caught:
        open_benchmark("docvqa", official.folder)
    message = str(caught.value)
    assert "8 of the 9 images of DocVQA (val) are missing" in message
    assert "'val/documents/1.png'" in message
    assert "and 3 more" in message
    assert "rrc.cvc.uab.es" in message


def test_images_that_are_drawn_upon_are_looked_for_too(official: Official) -> None:
    official.text("widget-caption/widget_captions.csv", "screenId,nodeId,captions\n7,0,back\n")
    official.text("widget-caption/split/test.txt", "7\n")
    official.json("combined/7.json", {"activity": {"root": {"bounds": [0, 0, 1, 1]}}})
    with pytest.raises(DataError, match=r"1 of the 1 images of WidgetCap .*combined/7.jpg"):
        open_benchmark("widgetcap", official.folder)


def test_files_without_the_split_are_an_error(official: Official) -> None:
    official.json("problems.json", {})
    (official.folder / "test").mkdir()
    with pytest.raises(DataError, match="have no records of the split 'test'"):
        open_benchmark("science-qa", official.folder)


@pytest.mark.parametrize("benchmark", UNREAD, ids=lambda b: b.name)
def test_what_is_not_read_says_why_and_has_its_scores(benchmark: Benchmark, tmp_path: Path) -> None:
    assert benchmark.published("test")
    with pytest.raises(DataError) as caught:
        open_benchmark(benchmark.name, tmp_path)
    assert benchmark.not_read_because in str(caught.value)


def test_names_are_found_in_any_spelling_and_the_like_are_proposed() -> None:
    assert find_benchmark("Science_QA").name == "science-qa"
    assert find_benchmark("RefCOCO+").name == "refcoco+"
    with pytest.raises(OptionError, match=r"no benchmark 'textvq'. Did you mean: textvqa"):
        find_benchmark("textvq")


def test_an_unknown_split_is_an_error_that_lists_them(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no split 'mini'\. Splits: val, train"):
        open_benchmark("vqav2", tmp_path, split="mini")


def test_names_are_unlike_each_other_and_prompts_have_blanks() -> None:
    names = [benchmark.name for benchmark in BENCHMARKS]
    assert len(set(names)) == len(names) == 52
    for benchmark in BENCHMARKS:
        assert benchmark.homepage.startswith(("https://", "http://"))
        assert "\n" not in benchmark.prompt or benchmark.name == "science-qa"


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.name)
def test_metrics_bear_the_words_of_the_published_tables(benchmark: Benchmark) -> None:
    """Or the table has a figure for which people, or another program, are needed."""
    elsewhere = {"precision", "recall", "RadGraph F1", "ROUGE-L", "NES %", "characters"}
    elsewhere |= {"sentences", "USEv4 cosine x100"}
    for split in benchmark.splits:
        words = {score.metric for score in benchmark.published(split)}
        assert words - elsewhere <= set(benchmark.metrics), split
