r"""RSVQA, high resolution: questions about pictures from aeroplanes.

    paligemma train DATA --recipe rsvqa-hr --model google/paligemma-3b-pt-224 \
        --out runs/rsvqa-hr-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="rsvqa-hr",
    title="RSVQA, high resolution",
    prompt=ANSWER,
    suffix="the answer, in lower case",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=1),
        Setting(resolution=448, epochs=1),
    ),
    benchmarks=("rsvqa-hr",),
    sweep_rows=("RSVQA-hr (minival)",),
    train_split="train and val, without questions for a number",
    train_examples=432_239,
    evaluated_on="test and test2",
    metric="mean of the accuracies of each question type",
    antialias_training=True,
    antialias_evaluation=False,
)
