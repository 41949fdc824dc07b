r"""AI2D: questions about diagrams of school books, one of several answers.

    paligemma train DATA --recipe ai2d --model google/paligemma-3b-pt-224 \
        --out runs/ai2d-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CHOOSE
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="ai2d",
    title="AI2D",
    prompt=CHOOSE,
    suffix="the option that is right",
    text_length=128,
    settings=(
        Setting(resolution=224, epochs=10, weight_decay=1e-6),
        Setting(resolution=448, epochs=10, weight_decay=1e-6),
    ),
    benchmarks=("ai2d",),
    sweep_rows=("AI2D (minival)",),
    train_split="train",
    train_examples=12_413,
    evaluated_on="test",
    metric="accuracy",
    note=(
        'Two spaces after "en", and options joined by space, tab, space, as big_vision\'s '
        "code makes them; the paper prints one space."
    ),
    antialias_training=True,
    antialias_evaluation=False,
)
