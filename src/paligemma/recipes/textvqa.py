r"""TextVQA: questions about what is written in photographs.

    paligemma train DATA --recipe textvqa --model google/paligemma-3b-pt-224 \
        --out runs/textvqa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="textvqa",
    title="TextVQA",
    prompt=ANSWER,
    suffix="one of the ten answers",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=5, learning_rate=3e-6),
        Setting(resolution=448, epochs=10, learning_rate=3e-6, weight_decay=3e-7),
        Setting(resolution=896, epochs=10, learning_rate=3e-6),
    ),
    benchmarks=("textvqa",),
    sweep_rows=("TextVQA (val)",),
    train_split="train and val",
    train_examples=39_602,
    evaluated_on="test-std (server)",
    metric="VQA accuracy",
    antialias_training=True,
    antialias_evaluation=True,
)
