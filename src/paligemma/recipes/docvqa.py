r"""DocVQA: questions about scanned pages.

    paligemma train DATA --recipe docvqa --model google/paligemma-3b-pt-224 \
        --out runs/docvqa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import QUESTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="docvqa",
    title="DocVQA",
    prompt=QUESTION,
    suffix="one of the answers",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=10, weight_decay=1e-6),
        Setting(resolution=448, epochs=10, weight_decay=1e-6),
        Setting(resolution=896, epochs=10, weight_decay=1e-6),
    ),
    benchmarks=("docvqa",),
    sweep_rows=("DocVQA (val)",),
    train_split="train and val",
    train_examples=44_812,
    evaluated_on="test server",
    metric="ANLS",
    antialias_training=True,
    antialias_evaluation=True,
)
