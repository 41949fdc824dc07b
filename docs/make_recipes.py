"""Writes docs/recipes.md from the recipes and benchmarks themselves.

python docs/make_recipes.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paligemma.evals.datasets.benchmark import Benchmark
from paligemma.evals.datasets.open import BENCHMARKS
from paligemma.finetune import recipes as recipes_module
from paligemma.finetune.recipes import RECIPES, Recipe

HEAD = """# Recipes and benchmarks

Written by `python docs/make_recipes.py`; a test keeps it current.

`paligemma recipes` lists the recipes, `paligemma recipes NAME` shows one: prompt, hyperparameters
for every resolution, published scores, and the commands. All recipes are entries of one table,
`src/paligemma/finetune/recipes.toml`. In Python:

```python
from paligemma.finetune import find_recipe, train_config

config = train_config(find_recipe("ai2d"), num_examples=12_413, resolution=448)
```

## Your own recipe

Copy an entry into a TOML file of your own, change its name and its figures, and give the file
in place of a recipe's name. `forkme` and `forkme-small` (for one small GPU) are made for this:

```toml
{forkme}
```

```
paligemma recipes my_recipe.toml
paligemma train DATA --recipe my_recipe.toml --model google/paligemma-3b-pt-224 --out runs/mine
```

Every field is explained in `src/paligemma/finetune/recipes.py`; one that is left out has its
default. `[[NAME.settings]]` may stand several times, once per resolution.

## The recipes of the papers

The figures are those of the papers (arXiv 2407.07726 and 2412.03555). For PaliGemma 2 the learning
rate is the best of the published sweep for its size; everything else is taken from PaliGemma at 224
pixels. What the papers do not state is "not stated", and has to be given.
"""
BENCHMARK_HEAD = """## Benchmarks

`paligemma eval NAME --folder FOLDER --model MODEL --out OUT` reads the official files, which you
download yourself and unpack into one folder as they are. What is missing is listed with its source.
Published scores of every size and resolution are in `src/paligemma/evals/datasets/tables`.
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


def forkme() -> str:
    """The entry of the table that is made to be copied, under another name."""
    entries = Path(recipes_module.__file__).with_name("recipes.toml").read_text(encoding="utf-8")
    entry = entries[entries.index("[forkme]") : entries.index("# A recipe to copy for one small")]
    return entry.replace("forkme", "my-recipe").strip()


def document() -> str:
    """The whole page."""
    recipes = table(
        ("recipe", "pixels", "prompt", "learning rate", "metric"), list(map(recipe_row, RECIPES))
    )
    benchmarks = table(
        ("benchmark", "splits", "files for the first split", "note"),
        list(map(benchmark_row, BENCHMARKS)),
    )
    return "\n".join((HEAD.format(forkme=forkme()), recipes, BENCHMARK_HEAD, benchmarks))


if __name__ == "__main__":
    Path(__file__).with_name("recipes.md").write_text(document(), encoding="utf-8")
