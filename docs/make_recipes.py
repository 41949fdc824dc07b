"""Writes docs/recipes.md from the recipes and benchmarks themselves.

python docs/make_recipes.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paligemma.evals.datasets.benchmark import Benchmark
from paligemma.evals.datasets.open import BENCHMARKS
from paligemma.recipes.catalog import RECIPES
from paligemma.recipes.recipe import Recipe

HEAD = """# Recipes and benchmarks

Written by `python docs/make_recipes.py`; a test keeps it current.

`paligemma recipes` lists the recipes, `paligemma recipes NAME` shows one whole: prompt,
hyper-parameters for every resolution, published scores, and the commands. Each is a short file in
`src/paligemma/recipes`, made to be copied. In Python:

```python
from paligemma.recipes.catalog import find_recipe
from paligemma.recipes.recipe import train_config

config = train_config(find_recipe("ai2d"), num_examples=12_413, resolution=448)
```

The figures are those of the papers (arXiv 2407.07726 and 2412.03555). For PaliGemma 2 the learning
rate is the best of the published sweep for its size; all else is taken over from PaliGemma at 224
pixels. What the papers do not state is "not stated", and has to be given.
"""
BENCHMARK_HEAD = """## Benchmarks

`paligemma eval NAME --folder FOLDER --model MODEL --out OUT` reads the official files, which you
download yourself and unpack into one folder as they are. What is missing is listed with its source.
Published scores of every size and resolution are in `src/paligemma/evals/benchmarks/tables`.
"""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def recipe_row(recipe: Recipe) -> list[str]:
    rates = {f"{s.learning_rate:g}" if s.learning_rate else "not stated" for s in recipe.settings}
    prompt = recipe.prompt.replace("\n", "\\n")
    return [
        f"`{recipe.name}`",
        ", ".join(map(str, recipe.resolutions)),
        f"`{prompt}`",
        ", ".join(sorted(rates)),
        recipe.metric,
    ]


def benchmark_row(benchmark: Benchmark) -> list[str]:
    if benchmark.not_read_because:
        needs = f"not read: {benchmark.not_read_because}"
    else:
        needs = ", ".join(f"`{need.path}`" for need in benchmark.needs(benchmark.default_split))
    splits = list(benchmark.splits)
    shown = ", ".join(splits[:4]) + (", ..." if len(splits) > 4 else "")
    return [f"[{benchmark.name}]({benchmark.homepage})", shown, needs, benchmark.note]


def document() -> str:
    """The whole page."""
    recipes = table(
        ("recipe", "pixels", "prompt", "learning rate", "metric"), list(map(recipe_row, RECIPES))
    )
    benchmarks = table(
        ("benchmark", "splits", "files for the first split", "note"),
        list(map(benchmark_row, BENCHMARKS)),
    )
    return "\n".join((HEAD, recipes, BENCHMARK_HEAD, benchmarks))


if __name__ == "__main__":
    Path(__file__).with_name("recipes.md").write_text(document(), encoding="utf-8")
