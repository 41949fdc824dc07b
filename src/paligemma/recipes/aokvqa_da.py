r"""A-OKVQA, direct answers.

    paligemma train DATA --recipe aokvqa-da --model google/paligemma-3b-pt-224 \
        --out runs/aokvqa-da-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="aokvqa-da",
    title="A-OKVQA, direct answers",
    prompt=ANSWER,
    suffix="one of the ten answers",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=10, batch_size=128, learning_rate=5e-6),
        Setting(resolution=448, epochs=10, batch_size=128, learning_rate=5e-6),
    ),
    benchmarks=("aokvqa-da",),
    sweep_rows=("AOKVQA-DA (val)",),
    train_split="train and val",
    train_examples=18_201,
    evaluated_on="test server",
    metric="VQA accuracy, without leave-one-out",
    antialias_training=True,
    antialias_evaluation=True,
)
