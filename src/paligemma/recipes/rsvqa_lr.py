r"""RSVQA, low resolution: questions about satellite pictures.

    paligemma train DATA --recipe rsvqa-lr --model google/paligemma-3b-pt-224 \
        --out runs/rsvqa-lr-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="rsvqa-lr",
    title="RSVQA, low resolution",
    prompt=ANSWER,
    suffix="the answer, in lower case",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=3, learning_rate=3e-6, label_smoothing=0.2),
        Setting(resolution=448, epochs=3, learning_rate=3e-6, label_smoothing=0.2),
    ),
    benchmarks=("rsvqa-lr",),
    sweep_rows=("RSVQA-lr (minival)",),
    train_split="train and val, without questions for a number",
    train_examples=47_173,
    evaluated_on="test",
    metric="mean of the accuracies of each question type",
    antialias_training=True,
    antialias_evaluation=False,
)
