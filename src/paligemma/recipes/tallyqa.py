r"""TallyQA: how many are there?

    paligemma train DATA --recipe tallyqa --model google/paligemma-3b-pt-224 \
        --out runs/tallyqa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="tallyqa",
    title="TallyQA",
    prompt=ANSWER,
    suffix="the number in digits",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=2),
        Setting(resolution=448, epochs=2, weight_decay=1e-6),
    ),
    benchmarks=(
        "tallyqa",
        "countbenchqa",
    ),
    sweep_rows=(
        "TallyQA (complex)",
        "TallyQA (simple)",
    ),
    train_split="train",
    train_examples=249_318,
    evaluated_on="test, simple and complex",
    metric="accuracy",
    note=(
        "big_vision's config also tries 896 pixels: 2 epochs, learning rate 7e-6, weight "
        "decay 7e-7."
    ),
    antialias_training=True,
    antialias_evaluation=True,
)
