"""find_benchmark, open_benchmark: a benchmark by its name."""

from __future__ import annotations

import difflib
from pathlib import Path

from paligemma.errors import OptionError
from paligemma.evals.datasets import (
    captions,
    documents,
    objects,
    probing,
    reasoning,
    spotting,
    videos,
    vqa,
    writing,
)
from paligemma.evals.datasets.benchmark import Benchmark, BenchmarkData, read_benchmark

BENCHMARKS: tuple[Benchmark, ...] = (
    *captions.BENCHMARKS,
    *vqa.BENCHMARKS,
    *documents.BENCHMARKS,
    *reasoning.BENCHMARKS,
    *probing.BENCHMARKS,
    *objects.BENCHMARKS,
    *spotting.BENCHMARKS,
    *writing.BENCHMARKS,
    *videos.BENCHMARKS,
)


def find_benchmark(name: str) -> Benchmark:
    """Raises OptionError for an unknown name, with similar ones.

    >>> find_benchmark("ai2d").title
    'AI2D'
    """
    names = [benchmark.name for benchmark in BENCHMARKS]
    normalized = name.strip().lower().replace("_", "-")
    if normalized not in names:
        similar = difflib.get_close_matches(normalized, names, n=3)
        hint = f" Did you mean: {', '.join(similar)}?" if similar else ""
        raise OptionError(f"There is no benchmark {name!r}.{hint} docs/recipes.md lists them.")
    return BENCHMARKS[names.index(normalized)]


def open_benchmark(
    name: str, folder: str | Path, *, split: str | None = None, resolution: int = 224
) -> BenchmarkData:
    """The records of one split, from the official files in `folder`.

    `split` is by default the benchmark's first one; `resolution` is the model's, in pixels
    (WidgetCap draws into the resized image).

    Raises OptionError for an unknown name or split; DataError for a missing or invalid file.
    """
    return read_benchmark(find_benchmark(name), folder, split=split, resolution=resolution)
