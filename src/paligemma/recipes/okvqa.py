r"""OKVQA: questions that need knowledge from elsewhere.

    paligemma train DATA --recipe okvqa --model google/paligemma-3b-pt-224 \
        --out runs/okvqa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="okvqa",
    title="OKVQA",
    prompt=ANSWER,
    suffix="one of the ten answers",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=10, batch_size=128, learning_rate=5e-6),
        Setting(resolution=448, epochs=10, batch_size=128, learning_rate=5e-6),
    ),
    benchmarks=("okvqa",),
    sweep_rows=("OKVQA (minival)",),
    train_split="train",
    train_examples=9_009,
    evaluated_on="val",
    metric="VQA accuracy, without leave-one-out",
    antialias_training=True,
    antialias_evaluation=True,
)
