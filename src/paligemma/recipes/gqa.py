r"""GQA: relations between things.

    paligemma train DATA --recipe gqa --model google/paligemma-3b-pt-224 \
        --out runs/gqa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="gqa",
    title="GQA",
    prompt=ANSWER,
    suffix="the answer",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=1),
        Setting(resolution=448, epochs=1, freeze_vision=True),
    ),
    benchmarks=(
        "gqa",
        "xgqa",
    ),
    sweep_rows=("GQA (minival)",),
    train_split="train and val, balanced",
    train_examples=1_075_062,
    evaluated_on="testdev, balanced",
    metric="accuracy",
    antialias_training=False,
    antialias_evaluation=False,
)
