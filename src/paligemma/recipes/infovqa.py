r"""InfoVQA: questions about infographics.

    paligemma train DATA --recipe infovqa --model google/paligemma-3b-pt-224 \
        --out runs/infovqa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="infovqa",
    title="InfoVQA",
    prompt=ANSWER,
    suffix="one of the answers, in lower case",
    text_length=48,
    settings=(
        Setting(resolution=224, epochs=3, weight_decay=1e-6, label_smoothing=0.4),
        Setting(resolution=448, epochs=3, batch_size=128, weight_decay=1e-6, label_smoothing=0.4),
        Setting(
            resolution=896,
            epochs=3,
            batch_size=32,
            learning_rate=3e-6,
            weight_decay=3e-7,
            label_smoothing=0.4,
        ),
    ),
    benchmarks=("infovqa",),
    sweep_rows=("InfoVQA (val)",),
    train_split="train and val",
    train_examples=26_747,
    evaluated_on="test server",
    metric="ANLS",
    antialias_training=True,
    antialias_evaluation=True,
)
