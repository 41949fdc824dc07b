r"""ChartQA: questions about charts.

    paligemma train DATA --recipe chartqa --model google/paligemma-3b-pt-224 \
        --out runs/chartqa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import QUESTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="chartqa",
    title="ChartQA",
    prompt=QUESTION,
    suffix="the answer",
    text_length=48,
    settings=(
        Setting(resolution=224, epochs=30, weight_decay=1e-6, dropout=0.1, label_smoothing=0.2),
        Setting(resolution=448, epochs=30, weight_decay=1e-6, dropout=0.1, label_smoothing=0.2),
    ),
    benchmarks=("chartqa",),
    sweep_rows=(
        "ChartQA aug (minival)",
        "ChartQA human (minival)",
    ),
    train_split="train and val, human and augmented",
    train_examples=30_219,
    evaluated_on="human test, augmented test",
    metric="relaxed accuracy",
    antialias_training=True,
    antialias_evaluation=True,
)
