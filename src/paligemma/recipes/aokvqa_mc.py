r"""A-OKVQA, multiple choice.

    paligemma train DATA --recipe aokvqa-mc --model google/paligemma-3b-pt-224 \
        --out runs/aokvqa-mc-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CHOOSE
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="aokvqa-mc",
    title="A-OKVQA, multiple choice",
    prompt=CHOOSE,
    suffix="the option that is right",
    text_length=128,
    settings=(
        Setting(resolution=224, epochs=15, batch_size=128, learning_rate=5e-6),
        Setting(resolution=448, epochs=15, batch_size=128, learning_rate=5e-6),
    ),
    benchmarks=("aokvqa-mc",),
    sweep_rows=("AOKVQA-MC (val)",),
    train_split="train and val",
    train_examples=18_201,
    evaluated_on="test server",
    metric="accuracy",
    note=(
        'Two spaces after "en", and options joined by space, tab, space, as big_vision\'s '
        "code makes them; the paper prints one space."
    ),
    antialias_training=True,
    antialias_evaluation=True,
)
