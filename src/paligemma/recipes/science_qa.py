r"""ScienceQA: school questions with a picture, one of several answers.

    paligemma train DATA --recipe science-qa --model google/paligemma-3b-pt-224 \
        --out runs/science-qa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import SCIENCE
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="science-qa",
    title="ScienceQA",
    prompt=SCIENCE,
    suffix="The answer is {letter}.",
    text_length=512,
    settings=(
        Setting(resolution=224, epochs=20, batch_size=128, freeze_vision=True),
        Setting(resolution=448, epochs=20, batch_size=128, freeze_vision=True),
    ),
    benchmarks=("science-qa",),
    sweep_rows=("ScienceQA (minival)",),
    train_split="train and val, those with a picture",
    train_examples=8_315,
    evaluated_on="test",
    metric="accuracy of the letter",
    note="Options are shuffled anew in every epoch; an empty hint is N/A.",
    antialias_training=False,
    antialias_evaluation=False,
)
