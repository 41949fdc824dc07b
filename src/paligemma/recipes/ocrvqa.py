r"""OCR-VQA: questions about book covers.

    paligemma train DATA --recipe ocrvqa --model google/paligemma-3b-pt-224 \
        --out runs/ocrvqa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="ocrvqa",
    title="OCR-VQA",
    prompt=ANSWER,
    suffix="the answer",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=3, batch_size=128, learning_rate=3e-6),
        Setting(resolution=448, epochs=3, batch_size=128, learning_rate=3e-6),
        Setting(resolution=896, epochs=3, batch_size=128),
    ),
    benchmarks=("ocrvqa",),
    sweep_rows=("OCR-VQA (minival)",),
    train_split="train and val",
    train_examples=901_717,
    evaluated_on="test",
    metric="accuracy",
    antialias_training=True,
    antialias_evaluation=True,
)
